"""Every number of a report as CSV, and the tables of its page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from runs.report.contrasts import Contrast, p_text
from runs.report.curves import COSTS, cost_names, curve_band, curve_of
from runs.report.drawing import short
from runs.report.endpoints import Endpoint, overall
from runs.report.loading import Evidence, Run
from runs.report.statistics import Interval, mean, mean_curve

_SAME = (0.995, 1.005)  # shares that people read as equal


def as_csv(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as a CSV file; what is missing is an empty cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)
    return file.getvalue().encode()


def runs_csv(evidence: Evidence, endpoints: Sequence[Endpoint]) -> bytes:
    """One line a run: its endpoints and what it cost."""
    costs = cost_names(evidence)
    rows = [
        [
            run.group,
            run.arm.name,
            run.seed,
            *(endpoint.of_run(run) for endpoint in endpoints),
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
    for group in evidence.groups:
        for arm in evidence.arms:
            runs = evidence.of(group, arm.name)
            if not runs:
                continue
            steps, returns = curve_of(runs)
            middle, band = mean_curve(returns), curve_band(group, arm, returns, resamples)
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


def mean_costs(runs: Sequence[Run], names: Sequence[str]) -> list[float]:
    """Of an arm."""
    return [float(np.mean(column)) for column in zip(*(_costs(run.result, names) for run in runs), strict=True)]


def relative_costs(evidence: Evidence, contrast: Contrast) -> list[float | None]:
    """What the first arm of a contrast cost as shares of the second's; over several groups their geometric mean.

    None where one of them cost nothing: class means have no connections.
    """
    names, shares = cost_names(evidence), []
    for group in [each for each in evidence.groups if contrast.group in (each, overall(evidence))]:
        first, second = (evidence.of(group, arm.name) for arm in (contrast.pair.first, contrast.pair.second))
        if first and second:
            shares.append([*zip(mean_costs(first, names), mean_costs(second, names), strict=True)])
    return [
        float(np.exp(np.mean([np.log(one / other) for one, other in pairs]))) if np.min(pairs) > 0 else None
        for pairs in zip(*shares, strict=True)
    ]


def cost_sentence(evidence: Evidence, contrast: Contrast) -> str:
    """What the first arm cost, in words."""
    labels = {
        "bytes": "bytes in training", "flops": "training FLOPs", "processor_seconds": "seconds of processors",
    }  # fmt: skip
    same, other = [], []
    for name, share in zip(cost_names(evidence), relative_costs(evidence, contrast), strict=True):
        label = labels.get(name, name)
        if share is not None and _SAME[0] < share < _SAME[1]:
            same.append(label)
        elif share is not None:
            other.append(f"{share:{'.2f' if share >= 0.095 else '.2g'}} × the {label}")
    if not other:
        return f"It cost as many {_listed(same)}." if same else ""
    return f"It cost {_listed(other)}" + (f", and as many {_listed(same)}." if same else ".")


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def contrasts_csv(evidence: Evidence, found: Sequence[Contrast], endpoint: Endpoint) -> bytes:
    """One line for each contrast."""
    headings = [
        "group", "first", "second", "endpoint", "difference", "low", "high", "relative", "p_welch", "p_holm",
        "p_permutation", "probability_of_improvement", "pi_low", "pi_high", "runs_first", "runs_second", "verdict",
        "why", *(f"{name}_of_second" for name in cost_names(evidence)),
    ]  # fmt: skip
    rows = [
        [
            each.group, each.pair.first.name, each.pair.second.name, endpoint.name, each.difference.value,
            each.difference.low, each.difference.high, each.relative[0], each.difference.p, each.p_holm,
            each.p_permutation, each.improvement.value, each.improvement.low, each.improvement.high,
            *each.difference.runs, each.word, each.why, *relative_costs(evidence, each),
        ]
        for each in found
    ]  # fmt: skip
    return as_csv(headings, rows)


def contrast_rows(found: Sequence[Contrast], endpoint: Endpoint, groups: Sequence[str]) -> list[list[str]]:
    """For the page; what is not of one of these groups is a mean over them, of numbers near 1."""
    return [
        [
            f"{each.pair.first.name} − {each.pair.second.name}", *_group(each, groups), each.word,
            _scale(endpoint, each, groups).difference_text(each.difference.value),
            _range(_scale(endpoint, each, groups), each.difference.low, each.difference.high),
            p_text(each.difference.p), p_text(each.p_holm), p_text(each.p_permutation), _share(each.improvement),
            f"{each.difference.runs[0]}, {each.difference.runs[1]}",
        ]
        for each in found
    ]  # fmt: skip


def _scale(endpoint: Endpoint, contrast: Contrast, groups: Sequence[str]) -> Endpoint:
    return endpoint if contrast.group in groups else replace(endpoint, digits=3)


def _group(contrast: Contrast, groups: Sequence[str]) -> list[str]:
    return [contrast.group] if len(groups) > 1 else []


def contrast_headings(groups: Sequence[str]) -> list[str]:
    """Of the rows above."""
    return [
        "contrast", *(["group"] if len(groups) > 1 else []), "verdict", "difference", "95 % interval (Welch)",
        "p (Welch)", "p (Holm)", "p (permutation)", "P(improvement)", "n",
    ]  # fmt: skip


def _range(endpoint: Endpoint, low: float | None, high: float | None) -> str:
    if low is None:
        return "–"
    return f"{endpoint.difference_text(low).removesuffix(' points')} … {endpoint.difference_text(high)}"


def _share(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} ({found.low:.2f} … {found.high:.2f})"


def interval_text(endpoint: Endpoint, found: Interval) -> str:
    """A mean with its interval and number of runs."""
    if found.low is None:
        return f"{endpoint.text(found.value)} (n = {found.runs})"
    return f"{endpoint.text(found.value)} ({endpoint.text(found.low)} … {endpoint.text(found.high)}; n = {found.runs})"


def costs_csv(evidence: Evidence) -> bytes:
    """One line for each arm: mean over its runs of what each cost."""
    names = cost_names(evidence)
    rows = [
        [group, arm.name, len(runs), *mean_costs(runs, names)]
        for group in evidence.groups
        for arm in evidence.arms
        if (runs := evidence.of(group, arm.name))
    ]
    return as_csv(["group", "arm", "runs", *names], rows)


def cost_rows(evidence: Evidence, group: str) -> list[list[str]]:
    """What each arm cost, and as a share of the first arm, which is the dense one where there is one."""
    rows, first = [], list[float]()
    for arm in evidence.arms:
        runs = evidence.of(group, arm.name)
        if not runs:
            continue
        means = mean_costs(runs, cost_names(evidence))
        first = first or means
        shares = [
            short(value) + (f" ({value / base:.2f}×)" if base else "") for value, base in zip(means, first, strict=True)
        ]
        rows.append([arm.name, *shares])
    return rows
