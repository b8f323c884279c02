"""Doing the runs of a study: which is next, what became of it, and who is shown what."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import suppress
from pathlib import Path

from runs.failure import UserError
from runs.files import read_json
from runs.studies.jobs import drop_replay, job
from runs.studies.plan import Cell, Study
from runs.studies.states import attempts, error_of, failure_file, state_of, write_failure
from runs.studies.view import View
from runs.studies.workers import ClusterWorkers, LocalWorkers, Report

_LOOK = 0.5  # seconds between two looks at what runs
_DEATHS = 2  # of a run's process, until the run counts as failed


class Runner:
    """Begins, continues and lists the runs of a study; everything it knows is in the study's files."""

    def __init__(self, study: Study, directory: Path, workers: LocalWorkers | ClusterWorkers, view: View) -> None:
        self._directory, self._study, self._workers, self._view = directory, study, workers, view
        self._deaths: dict[Path, int] = {}
        self._attempts: dict[Path, int] = {}
        self._done: set[Path] = set()
        self._full: str | None = None
        self._running: dict[Future[Report], Cell] = {}
        self._waiting: list[Cell] = []

    def finish(self, cells: list[Cell], retry_failed: bool, stop: list[int]) -> None:
        """Do what is left to do; returns early if told to `stop`, with what runs saved.

        A full disk and a cluster that has gone are a `UserError`.
        """
        for cell in cells:
            self._take_up(cell, retry_failed)
        self._submit()
        while self._running and not (stop or self._full):
            done, _ = wait(self._running, timeout=_LOOK, return_when=FIRST_COMPLETED)
            for future in done:
                self._finished(self._running.pop(future), future)
            self._submit()
            self._view.show([cell for future, cell in self._running.items() if self._workers.is_begun(future)])
        if stop or self._full:
            self._halt()
        if self._full:
            raise UserError(f"{self._full}; free some space, then the same command continues the study")

    def _take_up(self, cell: Cell, retry_failed: bool) -> None:
        state = state_of(self._directory, cell)
        if state == "finished":
            self._done.add(cell.path)
            with suppress(UserError, OSError):  # of a run whose worker was killed before it could
                drop_replay(self._directory / cell.path)
        elif state == "failed" and not retry_failed:
            self._view.failed(cell, error_of(self._directory, cell))
        else:
            if state == "failed":
                self._attempts[cell.path] = attempts(self._directory, cell)
                failure_file(self._directory, cell).unlink()
            self._waiting.append(cell)

    def _submit(self) -> None:
        """Hand over the runs that can begin: all but those whose topology is still to come from another."""
        for cell in list(self._waiting):
            source = self._source(cell)
            if source is not None and self._is_coming(source):
                continue
            self._waiting.remove(cell)
            if source is not None and source.path not in self._done:
                self._fail(cell, f"it takes the last topology of {source.name}, which is not there")
                continue
            future = self._workers.executor.submit(self._workers.task, job(self._study, cell, self._directory))
            self._running[future] = cell

    def _source(self, cell: Cell) -> Cell | None:
        return next((Cell(cell.group, arm, cell.seed) for arm in self._study.arms if arm.name == cell.arm.of), None)

    def _is_coming(self, source: Cell) -> bool:
        return source.path in {cell.path for cell in [*self._waiting, *self._running.values()]}

    def _finished(self, cell: Cell, future: Future[Report]) -> None:
        try:
            error = future.exception()
        except CancelledError as gone:  # by nobody here
            raise UserError(
                "the Dask scheduler has gone, and what ran with it; start it again, then the same command continues"
            ) from gone
        report = {"outcome": "died", "error": str(error)} if error is not None else future.result()
        if report["outcome"] == "finished":
            self._done.add(cell.path)
            self._view.finished(cell)
        elif report["outcome"] == "stopped":  # it has saved itself, whoever told it to
            self._waiting.insert(0, cell)
        elif report["outcome"] == "failed":
            self._fail(cell, report["error"])
        elif report["outcome"] == "full":
            self._full = report["error"]
        elif report["outcome"] == "died":
            self._died(cell, report["error"])

    def _died(self, cell: Cell, error: str) -> None:
        """A run whose process was killed goes on from its checkpoint; but not for ever."""
        self._deaths[cell.path] = self._deaths.get(cell.path, 0) + 1
        if self._deaths[cell.path] < _DEATHS:
            self._view.say(f"{cell.name}: {error}; it goes on from its last checkpoint")
            self._waiting.insert(0, cell)
        else:
            self._fail(cell, f"{error}, {_DEATHS} times")

    def _fail(self, cell: Cell, error: str) -> None:
        write_failure(self._directory, cell, error, self._attempts.get(cell.path, 0) + 1)
        self._view.failed(cell, error)

    def _halt(self) -> None:
        """Have what runs saved and stopped."""
        self._view.say("saving what runs")
        self._workers.stop()
        for future in self._running:
            future.cancel()
        for future, cell in self._running.items():
            if not future.cancelled():
                self._finished(cell, future)


def outcome_counts(directory: Path, cells: list[Cell]) -> dict[str, int]:
    """How many runs are in which state."""
    states = [state_of(directory, cell) for cell in cells]
    return {name: states.count(name) for name in ("finished", "failed", "half-done", "new")}


def failures(directory: Path, cells: list[Cell]) -> list[tuple[Cell, str, int]]:
    """The runs that have failed, or whose result cannot be read, why, and how often."""
    found = []
    for cell in cells:
        state = state_of(directory, cell)
        if state == "failed":
            found.append((cell, error_of(directory, cell), attempts(directory, cell)))
        elif state == "finished" and (damage := _damage(directory / cell.path)) is not None:
            found.append((cell, damage, 1))
    return found


def _damage(run: Path) -> str | None:
    """What is wrong with the result of a finished run, if it is no JSON object at all."""
    try:
        read_json(run / "result.json", "result")
    except UserError:
        return f"its result.json is damaged: put back a copy, or remove {run} to have it done again"
    return None
