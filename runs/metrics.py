"""`metrics.jsonl`: what happened, a JSON object a line, in the order of the steps."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from runs.failure import UserError
from runs.files import writing

DIVERGED = "training has diverged; begin a new run with other settings, such as a lower --learning-rate"


class MetricsFile:
    """Lines are appended; a resumed run first cuts off what came after its checkpoint.

    What may differ between two identical runs is under the key `measured` of a line.
    """

    def __init__(self, path: Path, offset: int, then: str) -> None:
        self.path = path
        self._then = then
        with writing(path, then):
            self._file = path.open("ab")
            size = self._file.tell()
            if size < offset:
                self._file.close()
                raise UserError(
                    f"{path} has {size} bytes where the checkpoint has seen {offset}: it was cut; restore it, or "
                    "resume from an earlier checkpoint with `--step`"
                )
            self._file.truncate(offset)
            self._file.seek(offset)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one line."""
        try:
            line = json.dumps({"kind": kind, "step": step, **values}, allow_nan=False) + "\n"
        except ValueError as error:
            raise UserError(f"{kind} at step {step} is not a finite number: {DIVERGED}") from error
        with writing(self.path, self._then):
            self._file.write(line.encode())
            self._file.flush()

    def sync(self) -> int:
        """See everything onto the disk; the number of bytes."""
        with writing(self.path, self._then):
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # of what could not be written, and was said so
            self._file.close()
