"""What is compared: one number a run, by endpoint; the first endpoint of a study is the primary one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runs.report.loading import Evidence, Run
from runs.report.statistics import Array

_LAST = 10  # evaluations whose mean is the final return
_SMALL = 0.1  # of the range of scores: a mean below it makes ratios of many times one


@dataclass(frozen=True)
class Endpoint:
    """A number that every run has, or None where it has not."""

    name: str
    label: str
    of_run: Callable[[Run], float | None]
    percent: bool = False
    better: int = 1
    """1 where more is better, -1 where less is."""
    digits: int = 0
    """Of a number that is no percentage."""

    def values(self, runs: list[Run]) -> Array:
        """Of the runs that have it."""
        found = [self.of_run(run) for run in runs]
        return np.array([value for value in found if value is not None], np.float64)

    def text(self, value: float | None) -> str:
        """For people."""
        if value is None:
            return "–"
        return f"{100 * value:.1f} %" if self.percent else f"{value:,.{self.digits}f}"

    def difference_text(self, value: float | None) -> str:
        """A difference for people, of percentages in points."""
        if value is None:
            return "–"
        return f"{100 * value:+.1f} points" if self.percent else f"{value:+,.{self.digits}f}"


def area_under_curve(result: dict[str, Any], begin: float = 0.0) -> float:
    """Mean return over training: trapezoids between evaluations, from the first to the last.

    `begin` is the step from which on it counts: some runs are evaluated earlier than others.
    """
    steps, returns = np.array(result["curve"], np.float64).T
    if steps[0] < begin < steps[-1]:
        later = steps > begin
        returns = np.concatenate([[np.interp(begin, steps, returns)], returns[later]])
        steps = np.concatenate([[begin], steps[later]])
    if len(steps) == 1:
        return float(returns[0])
    return float(np.trapezoid(returns, steps) / (steps[-1] - steps[0]))


def final_return(result: dict[str, Any]) -> float:
    """Mean of the last ten evaluations, or of all where there are fewer."""
    return float(np.mean([value for _, value in result["curve"][-_LAST:]]))


def _fresh(result: dict[str, Any]) -> float | None:
    final = result.get("final")
    return None if final is None else float(final["mean_return"])


def _of_agents(evidence: Evidence) -> list[Endpoint]:
    """All curves of a group count from the same share of training on, the latest first evaluation of any of them."""
    begin: dict[str, float] = {}
    for run in evidence.runs:
        begin[run.group] = max(begin.get(run.group, 0.0), run.result["curve"][0][0] / run.result["steps"])

    def from_step(run: Run) -> float:
        return begin[run.group] * float(run.result["steps"])

    return [
        Endpoint("auc", "mean return over training", lambda run: area_under_curve(run.result, from_step(run))),
        Endpoint("final", "final return", lambda run: final_return(run.result)),
        Endpoint("fresh", "return in fresh episodes", lambda run: _fresh(run.result)),
    ]


def _score(kind: str, name: str) -> Callable[[Run], float | None]:
    def of(run: Run) -> float | None:
        value = run.result[kind][name].get("mean")
        return None if value is None else float(value)

    return of


CLASS_IL = [
    Endpoint("class_acc", "accuracy, task not known", _score("class_il", "acc"), percent=True),
    Endpoint("class_forgetting", "forgetting, task not known", _score("class_il", "forgetting"), True, -1),
]
TASK_IL = [
    Endpoint("task_acc", "accuracy, task known", _score("task_il", "acc"), percent=True),
    Endpoint("task_forgetting", "forgetting, task known", _score("task_il", "forgetting"), True, -1),
]


def endpoints(evidence: Evidence) -> list[Endpoint]:
    """Those of a study: of agents, or of learners, whose primary one is what most of its arms are made for."""
    if evidence.study.kind == "agents":
        has_fresh = any(_fresh(run.result) is not None for run in evidence.runs)
        return _of_agents(evidence)[: 3 if has_fresh else 2]
    strict = sum(run.result["scenario"] == "task-il" for run in evidence.runs)
    return [*TASK_IL, *CLASS_IL] if 2 * strict > len(evidence.runs) else [*CLASS_IL, *TASK_IL]


def overall(evidence: Evidence) -> str | None:
    """What the mean over all groups is called; None where there is only one."""
    count, what = len(evidence.groups), "environments" if evidence.study.kind == "agents" else "benchmarks"
    return f"mean over {count} {what}" if count > 1 else None


def normalised(evidence: Evidence, endpoint: Endpoint) -> tuple[Endpoint, str]:
    """An endpoint that can be averaged over groups, and in words what it was divided by.

    Returns of different environments have different sizes: each is divided by the mean of the first dense arm, so that
    this is 1 (where that mean m is below zero, 1 + (return - m) / |m|, so that more is still better); without a dense
    arm that has runs in all of them by the mean of all runs. Accuracies stay as they are.
    """
    if endpoint.percent:
        return endpoint, ""
    means, what = _bases(evidence, endpoint)

    def of(run: Run) -> float | None:
        value, mean = endpoint.of_run(run), means[run.group]
        return None if value is None else 1 + (value - mean) / (abs(mean) or 1.0)

    return replace(endpoint, of_run=of, digits=3), what


def _bases(evidence: Evidence, endpoint: Endpoint) -> tuple[dict[str, float], str]:
    """What scores are divided by in each group, and in words."""
    dense = next((arm.name for arm in evidence.arms if arm.method == "dense"), None)
    if dense is not None and not all(len(endpoint.values(evidence.of(group, dense))) for group in evidence.groups):
        dense = None
    means = {}
    for group in evidence.groups:
        base = endpoint.values([run for run in evidence.runs if run.group == group and dense in (None, run.arm.name)])
        means[group] = float(np.mean(base)) if len(base) else 1.0
    return means, f"the mean of {dense}" if dense is not None else "the mean of all runs"


def small_bases(evidence: Evidence, endpoint: Endpoint) -> list[str]:
    """A line for each group that outweighs the others in a mean over them, because its divisor is next to nothing."""
    if endpoint.percent or overall(evidence) is None:
        return []
    means, what = _bases(evidence, endpoint)
    lines = []
    for group in evidence.groups:
        values = endpoint.values([run for run in evidence.runs if run.group == group])
        if len(values) and abs(means[group]) < _SMALL * float(np.ptp(values)):
            lines.append(
                f"small divisor on {group}: {what} is {means[group]:,.1f}, where runs have {values.min():,.0f} to "
                f"{values.max():,.0f}; in means over environments it outweighs the others"
            )
    return lines


def values_of(evidence: Evidence, endpoint: Endpoint, group: str, arm: str) -> Array:
    """One number a run; of the mean over all groups, one a seed that has a run in each of them."""
    if group != overall(evidence):
        return endpoint.values(evidence.of(group, arm))
    scores, _ = normalised(evidence, endpoint)
    found = [{run.seed: scores.of_run(run) for run in evidence.of(each, arm)} for each in evidence.groups]
    seeds = [seed for seed in found[0] if all(each.get(seed) is not None for each in found)]
    return np.array([np.mean([each[seed] for each in found]) for seed in seeds], np.float64)
