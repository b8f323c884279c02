"""What a person sees while continual learning runs: a bar and the matrix R at a terminal, a line a task elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text

from runs.continual.records import Record, Rows
from runs.continual.tables import named, points

# Viridis at even steps: as far apart in brightness as they are in value.
_SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


class View:
    """Epochs of all seeds with the time left, the current task, and R as it fills."""

    def __init__(
        self, label: str, task_classes: Sequence[tuple[int, ...]], seeds: int, *,
        joint: bool = False, stop: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._stop = stop
        self.console = Console(file=sys.stderr, highlight=False)
        self._tasks, self._seeds, self._seeds_done, self._joint = task_classes, seeds, 0, joint
        self._record: Record | None = None
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeRemainingColumn(compact=True),
            console=self.console,
        )
        self._bar = self._progress.add_task(label, total=None)
        self._epochs, self._where = 1, ""
        self._live = Live(get_renderable=self._shown, console=self.console, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def begin(self, record: Record, epochs: int) -> None:
        """A seed begins or goes on; it takes so many epochs in all."""
        self._record, self._epochs = record, epochs
        self._progress.update(self._bar, total=self._seeds * epochs)

    def at(self, epochs: int) -> None:
        """So many epochs of this seed are done."""
        assert self._record is not None
        number = min(self._record.tasks_done, len(self._tasks) - 1)
        which = f"task {number + 1} of {len(self._tasks)}: classes {named(self._tasks[number])}"
        self._where = f"seed {self._record.seed}, {'all tasks' if self._joint else which}"
        self._progress.update(self._bar, completed=self._seeds_done * self._epochs + epochs)

    def row(self, record: Record) -> None:
        """A task is finished and examined."""
        self._record = record
        if not self.console.is_terminal:
            tasks = len(self._tasks)
            which = f"all {tasks} tasks" if self._joint else f"task {record.tasks_done} of {tasks}"
            self.say(f"seed {record.seed}, {which}: {self._summary(record)}, {record.seconds:.1f} s")

    def seed_done(self, record: Record) -> None:
        """A seed is finished, now or before."""
        self._seeds_done += 1
        if self.console.is_terminal:
            self.say(f"seed {record.seed}: {self._summary(record)}, {record.seconds:.1f} s")

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, soft_wrap=True)

    def _summary(self, record: Record) -> str:
        """Mean accuracy over the tasks seen so far."""
        seen = len(self._tasks) if self._joint else record.tasks_done
        both = [("task not known", record.class_il), ("task known", record.task_il)]
        return ", ".join(f"{name} {points(sum(rows[-1][:seen]) / seen)} %" for name, rows in both if rows)

    def _shown(self) -> RenderableType:
        stopping = ", stopping after this epoch (Ctrl-C again: at once, without saving)" if self._stop else ""
        below = Group(Text(self._where + stopping), self._progress)
        record = self._record
        return Group(self._matrices(record), below) if record is not None and record.task_il else below

    def _matrices(self, record: Record) -> RenderableType:
        """Both matrices side by side where there is room, else the harder one."""
        tasks, room = len(self._tasks), self.console.width - 16
        both = [("task not known", record.class_il), ("task known", record.task_il)]
        present = [(title, rows) for title, rows in both if rows]
        cell = next((width for width in (5, 4, 2) if tasks * width * len(present) <= room), 2)
        if tasks * cell * len(present) > room:
            present = present[:1]
        grid = Table(box=None, padding=(0, 2), show_header=True)
        for title, _ in present:
            grid.add_column(f"accuracy by task, {title}" if tasks * cell > 40 else title)
        latest = max(1, self.console.height - 6)
        grid.add_row(*(_matrix(rows, tasks, cell, latest) for _, rows in present))
        return grid


def _matrix(rows: Rows, tasks: int, cell: int, latest: int) -> Text:
    text = Text()
    for number, row in list(enumerate(rows, 1))[-latest:]:
        text.append(f"after {number:>2} ", style="dim")
        for value in row:
            shown = f"{points(value, 0):>{cell - 1}} " if cell > 2 else "  "
            text.append(shown, style=_colour(value))
        text.append("\n")
    for number in range(len(rows) + 1, min(tasks, latest) + 1):
        text.append(f"after {number:>2} {'·'.rjust(cell - 1) + ' ':{cell}}\n", style="dim")
    text.rstrip()
    return text


def _colour(value: float) -> Style:
    """The colour of an accuracy in [0, 1], with text that can be read on it."""
    place = min(max(value, 0.0), 1.0) * (len(_SCALE) - 1)
    low = min(int(place), len(_SCALE) - 2)
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(_SCALE[low], _SCALE[low + 1], strict=True)]
    return Style(color="black" if value > 0.5 else "white", bgcolor=f"rgb({mixed[0]},{mixed[1]},{mixed[2]})")
