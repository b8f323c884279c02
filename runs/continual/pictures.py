"""A continual run as pictures: the matrix R, and accuracy over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from runs.continual.tables import named, points
from runs.files import writing

SCENARIOS = {"class-il": "class-incremental", "domain-il": "domain-incremental"}
_MOST_NUMBERS = 20  # tasks up to which a cell has room for its number
_MOST_NAMES = 12  # tasks up to which each is named with its classes


def draw_matrices(directory: Path, result: Mapping[str, Any]) -> Path:
    """Draw R into DIRECTORY/R.png."""
    return _save(matrices(result), directory / "R.png")


def matrices(result: Mapping[str, Any]) -> Figure:
    """R, mean over seeds: with the task not known, and known."""
    by_kind = _matrices(result)
    classes = result["task_classes"]
    tasks, joint = len(classes), result["joint"]
    size = min(max(0.62 * tasks, 3.2), 8)
    figure = _figure((len(by_kind) * (size + 0.9) + 1.1, (1.2 if joint else size) + 1.6))
    panels = np.atleast_1d(figure.subplots(1, len(by_kind), squeeze=True))
    image = None
    for axes, (kind, by_seed) in zip(panels, by_kind.items(), strict=True):
        mean = by_seed.mean(axis=0)
        image = axes.imshow(100 * mean, cmap="viridis", vmin=0, vmax=100, aspect="auto" if joint else "equal")
        axes.set_title(_title(kind, result), fontsize=11)
        labels = [
            f"{number}\n{_short(each)}" if tasks <= _MOST_NAMES else str(number)
            for number, each in enumerate(classes, 1)
        ]
        axes.set_xticks(range(tasks), labels, fontsize=8)
        axes.set_yticks(range(len(mean)), ["all"] if joint else [str(number) for number in range(1, tasks + 1)])
        axes.set(xlabel="accuracy on task (its classes below)" if tasks <= _MOST_NAMES else "accuracy on task")
        if tasks > _MOST_NUMBERS:
            axes.locator_params(nbins=10)
        else:
            _write_cells(axes, mean)
    panels[0].set_ylabel("after learning task")
    assert image is not None
    figure.colorbar(image, ax=list(panels), label="accuracy, %", shrink=0.8)
    figure.suptitle(_headline(result))
    return figure


def _write_cells(axes: Axes, mean: NDArray[np.float64]) -> None:
    for row, values in enumerate(mean):
        for column, value in enumerate(values):
            shade = "black" if value > 0.6 else "white"
            axes.text(column, row, points(value, 0), ha="center", va="center", color=shade, fontsize=9)


def draw_accuracy(directory: Path, result: Mapping[str, Any]) -> Path | None:
    """Draw accuracy over tasks into DIRECTORY/accuracy.png, where there is a course to draw."""
    figure = courses(result)
    return None if figure is None else _save(figure, directory / "accuracy.png")


def courses(result: Mapping[str, Any]) -> Figure | None:
    """Accuracy over tasks, of the tasks seen so far and of each task; None where there is one moment only."""
    if result["joint"] or len(result["task_classes"]) < 2:
        return None
    by_kind, named_tasks = _matrices(result), len(result["task_classes"]) <= _MOST_NAMES
    figure = _figure((5.2 * len(by_kind) + 1.6, 6.6))
    panels = figure.subplots(2, len(by_kind), squeeze=False, sharex=True, sharey=True)
    for column, (kind, by_seed) in enumerate(by_kind.items()):
        _draw_seen(panels[0, column], by_seed)
        _draw_each(panels[1, column], by_seed, result["task_classes"])
        panels[0, column].set_title(_title(kind, result), fontsize=11)
        panels[1, column].set_xlabel("after learning task")
    for axes in panels.flat:
        axes.set_ylim(-3, 103)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    panels[0, 0].set_ylabel("mean accuracy of the tasks so far, %")
    panels[1, 0].set_ylabel("accuracy of each task, %" + ("" if named_tasks else " (dark: early ones)"))
    panels[0, 0].legend(frameon=False, fontsize=8, loc="lower left")
    if named_tasks:
        figure.legend(*panels[1, -1].get_legend_handles_labels(), loc="outside right lower", frameon=False, fontsize=8)
    figure.suptitle(_headline(result))
    return figure


def _draw_seen(axes: Axes, by_seed: NDArray[np.float64]) -> None:
    """Mean over the tasks seen so far; each seed thin, their mean thick."""
    tasks = by_seed.shape[1]
    after = np.arange(1, tasks + 1)
    courses = np.array([[row[:seen].mean() for seen, row in enumerate(matrix, 1)] for matrix in by_seed]) * 100
    for number, course in enumerate(courses):
        if len(courses) > 1:
            axes.plot(after, course, color="C0", linewidth=0.8, alpha=0.45, label="one seed" if not number else None)
    label = f"mean of {len(courses)} seeds" if len(courses) > 1 else "one seed"
    axes.plot(after, courses.mean(axis=0), color="C0", linewidth=2.2, marker="o", markersize=4, label=label)
    axes.set_xticks(after if tasks <= _MOST_NUMBERS else after[9::10])


def _draw_each(axes: Axes, by_seed: NDArray[np.float64], classes: Sequence[Sequence[int]]) -> None:
    """Each task from when it was learned on, mean over seeds."""
    import matplotlib

    mean = 100 * by_seed.mean(axis=0)
    tasks = len(mean)
    marker = "o" if tasks <= _MOST_NUMBERS else ""
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, tasks))
    for task in range(tasks):
        label = f"task {task + 1}: {_short(classes[task])}"
        after = np.arange(task + 1, tasks + 1)
        axes.plot(after, mean[task:, task], color=colours[task], marker=marker, markersize=3.5, label=label)


def _matrices(result: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """By kind: (seeds, rows, tasks) as fractions; those that the learner has."""
    rows = {kind: [[row] for row in final] for kind, final in result["final"].items() if final is not None}
    whole = rows if result["joint"] else {kind: each for kind, each in result["R"].items() if each is not None}
    return {kind: np.array(each, np.float64) for kind, each in whole.items()}


def _title(kind: str, result: Mapping[str, Any]) -> str:
    if kind == "task_il":
        return "task known (task-incremental)"
    return f"task not known ({SCENARIOS[result['benchmark_scenario']]})"


def _short(classes: Sequence[int]) -> str:
    return named(classes) if len(classes) <= 3 else f"{classes[0]}…{classes[-1]}"


def _headline(result: Mapping[str, Any]) -> str:
    seeds = len(result["seeds"])
    return f"{result['strategy']} on {result['benchmark']}, " + (
        f"mean of {seeds} seeds" if seeds > 1 else f"seed {result['seeds'][0]}"
    )


def _figure(size: tuple[float, float]) -> Figure:
    """A figure of its own, without a window and without `pyplot`, which would choose for the whole program."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    with writing(path):
        figure.savefig(path, dpi=150)
    return path
