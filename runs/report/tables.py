"""Every number of a report as CSV, and the tables of its page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from runs.report.contrasts import Contrast, p_text
from runs.report.curves import COSTS, curve_of
from runs.report.drawing import short
from runs.report.endpoints import Endpoint
from runs.report.loading import Evidence
from runs.report.statistics import Interval, bootstrap, mean, mean_curve


def as_csv(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as a CSV file; what is missing is an empty cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return file.getvalue().encode()


def runs_csv(evidence: Evidence, endpoints: Sequence[Endpoint]) -> bytes:
    """One line a run: its endpoints and what it cost."""
    costs = list(COSTS) if evidence.study.kind == "agents" else ["connections", "bytes", "seconds"]
    rows = [
        [
            run.group,
            run.arm.name,
            run.seed,
            *(endpoint.of(run.result) for endpoint in endpoints),
            *_costs(run.result, costs),
        ]
        for run in evidence.runs
    ]
    return as_csv(["group", "arm", "seed", *(endpoint.name for endpoint in endpoints), *costs], rows)


def _costs(result: dict[str, Any], names: Sequence[str]) -> list[float]:
    if "nnz_total" in result:
        return [COSTS[name][1](result) for name in names]
    last = {"connections": result["nnz"][0][-1], "bytes": result["bytes"][0][-1]["total"]}
    return [*last.values(), result["measured"]["seconds"][0]]


def curves_csv(evidence: Evidence, resamples: int) -> bytes:
    """One line for each evaluation of each arm: mean over its runs, and its interval."""
    rows: list[list[Any]] = []
    generator = np.random.default_rng(0)
    for group in evidence.groups:
        for arm in evidence.arms:
            runs = evidence.of(group, arm.name)
            if not runs:
                continue
            steps, returns = curve_of(runs)
            middle, band = mean_curve(returns), bootstrap(returns, mean_curve, generator, resamples)
            low, high = band if band is not None else ([None] * len(steps), [None] * len(steps))
            rows += [
                [group, arm.name, int(step), *values, len(runs)]
                for step, *values in zip(steps, middle, low, high, strict=True)
            ]
    return as_csv(["group", "arm", "step", "mean", "low", "high", "runs"], rows)


def endpoint_rows(evidence: Evidence, group: str, endpoints: Sequence[Endpoint]) -> list[tuple[str, str, Interval]]:
    """(arm, endpoint, interval) for every arm of a group that has it."""
    return [
        (arm.name, endpoint.name, mean(values))
        for arm in evidence.arms
        for endpoint in endpoints
        if len(values := endpoint.values(evidence.of(group, arm.name)))
    ]


def endpoints_csv(evidence: Evidence, endpoints: Sequence[Endpoint]) -> bytes:
    """One line for each arm and endpoint."""
    rows = [
        [group, arm, name, found.value, found.low, found.high, found.runs, found.kind]
        for group in evidence.groups
        for arm, name, found in endpoint_rows(evidence, group, endpoints)
    ]
    return as_csv(["group", "arm", "endpoint", "mean", "low", "high", "runs", "interval"], rows)


def contrasts_csv(found: Sequence[Contrast], endpoint: Endpoint) -> bytes:
    """One line for each contrast."""
    headings = [
        "group", "first", "second", "endpoint", "difference", "low", "high", "relative", "p_welch", "p_holm",
        "p_permutation", "probability_of_improvement", "pi_low", "pi_high", "runs_first", "runs_second", "verdict",
        "why",
    ]  # fmt: skip
    rows = [
        [
            each.group, each.pair.first.name, each.pair.second.name, endpoint.name, each.difference.value,
            each.difference.low, each.difference.high, each.relative[0], each.difference.p, each.p_holm,
            each.p_permutation, each.improvement.value, each.improvement.low, each.improvement.high,
            *each.difference.runs, each.word, each.why,
        ]
        for each in found
    ]  # fmt: skip
    return as_csv(headings, rows)


def contrast_rows(found: Sequence[Contrast], endpoint: Endpoint) -> list[list[str]]:
    """For the page."""
    return [
        [
            f"{each.pair.first.name} − {each.pair.second.name}", each.group,
            endpoint.text(each.difference.value, signed=True),
            _range(endpoint, each.difference.low, each.difference.high), p_text(each.difference.p),
            p_text(each.p_holm), p_text(each.p_permutation), _share(each.improvement),
            f"{each.difference.runs[0]}, {each.difference.runs[1]}", each.word,
        ]
        for each in found
    ]  # fmt: skip


CONTRAST_HEADINGS = [
    "contrast", "group", "difference", "95 % interval (Welch)", "p (Welch)", "p (Holm)", "p (permutation)",
    "P(improvement)", "n", "verdict",
]  # fmt: skip


def _range(endpoint: Endpoint, low: float | None, high: float | None) -> str:
    return "–" if low is None else f"{endpoint.text(low, signed=True)} … {endpoint.text(high, signed=True)}"


def _share(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} ({found.low:.2f} … {found.high:.2f})"


def interval_text(endpoint: Endpoint, found: Interval) -> str:
    """A mean with its interval and number of runs."""
    if found.low is None:
        return f"{endpoint.text(found.value)} (n = {found.runs})"
    return f"{endpoint.text(found.value)} ({endpoint.text(found.low)} … {endpoint.text(found.high)}; n = {found.runs})"


def cost_rows(evidence: Evidence, group: str) -> list[list[str]]:
    """What each arm cost, and as a share of the first arm, which is the dense one where there is one."""
    rows, first = [], list[float]()
    for arm in evidence.arms:
        runs = evidence.of(group, arm.name)
        if not runs:
            continue
        means = [
            float(np.mean(column)) for column in zip(*(_costs(run.result, list(COSTS)) for run in runs), strict=True)
        ]
        first = first or means
        shares = [
            short(value) + (f" ({value / base:.2f}×)" if base else "") for value, base in zip(means, first, strict=True)
        ]
        rows.append([arm.name, *shares])
    return rows
