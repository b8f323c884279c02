"""Accuracies and scores as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = {"acc": "ACC", "bwt": "BWT", "forgetting": "forgetting", "fwt": "FWT", "la": "LA"}


def points(value: float, digits: int = 1) -> str:
    """A fraction in percent, without the sign."""
    return f"{100 * value:.{digits}f}"


def named(classes: Sequence[int]) -> str:
    """The classes of a task, in short."""
    return ", ".join(map(str, classes)) if len(classes) <= 5 else f"{classes[0]} … {classes[-1]}"


def seed_names(seeds: Sequence[int]) -> str:
    """Which seeds, in words."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def score(summary: Mapping[str, Any]) -> str:
    """A score over seeds in percent: mean and the half-width of its 95 % interval."""
    if summary["mean"] is None:
        return "n/a"
    return points(summary["mean"]) + ("" if summary["ci95"] is None else f" ± {points(summary['ci95'])}")


def print_result(result: Mapping[str, Any], directory: str) -> None:
    """Print a finished run's scores to standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120  # nobody's window: wrapping would only break the lines
    seeds = result["seeds"]
    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.add_column("percent" + (", mean ± 95 % interval" if len(seeds) > 1 else ""))
    shown = [
        name for name in COLUMNS if any(result[kind][name]["mean"] is not None for kind in ("class_il", "task_il"))
    ]
    if any(result[kind]["intransigence"]["mean"] is not None for kind in ("class_il", "task_il")):
        shown.append("intransigence")
    for name in shown:
        table.add_column(COLUMNS.get(name, name), justify="right")
    for kind, title in (("class_il", "task not known"), ("task_il", "task known")):
        table.add_row(title, *(score(result[kind][name]) for name in shown))
    console.print(f"[bold]{result['strategy']}[/] on {result['benchmark']}, {seed_names(seeds)}")
    console.print(table)
    nnz, sizes = [row[-1] for row in result["nnz"]], [row[-1]["total"] for row in result["bytes"]]
    seconds = result["measured"]["seconds"]
    console.print(
        f"{sum(nnz) / len(nnz):,.0f} connections, {sum(sizes) / len(sizes):,.0f} bytes, "
        f"{sum(seconds) / len(seconds):.1f} s a seed: {directory}",
        soft_wrap=True,
    )
