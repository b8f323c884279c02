"""One writer per run directory, across processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runs.failure import UserError
from runs.lock import RunLock

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from runs.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(directory: Path) -> "subprocess.Popen[str]":
    """Another process that holds the lock by the time this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if process.stdout.readline() != "held\n":
        process.kill()
        process.communicate()
        raise AssertionError("it does not hold the lock")
    return process


def test_one_process_at_a_time_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with pytest.raises(UserError) as caught, RunLock(tmp_path):
            pass
        message = str(caught.value)
        assert f"another process (process {process.pid} on " in message
        assert f"is writing to {tmp_path}; wait for it or stop it, or choose another directory" in message
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "lock").read_text() != ""  # the killed one's name is still there
    with RunLock(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / "lock").read_text()


def test_a_second_lock_in_the_same_process(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} on"), RunLock(tmp_path):
        pass


def test_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with RunLock(tmp_path):
            pass
    assert (tmp_path / "lock").read_text() == ""


def test_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    with RunLock(tmp_path):
        pass


def test_two_directories(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with RunLock(tmp_path / "a"), RunLock(tmp_path / "b"):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}'])
def test_a_holder_without_a_name(text: str, tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / "lock").write_text(text)
        with pytest.raises(UserError, match="another process is writing to"), RunLock(tmp_path):
            pass


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory"), RunLock(tmp_path / "none"):
        pass
