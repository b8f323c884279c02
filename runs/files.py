"""Files that are whole or not there, and errors that say what to do."""

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from runs.failure import UserError

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space or ask for a larger quota",
    errno.EFBIG: "raise the limit on file sizes (`ulimit -f`)",
    errno.EROFS: "choose a directory that can be written to",
    errno.EACCES: "make it writable for you or choose another directory",
    errno.EPERM: "make it writable for you or choose another directory",
    errno.ENOENT: "create its directory or choose another one",
    errno.EISDIR: "choose the name of a file",
    errno.ENOTDIR: "choose another directory",
}


@contextmanager
def writing(path: Path, then: str = "run the command again") -> Iterator[None]:
    """Turn an `OSError` into a `UserError`: cannot write `path`, why, what to do, and `then` what."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        remedy = _REMEDIES.get(error.errno or 0, "check the disk")
        raise UserError(f"cannot write {path}: {reason}; {remedy}, then {then}") from error


def write_atomically(path: Path, data: bytes, then: str = "run the command again") -> None:
    """Afterwards `path` holds `data`; after a failure or a crash, what it held before."""
    # The process in the name: two that write the same file must not share the half of it.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path, then):
        try:
            write_through(temporary, data)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # on top of the one that brought us here
                temporary.unlink()
            raise
        sync_directory(path.parent)


def write_through(path: Path, data: bytes) -> None:
    """Write a new file and see it onto the disk; not atomic, and an `OSError` stays one."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """See the names in `directory` onto the disk, such as that of a file just renamed."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_bytes(obj: Any, what: str) -> bytes:
    """`obj` as readable JSON with sorted keys; a `ValueError` names the place of a NaN."""
    try:
        text = json.dumps(obj, allow_nan=False, sort_keys=True, indent=2, ensure_ascii=False)
    except ValueError as error:
        for place, value in _not_finite(obj, ""):
            raise ValueError(
                f"{what} must hold finite numbers, got {value!r} at `{place}`; leave it out or write null"
            ) from error
        raise
    return text.encode() + b"\n"


def _not_finite(obj: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(obj, float) and not math.isfinite(obj):
        yield place, obj
    elif isinstance(obj, Mapping):
        for key, value in obj.items():
            yield from _not_finite(value, f"{place}.{key}" if place else str(key))
    elif isinstance(obj, list | tuple):
        for index, value in enumerate(obj):
            yield from _not_finite(value, f"{place}[{index}]")


def write_json(path: Path, obj: Any, then: str = "run the command again") -> None:
    """Write `obj` as JSON, atomically; JSON has no NaN, so that is a `ValueError`."""
    write_atomically(path, json_bytes(obj, str(path)), then)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in the file `path`; a `UserError` where there is none. `what` it is, for the message."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"no {what} at {path}; check the path") from error
    except OSError as error:
        raise UserError(
            f"cannot read the {what} {path}: {error.strerror}; check the path and its permissions"
        ) from error
    return parse_json(data, f"the {what} {path}")


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `data`, or a `UserError` that begins with `what`."""
    try:
        obj = json.loads(data.decode(), parse_constant=_refuse)
    # RecursionError: nested beyond reason, so not written by us.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is damaged ({error}); put back a copy of it, or start again without it") from error
    if not isinstance(obj, dict):
        raise UserError(
            f"{what} must hold a JSON object, got {type(obj).__name__}; "
            "put back a copy of it, or start again without it"
        )
    return obj


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
