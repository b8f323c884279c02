"""`result.json` of a continual run; lists are by seed, then by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from continual import metrics
from continual.learner import is_joint, knows_classes
from continual.scenario import ContinualBenchmark
from runs.continual.records import CLASS_IL, TASK_IL, Record, Rows
from runs.continual.settings import Settings
from runs.continual.summaries import summarise
from runs.failure import UserError
from runs.files import read_json

FORMAT = "sparse-agents-continual-result"
SCORES = ("acc", "bwt", "forgetting", "fwt", "la", "average_incremental", "intransigence")
Reference = Mapping[str, list[float] | None]


@dataclass(frozen=True)
class Facts:
    """What a result says about its learner."""

    scenario: str
    """What the learner is for: whose scores are those at the top."""
    joint: bool

    @classmethod
    def of(cls, learner: Any) -> Facts:
        """Of a learner as it was built: strict ones are for tasks that are known, unless they say otherwise."""
        strict = bool(getattr(learner, "strict", False))
        usual = "task-il" if strict or not knows_classes(learner) else "class-il"
        return cls(getattr(learner, "made_for", usual), is_joint(learner))


def result(
    settings: Settings, benchmark: ContinualBenchmark, facts: Facts, records: Sequence[Record],
    reference: Reference, measured: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The result of a finished run; whatever two identical runs may differ in is under `measured`."""
    kinds = {CLASS_IL: _column(records, CLASS_IL), TASK_IL: _column(records, TASK_IL)}
    validation = {kind: _column(records, f"validation_{kind}") for kind in kinds}
    scores = {
        kind: _scores(rows, facts, [r.initial for r in records] if kind == CLASS_IL else None, reference[kind])
        for kind, rows in kinds.items()
    }
    return {
        "format": FORMAT,
        "version": 1,
        "strategy": settings.strategy,
        "benchmark": settings.benchmark,
        "benchmark_scenario": benchmark.scenario,
        "scenario": facts.scenario,
        "task_classes": [list(classes) for classes in benchmark.task_classes],
        "joint": facts.joint,
        "seeds": [record.seed for record in records],
        "settings": settings.of_the_method(),
        **scores,
        **{name: scores[facts.scenario.replace("-", "_")][name] for name in SCORES},
        "R": {kind: None if facts.joint else rows for kind, rows in kinds.items()},
        "R_validation": {kind: None if facts.joint else rows for kind, rows in validation.items()},
        "final": {kind: None if rows is None else [each[-1] for each in rows] for kind, rows in kinds.items()},
        **{
            name: [[costs[name] for costs in record.costs] for record in records]
            for name in ("capacity", "bytes", "nnz", "neurons", "flops")
        },
        "measured": measured,
    }


def _column(records: Sequence[Record], name: str) -> list[Rows] | None:
    """One matrix for each seed; None where the learner or the benchmark has none."""
    found = [getattr(record, name) for record in records]
    return found if all(found) else None


def _scores(
    rows: list[Rows] | None, facts: Facts, initial: list[list[float] | None] | None, reference: list[float] | None
) -> dict[str, Any]:
    if rows is None:
        return {name: summarise([None]) | {"per_seed": None} for name in SCORES}
    if facts.joint:
        nothing: list[float | None] = [None] * len(rows)
        final = summarise([sum(each[-1]) / len(each[-1]) for each in rows])
        return {name: summarise(nothing) for name in SCORES} | {"acc": final}
    before = initial or [None] * len(rows)
    found = [metrics.scores(each, first, reference) for each, first in zip(rows, before, strict=True)]
    values: dict[str, Callable[[metrics.Scores], float | None]] = {
        "acc": lambda s: s.acc,
        "bwt": lambda s: s.bwt,
        "forgetting": lambda s: s.forgetting,
        "fwt": lambda s: s.fwt,
        "la": lambda s: s.learning_accuracy,
        "average_incremental": lambda s: s.average_incremental,
        "intransigence": lambda s: s.intransigence,
    }
    return {name: summarise([value(each) for each in found]) for name, value in values.items()}


def read_reference(settings: Settings, task_classes: Sequence[Sequence[int]]) -> Reference:
    """Accuracy on each task of a learner that had all tasks at once, mean over its seeds; nothing without `--joint`."""
    if settings.joint is None:
        return {CLASS_IL: None, TASK_IL: None}
    path = Path(settings.joint) / "result.json"
    written = read_json(path, "result of a joint run")
    if written.get("format") != FORMAT or not written.get("joint"):
        raise UserError(f"{path} is not the result of a strategy that learns all tasks together; give the run of one")
    same = written.get("benchmark") == settings.benchmark
    if written.get("benchmark_scenario") == "domain-il":  # the order says how inputs are permuted
        same &= _order_of(written) == settings.class_order
    if not same or written.get("task_classes") != [list(classes) for classes in task_classes]:
        raise UserError(f"{path} is of other tasks than this run; give a joint run of the same benchmark and order")
    final = written.get("final")
    try:
        assert isinstance(final, dict)
        return {kind: _mean(final[kind], len(task_classes)) for kind in (CLASS_IL, TASK_IL)}
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged (no final accuracies); do the joint run again") from error


def _order_of(written: Mapping[str, Any]) -> Any:
    settings = written.get("settings")
    return settings.get("class_order") if isinstance(settings, Mapping) else None


def _mean(rows: list[list[float]] | None, tasks: int) -> list[float] | None:
    if rows is None:
        return None
    if not rows or not all(len(row) == tasks and all(0 <= share <= 1 for share in row) for row in rows):
        raise ValueError("no rows of so many fractions")
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]
