"""Files that are whole or not there, and what is said when they cannot be."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from runs.failure import UserError
from runs.files import read_json, write_atomically, write_json, writing


def fail_with(number: int) -> Any:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["notes"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failure_leaves_what_was_there(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notes"
    write_atomically(path, b"one")
    monkeypatch.setattr(os, where, fail_with(errno.ENOSPC))
    with pytest.raises(UserError, match="No space left on device; free some space, then run the command again"):
        write_atomically(path, b"two")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["notes"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left on device; free some space, then"),
        (errno.EFBIG, "File too large; raise the limit on file sizes (`ulimit -f`), then"),
        (errno.EROFS, "Read-only file system; choose a directory that can be written to, then"),
        (errno.EACCES, "Permission denied; make it writable for you or choose another directory, then"),
        (errno.EIO, "Input/output error; check the disk, then"),
    ],
)
def test_each_failure_has_its_remedy(number: int, message: str) -> None:
    with pytest.raises(UserError) as caught, writing(Path("run/x"), "`sparse-agents resume run`"):
        fail_with(number)()
    assert str(caught.value) == f"cannot write run/x: {message} `sparse-agents resume run`"


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory; create its directory or choose another"):
        write_json(tmp_path / "none" / "x.json", {})


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), writing(Path("x")):
        raise KeyError


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    obj = {"b": [1.5, None, True], "a": {"state": 2**127 + 1, "ü": 0.1 + 0.2}}
    write_json(path, obj)
    assert read_json(path, "note") == obj
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert text.index('"a"') < text.index('"b"')


@pytest.mark.parametrize(
    ("obj", "place"),
    [({"a": {"b": [1.0, math.nan]}}, "got nan at `a.b[1]`"), ({"loss": -math.inf}, "got -inf at `loss`")],
)
def test_json_has_no_nan(obj: Any, place: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold finite numbers") as caught:
        write_json(tmp_path / "x.json", obj)
    assert f"{place}; leave it out or write null" in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_json_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_json(tmp_path / "x.json", "settings file")
    assert str(caught.value) == f"no settings file at {tmp_path / 'x.json'}; check the path"


def test_a_json_that_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the settings file .*: Is a directory; check the path"):
        read_json(tmp_path, "settings file")


@pytest.mark.parametrize(
    "data",
    [b"", b'{"a": 1', b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b"\x00" * 20],
    ids=["empty", "cut", "bytes", "deep", "nan", "zeros"],
)
def test_a_json_that_is_damaged(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_json(path, "settings file")
    message = str(caught.value)
    assert message.startswith(f"the settings file {path} is damaged (")
    assert message.endswith("; put back a copy of it, or start again without it")
    assert "\n" not in message


def test_a_json_that_is_no_object(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([1]))
    with pytest.raises(UserError, match="must hold a JSON object, got list; put back"):
        read_json(path, "settings file")
