"""What a person sees while a run trains: a bar at a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingBar:
    """Steps, steps per second, time left, last return and sparsity."""

    def __init__(self, total: int, start: int, sparsity: float, label: str) -> None:
        self.console = Console(file=sys.stderr, highlight=False)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("return {task.fields[score]}"),
            TextColumn(f"sparsity {sparsity:.1%}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task(label, total=total, completed=start, speed="", score="-")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, step: int, steps_per_second: float) -> None:
        """Show where training stands."""
        self._progress.update(self._task, completed=step, speed=f"{steps_per_second:,.0f} steps/s")

    def score(self, value: float) -> None:
        """Show the last return."""
        self._progress.update(self._task, score=f"{value:,.0f}")

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line)
