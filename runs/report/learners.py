"""The parts of a page on continual learners: accuracies, forgetting, matrices, and the floors to know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from runs.continual.pictures import courses, matrices
from runs.continual.tables import COLUMNS
from runs.report import page
from runs.report.curves import draw_endpoints
from runs.report.drawing import Palette, short
from runs.report.endpoints import Endpoint
from runs.report.loading import Evidence, Run
from runs.report.outputs import Files
from runs.report.statistics import Array, mean
from runs.report.tables import as_csv, costs_csv, endpoints_csv, runs_csv
from runs.studies.plan import folder_name

_KINDS = {"class_il": "task not known", "task_il": "task known"}
_FLOORS = {
    "ncm": "nearest class means, which learn nothing", "slda": "a discriminant analysis of the inputs",
    "naive": "fine-tuning without any protection", "joint": "all tasks at once: the ceiling",
}  # fmt: skip


def learner_sections(evidence: Evidence, endpoints: Sequence[Endpoint], files: Files) -> Iterator[str]:
    """All of them, benchmark by benchmark."""
    palette = Palette(evidence.study.arms)
    for group in evidence.groups:
        name = folder_name(group)
        yield page.heading(f"Accuracy and forgetting: {group}")
        yield _table(evidence, group)
        yield _floors(evidence, group)
        yield files.picture(f"endpoints-{name}", draw_endpoints(evidence, group, palette, endpoints), "endpoints")
        yield page.heading(f"Task by task: {group}")
        yield page.paragraph("R: accuracy on each task after each task, mean over seeds.", "quiet")
        for arm in evidence.arms:
            runs = evidence.of(group, arm.name)
            if runs:
                both = merged(runs)
                yield files.picture(f"R-{name}-{arm.name}", matrices(both), f"accuracy matrix of {arm.name}")
                yield files.picture(f"accuracy-{name}-{arm.name}", courses(both), f"accuracy over tasks, {arm.name}")
    files.contents["runs.csv"] = runs_csv(evidence, endpoints)
    files.contents["endpoints.csv"] = endpoints_csv(evidence, endpoints)
    files.contents["costs.csv"] = costs_csv(evidence)
    files.contents["continual.csv"] = _csv(evidence)
    files.contents["scores.csv"] = _scores_csv(evidence)


def merged(runs: Sequence[Run]) -> dict[str, Any]:
    """The results of several seeds as one, for the pictures."""
    first = runs[0].result
    together = {
        name: {
            kind: None if rows is None else [seed for run in runs for seed in run.result[name][kind]]
            for kind, rows in first[name].items()
        }
        for name in ("R", "final")
        if first[name] is not None
    }
    return {**first, **together, "strategy": runs[0].arm.name, "seeds": [run.seed for run in runs]}


def _values(runs: Sequence[Run], kind: str, name: str) -> Array:
    found = [run.result[kind][name].get("mean") for run in runs]
    return np.array([value for value in found if value is not None], np.float64)


def _table(evidence: Evidence, group: str) -> str:
    rows = []
    for arm in evidence.arms:
        runs = evidence.of(group, arm.name)
        if not runs:
            continue
        cells = [_percent(_values(runs, kind, name)) for kind in _KINDS for name in ("acc", "bwt", "forgetting")]
        nnz = np.mean([run.result["nnz"][0][-1] for run in runs])
        size = np.mean([run.result["bytes"][0][-1]["total"] for run in runs])
        rows.append([arm.name, str(len(runs)), *cells, f"{nnz:,.0f}", short(float(size))])
    scores = [f"{COLUMNS[name]}, {title}" for title in _KINDS.values() for name in ("acc", "bwt", "forgetting")]
    return page.table(["arm", "n", *scores, "connections", "bytes"], rows)


def _percent(values: Array) -> str:
    if not len(values):
        return "–"
    found = mean(100 * values)
    return f"{found.value:.1f}" + ("" if found.high is None else f" ± {found.high - found.value:.1f}")


def _floors(evidence: Evidence, group: str) -> str:
    """Which rows of this table are there to be beaten, and how to add those that are missing."""
    methods = {arm.method for arm in evidence.arms if evidence.of(group, arm.name)}
    there = [f"{name} ({what})" for name, what in _FLOORS.items() if name in methods]
    absent = [name for name in _FLOORS if name not in methods]
    text = "Percent, mean ± 95 % interval (Student's t)."
    if there:
        text += f" To know the floor and the ceiling: {', '.join(there)}."
    if absent:
        text += f" Not in this study: {', '.join(absent)}; add them with --strategies {','.join(absent)}."
    return page.paragraph(text, "quiet")


def _scores_csv(evidence: Evidence) -> bytes:
    """One line for each score of each arm: mean over its runs with Student's interval."""
    rows: list[list[Any]] = []
    for group in evidence.groups:
        for arm in evidence.arms:
            for kind in _KINDS:
                for name in COLUMNS:
                    values = _values(evidence.of(group, arm.name), kind, name)
                    if len(values):
                        found = mean(values)
                        rows.append([group, arm.name, kind, name, found.value, found.low, found.high, found.runs])
    return as_csv(["group", "arm", "kind", "score", "mean", "low", "high", "runs"], rows)


def _csv(evidence: Evidence) -> bytes:
    """One line for each cell of every run's accuracy matrix, and each of its scores."""
    rows: list[list[Any]] = []
    for run in evidence.runs:
        for kind in _KINDS:
            rows += [
                [run.group, run.arm.name, run.seed, kind, name, "", "", run.result[kind][name].get("mean")]
                for name in COLUMNS
            ]
            cells = (run.result["R"] or {}).get(kind)
            for after, row in enumerate(cells[0] if cells else [], 1):
                rows += [
                    [run.group, run.arm.name, run.seed, kind, "R", after, task, value]
                    for task, value in enumerate(row, 1)
                ]
    return as_csv(["group", "arm", "seed", "kind", "what", "after_task", "on_task", "value"], rows)
