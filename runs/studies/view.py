"""What a person sees while a study runs: a live table at a terminal, a line a run elsewhere."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from runs.studies.plan import Cell
from runs.studies.states import Progress, progress_of, state_of

_SPAN = 20.0  # seconds over which a run's speed is measured


class View:
    """The runs that are under way, with steps/s, time left and last return, and how far the study is."""

    def __init__(self, directory: Path, cells: list[Cell]) -> None:
        self.console = Console(file=sys.stderr, highlight=False)
        self._directory, self._cells = directory, cells
        self._seen: dict[Path, list[tuple[float, int]]] = {}
        self._began = time.monotonic()
        self._at_first = self._steps()
        self._live = Live(console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line, above the table."""
        self.console.print(line, markup=False, soft_wrap=True)

    def finished(self, cell: Cell) -> None:
        """A run has its result."""
        score = progress_of(self._directory, cell).score
        done = sum(state_of(self._directory, other) == "finished" for other in self._cells)
        self.say(f"finished ({done} of {len(self._cells)}): {cell.name}{_last(score, cell)}")

    def failed(self, cell: Cell, error: str) -> None:
        """A run has failed."""
        self.say(f"failed: {cell.name}: {error}")

    def show(self, running: list[Cell]) -> None:
        """Bring the table up to date."""
        if self.console.is_terminal:
            self._live.update(self._shown(running))

    def _shown(self, running: list[Cell]) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("run", "state", "done", "per s", "left", "last"):
            table.add_column(heading, justify="left" if heading in ("run", "state") else "right")
        for cell in running:
            progress = progress_of(self._directory, cell)
            if state_of(self._directory, cell) == "new":
                continue  # its worker still gets ready, or is busy with another
            speed = self._speed(cell, progress)
            left = "" if not speed else _time((progress.total - progress.done) / speed)
            share = f"{progress.done:,} / {progress.total:,}"
            shown = "" if progress.score is None else _score(progress.score, cell)
            table.add_row(cell.name, "running", share, _rate(speed), left, shown)
        return Group(table, self._summary())

    def _speed(self, cell: Cell, progress: Progress) -> float | None:
        """Steps per second lately."""
        now, seen = time.monotonic(), self._seen.setdefault(cell.path, [])
        if not seen or seen[-1][1] != progress.done:
            seen.append((now, progress.done))
        while len(seen) > 2 and now - seen[1][0] > _SPAN:
            seen.pop(0)
        (then, first), (_, last) = seen[0], seen[-1]
        return (last - first) / (now - then) if last > first and now > then else None

    def _steps(self) -> tuple[float, int]:
        """Steps done in all runs, as far as their files say, and steps in all; of learners, tasks."""
        done = total = 0
        for cell in self._cells:
            finished, length = state_of(self._directory, cell) == "finished", cell.settings.get("steps")
            progress = Progress(length, length, None) if finished and length else progress_of(self._directory, cell)
            total += progress.total
            done += progress.total if finished else progress.done
        return done, total

    def _summary(self) -> Table:
        states = [state_of(self._directory, cell) for cell in self._cells]
        done, total = self._steps()
        elapsed, made = time.monotonic() - self._began, done - self._at_first[0]
        left = f", {_time((total - done) * elapsed / made)} left" if made > 0 and elapsed > _SPAN else ""
        counts = ", ".join(
            f"{states.count(state)} {state}" for state in ("finished", "failed", "half-done") if states.count(state)
        )
        line = Table.grid(padding=(0, 2, 0, 0))
        text = Text(f"{counts or 'none finished'} of {len(states)} runs{left}  (Ctrl-C saves and stops)")
        line.add_row(ProgressBar(total=max(total, 1), completed=done, width=24), text)
        return line


def _rate(speed: float | None) -> str:
    return "" if not speed else f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def _score(score: float, cell: Cell) -> str:
    return f"{score:,.0f}" if "steps" in cell.settings else f"{100 * score:.1f} %"


def _last(score: float | None, cell: Cell) -> str:
    if score is None:
        return ""
    return f", {'return' if 'steps' in cell.settings else 'accuracy with the task known'} {_score(score, cell)}"


def _time(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
