"""What becomes of the runs of a study whose workers say whatever the test wants."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, cast

import pytest

from runs.failure import UserError
from runs.studies.plan import Arm, Cell, Study
from runs.studies.running import Runner
from runs.studies.states import attempts, error_of, failure_file
from runs.studies.view import View
from runs.studies.workers import LocalWorkers

ENV = "HalfCheetah-v5"


def study(*names: str, of: str | None = None) -> Study:
    arms = [Arm(name, "static", {ENV: {"steps": 100, "hidden": [8]}}) for name in names]
    if of is not None:
        arms.append(Arm("last", "final-topology", {ENV: {"steps": 100, "hidden": [8]}}, of=of))
    return Study("agents", [ENV], arms, [0], [["sparse-agents", "compare"]])


class AtOnce(Executor):
    """Does what is submitted before it returns; or never, where it is `stuck`."""

    def __init__(self, stuck: bool = False) -> None:
        self.stuck = stuck

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if not self.stuck:
            future.set_result(fn(*args, **kwargs))
        return future


class Workers:
    """Reports these outcomes, one after the other, and keeps what it was asked."""

    def __init__(self, *outcomes: str, stuck: bool = False) -> None:
        self.left, self.asked, self.stopped = [*outcomes], [], False
        self.executor = AtOnce(stuck)

    def task(self, job: dict[str, Any]) -> dict[str, str]:
        self.asked.append(job)
        return {"outcome": self.left.pop(0), "error": "why"}

    def is_begun(self, future: Future[Any]) -> bool:
        return True

    def stop(self) -> None:
        self.stopped = True


class Lines:
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.say = self.lines.append

    def finished(self, cell: Cell) -> None:
        self.lines.append(f"finished {cell.arm.name}")

    def failed(self, cell: Cell, error: str) -> None:
        self.lines.append(f"failed {cell.arm.name}: {error}")

    def show(self, running: list[Cell]) -> None:
        pass


def finish(
    directory: Path, whole: Study, workers: Workers, retry: bool = False, stop: tuple[int, ...] = ()
) -> list[str]:
    """What a person is told of a study that is done as far as its workers let it."""
    view, made = Lines(), cast(LocalWorkers, workers)
    Runner(whole, directory, made, cast(View, view)).finish([*whole.cells()], retry, [*stop])
    return view.lines


@pytest.mark.parametrize(
    ("outcomes", "failed"),
    [
        (["finished"], None),
        (["died", "finished"], None),
        (["stopped", "stopped", "finished"], None),
        (["died", "died"], "why, 2 times"),
        (["failed"], "why"),
    ],
)
def test_what_becomes_of_a_run(outcomes: list[str], failed: str | None, tmp_path: Path) -> None:
    whole, workers = study("static-0.9"), Workers(*outcomes)
    (cell,) = whole.cells()
    lines = finish(tmp_path, whole, workers)
    assert len(workers.asked) == len(outcomes)  # begun again as often as it says, and no more
    assert failure_file(tmp_path, cell).exists() == (failed is not None)
    assert lines[-1] == ("finished static-0.9" if failed is None else f"failed static-0.9: {failed}")
    if failed is not None:
        assert (error_of(tmp_path, cell), attempts(tmp_path, cell)) == (failed, 1)


def test_a_failed_run_is_only_listed_until_it_is_to_be_tried_again(tmp_path: Path) -> None:
    whole = study("static-0.9")
    (cell,) = whole.cells()
    finish(tmp_path, whole, Workers("failed"))
    idle = Workers()
    assert finish(tmp_path, whole, idle) == ["failed static-0.9: why"]
    assert (idle.asked, attempts(tmp_path, cell)) == ([], 1)
    finish(tmp_path, whole, Workers("failed"), retry=True)
    assert attempts(tmp_path, cell) == 2
    finish(tmp_path, whole, Workers("finished"), retry=True)
    assert not failure_file(tmp_path, cell).exists()


def test_one_failure_does_not_keep_the_others(tmp_path: Path) -> None:
    workers = Workers("failed", "finished", "finished")
    lines = finish(tmp_path, study("first", "second", "third"), workers)
    assert sorted(line.split()[0] for line in lines) == ["failed", "finished", "finished"]
    assert len(workers.asked) == 3


def test_a_topology_is_waited_for(tmp_path: Path) -> None:
    workers = Workers("stopped", "finished", "finished")
    assert finish(tmp_path / "one", study("set-0.9", of="set-0.9"), workers) == [
        "finished set-0.9", "finished last",
    ]  # fmt: skip
    workers = Workers("failed")
    assert finish(tmp_path / "two", study("set-0.9", of="set-0.9"), workers) == [
        "failed set-0.9: why",
        f"failed last: it takes the last topology of {ENV} set-0.9 seed 0, which is not there",
    ]


def test_what_runs_is_saved_when_the_study_is_to_stop(tmp_path: Path) -> None:
    workers = Workers(stuck=True)
    assert finish(tmp_path, study("first", "second"), workers, stop=(2,)) == ["saving what runs"]
    assert workers.stopped
    assert workers.asked == []
    assert not [*tmp_path.rglob("*.failed.json")]


def test_a_full_disk_stops_the_study(tmp_path: Path) -> None:
    workers = Workers("full", "finished")
    with pytest.raises(UserError, match="why; free some space, then the same command continues the study"):
        finish(tmp_path, study("first", "second"), workers)
    assert workers.stopped
    assert not [*tmp_path.rglob("*.failed.json")]  # it is not the run's fault
