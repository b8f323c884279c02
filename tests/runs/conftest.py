"""Lets these tests share `small_ring`.

The tests are no package, and a library that brings a package `tests` of its own would hide it.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import shutil

import pytest


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run; only to be read."""
    from tiny_runs import train

    return train(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to be harmed, as it was before its result was written."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "result.json").unlink()
    return copy


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports whose pictures are built, but not drawn: that takes longer than all the rest of them."""
    monkeypatch.setattr("runs.report.outputs.png", lambda made: b"")
