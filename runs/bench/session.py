"""One bench under way: what is measured with, and what a person sees meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from runs.bench.timing import Contestant, Effort, Samples, measure


class Session:
    """Measures groups of contestants, with a bar and the time left at a terminal and plain lines elsewhere."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.console = Console(file=sys.stderr, highlight=False)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def expect(self, contestants: int) -> None:
        """Say how many contestants there will be in all groups, for the time left."""
        self._progress.update(self._task, total=contestants)

    def measure(self, label: str, contestants: Sequence[Contestant], effort: Effort) -> dict[str, Samples]:
        """Samples by name of contestants that are measured in turn."""
        self._progress.update(self._task, description=label)
        if not self.console.is_terminal:
            self.say(f"measuring {label}: {len(contestants)} in turn")
        return measure(contestants, effort, advance=lambda share: self._progress.advance(self._task, share))

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, soft_wrap=True, markup=False)
