"""What one seed has shown so far: rows of accuracies, what the learner holds, and the file that keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import torch

from continual.evaluation import Samples, accuracy_rows
from continual.learner import Costs, is_joint, knows_classes
from continual.scenario import ContinualBenchmark
from runs.failure import UserError
from runs.files import read_json, write_json
from runs.values import of_kind

Rows = list[list[float]]
CLASS_IL, TASK_IL = "class_il", "task_il"


@dataclass
class Record:
    """One entry for each finished task in every list; a joint learner has one for all tasks together.

    Rows of what a learner cannot say (with the task not known), or of a stream that is not there, are missing.
    """

    seed: int
    class_il: Rows = field(default_factory=list)
    task_il: Rows = field(default_factory=list)
    validation_class_il: Rows = field(default_factory=list)
    validation_task_il: Rows = field(default_factory=list)
    initial: list[float] | None = None
    """Accuracies before anything is learned, where all tasks share their classes."""
    costs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    finished: bool = False

    @property
    def tasks_done(self) -> int:
        """Finished tasks."""
        return len(self.task_il)

    @classmethod
    def from_dict(cls, written: Any) -> Record:
        """The record that `as_dict` gave; a `ValueError` for anything else."""
        kinds = get_type_hints(cls)
        if not isinstance(written, dict) or set(written) != set(kinds):
            raise ValueError(f"a record holds {', '.join(kinds)}")
        wrong = [name for name, kind in kinds.items() if not of_kind(written[name], kind)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} of the wrong kind")
        return cls(**written)

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)


def read_record(path: Path, seed: int) -> Record | None:
    """The record in a seed's folder; None where there is none yet."""
    if not path.exists():
        return None
    written = read_json(path, "record of a seed")
    try:
        record = Record.from_dict(written)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it to have the seed done again") from error
    if record.seed != seed:
        raise UserError(f"{path} is of seed {record.seed}, not {seed}; put back the file of this seed")
    return record


def write_record(path: Path, record: Record, then: str) -> None:
    """Keep a record where `read_record` finds it."""
    write_json(path, record.as_dict(), then)


class Examiner:
    """All tasks' test and validation samples, ready to be scored as often as asked."""

    def __init__(self, benchmark: ContinualBenchmark, device: str) -> None:
        self.benchmark = benchmark
        self.test = self._samples("test", device)
        self.validation = None if benchmark.valid is None else self._samples("valid", device)

    def _samples(self, stream: str, device: str) -> list[Samples]:
        parts = (self.benchmark.tensors(stream, task) for task in range(len(self.benchmark.task_classes)))
        return [(x.to(device), y.to(device)) for x, y in parts]

    def begin(self, learner: Any, record: Record) -> None:
        """Examine a learner that has learned nothing, where that says something.

        One that has no answer yet (ours, statistics) can but guess, as untrained outputs do: right for one class.
        """
        if self.benchmark.scenario != "domain-il" or not knows_classes(learner) or is_joint(learner):
            return
        if any(bool(torch.isfinite(learner.class_scores(x[:1])).any()) for x, _ in self.test):
            record.initial, _ = accuracy_rows(learner, self.test)
        else:
            record.initial = [1 / self.benchmark.classes] * len(self.test)

    def examine(self, learner: Any, record: Record) -> None:
        """Add a row on every task's data to each matrix, and what the learner holds."""
        knows = knows_classes(learner)
        sets: list[tuple[Sequence[Samples] | None, Rows, Rows]] = [
            (self.test, record.class_il, record.task_il),
            (self.validation, record.validation_class_il, record.validation_task_il),
        ]
        for samples, class_rows, task_rows in sets:
            if samples is not None:
                without, within = accuracy_rows(learner, samples)
                task_rows.append(within)
                if knows:
                    class_rows.append(without)
        record.costs.append(_costs(learner.costs()))


def _costs(costs: Costs) -> dict[str, Any]:
    return {
        "nnz": costs.nnz,
        "neurons": costs.neurons,
        "flops": costs.flops,
        "bytes": {
            "parameters": costs.parameter_bytes,
            "indices": costs.index_bytes,
            "statistics": costs.statistic_bytes,
            "memory": costs.memory_bytes,
            "total": costs.bytes,
        },
        "capacity": [
            {name: list(value) if isinstance(value, tuple) else value for name, value in row.items()}
            for row in costs.capacity
        ],
    }
