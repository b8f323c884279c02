"""What is compared: one number a run, by endpoint; the first endpoint of a study is the primary one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from runs.report.loading import Evidence, Run
from runs.report.statistics import Array

_LAST = 10  # evaluations whose mean is the final return


@dataclass(frozen=True)
class Endpoint:
    """A number that every run has, or None where it has not."""

    name: str
    label: str
    of: Callable[[dict[str, Any]], float | None]
    percent: bool = False
    better: int = 1
    """1 where more is better, -1 where less is."""

    def values(self, runs: list[Run]) -> Array:
        """Of the runs that have it."""
        found = [self.of(run.result) for run in runs]
        return np.array([value for value in found if value is not None], np.float64)

    def text(self, value: float | None, signed: bool = False) -> str:
        """For people."""
        if value is None:
            return "–"
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.1f} %" if self.percent else f"{value:{sign},.0f}"


def area_under_curve(result: dict[str, Any]) -> float:
    """Mean return over training: trapezoids between evaluations, over the steps from the first to the last."""
    steps, returns = np.array(result["curve"], np.float64).T
    if len(steps) == 1:
        return float(returns[0])
    return float(np.trapezoid(returns, steps) / (steps[-1] - steps[0]))


def final_return(result: dict[str, Any]) -> float:
    """Mean of the last ten evaluations, or of all where there are fewer."""
    return float(np.mean([value for _, value in result["curve"][-_LAST:]]))


def _fresh(result: dict[str, Any]) -> float | None:
    final = result.get("final")
    return None if final is None else float(final["mean_return"])


AGENTS = [
    Endpoint("auc", "mean return over training", area_under_curve),
    Endpoint("final", "final return", final_return),
    Endpoint("fresh", "return in fresh episodes", _fresh),
]


def _score(kind: str, name: str) -> Callable[[dict[str, Any]], float | None]:
    def of(result: dict[str, Any]) -> float | None:
        value = result[kind][name]["mean"]
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
        return AGENTS if has_fresh else AGENTS[:2]
    strict = sum(run.result["scenario"] == "task-il" for run in evidence.runs)
    return [*TASK_IL, *CLASS_IL] if 2 * strict > len(evidence.runs) else [*CLASS_IL, *TASK_IL]
