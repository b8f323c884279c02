"""One writer per run directory."""

import fcntl
import json
import os
import socket
from contextlib import suppress
from io import FileIO
from pathlib import Path

from runs.failure import UserError
from runs.files import writing


class LockHeld(UserError):
    """Another process writes to this directory."""


class RunLock:
    """While it is held, no other process holds the lock of the same directory.

    The kernel keeps it, and frees it when the process ends in whatever way, so a lock
    file that lies about says nothing; process and host are in it for messages only.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file: FileIO | None = None

    def __enter__(self) -> "RunLock":
        path = self.directory / "lock"
        with writing(path):
            # Not "w": the holder's name must still be there to be read.
            file = FileIO(path, "a+")
        try:
            with writing(path):
                self._take(file)
                file.truncate(0)
                file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode() + b"\n")
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            # The file stays: removing it would let two processes lock two files of one name.
            with suppress(OSError):
                self._file.truncate(0)
            self._file.close()
            self._file = None

    def _take(self, file: FileIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockHeld(
                f"another process{_holder(file)} is writing to {self.directory}; "
                "wait for it or stop it, or choose another directory"
            ) from error


def _holder(file: FileIO) -> str:
    """Who holds the lock, as far as the file tells."""
    file.seek(0)
    try:
        holder = json.loads(file.read(1000))
        return f" (process {int(holder['pid'])} on {holder['host']!s})"
    except (ValueError, TypeError, KeyError):
        return ""  # it has the lock, but has not yet written its name
