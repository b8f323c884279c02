"""What every continual learner offers to whoever trains and measures it, and what it is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from continual.scenario import ContinualBenchmark
from sparse_core import Adam


class NoChoice(ValueError):
    """Something was chosen for a strategy that has no such choice."""

    def __init__(self, names: Sequence[str], why: str = "") -> None:
        what = ", ".join(map(repr, names))
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        because = f": {why}" if why else ""
        super().__init__(f"this strategy has no choice of {what}{because}; leave it out ({flags})")
        self.names = tuple(names)


class Learner(Protocol):
    """A strategy that learns one experience after the other and scores samples; Avalanche's strategies do.

    It may say more of itself: `scenarios` (`knows_classes`), `joint` (`is_joint`) and `train_epochs` (`epochs_of`).
    """

    def train(self, experiences: Any, eval_streams: Any = None) -> Any:
        """Learn one experience."""

    def class_scores(self, x: Tensor) -> Tensor:
        """Scores (n, labels) of samples whose task is not known."""

    def task_scores(self, x: Tensor, number: int) -> Tensor:
        """Scores (n, labels) of samples of task `number` (from 0), -inf for labels of other tasks."""

    def costs(self) -> Costs:
        """What the learner holds now."""


def knows_classes(learner: Any) -> bool:
    """Whether it scores samples whose task it is not told: `class-il` is among its `scenarios`, as by default."""
    return "class-il" in getattr(learner, "scenarios", ("class-il", "task-il"))


def is_joint(learner: Any) -> bool:
    """Whether it learns all tasks at once, by `train_all`."""
    return bool(getattr(learner, "joint", False))


def epochs_of(learner: Any) -> int:
    """Epochs of each task; 1 where it does not say."""
    return int(getattr(learner, "train_epochs", 1))


@dataclass(frozen=True)
class Costs:
    """What a learner holds: exact counts and bytes, without the optimizer and what is gone after training."""

    nnz: int
    """Connections of all weight matrices; biases not."""
    neurons: int
    """Hidden neurons with at least one connection."""
    parameter_bytes: int
    """Values, biases and dense weights."""
    index_bytes: int
    """Where connections are."""
    statistic_bytes: int = 0
    """Means, covariances, Fisher information and what else is kept of earlier tasks."""
    memory_bytes: int = 0
    """Stored images and labels."""
    flops: int = 0
    """Multiplications and additions that score one sample without its task, 2 per connection used."""
    capacity: tuple[Mapping[str, Any], ...] = ()
    """Used, reserved and free by layer, where a ledger keeps count."""

    @property
    def bytes(self) -> int:
        """All bytes together."""
        return self.parameter_bytes + self.index_bytes + self.statistic_bytes + self.memory_bytes


@dataclass(frozen=True)
class Setup:
    """What a strategy is made for; None leaves a choice to the strategy."""

    benchmark: ContinualBenchmark
    seed: int = 0
    hidden: tuple[int, ...] = (400, 400)
    channels: tuple[int, ...] = ()
    """Channels of convolutions before the hidden layers."""
    norm: str = "none"
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    isolation: str | None = None
    head: str | None = None
    policy: str | None = None
    memory: int | None = None
    """Images a class that a rehearsal method may keep."""
    initial_topology: str | None = None
    """Where the connections of one network for all tasks are at the start."""
    device: str = "cpu"
    backend: str = "csr"
    plugins: tuple[Any, ...] = ()
    evaluator: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of the strategy by name."""

    @property
    def inputs(self) -> int:
        """Features of a flattened sample."""
        return int(torch.Size(self.benchmark.input_shape).numel())

    @property
    def tasks(self) -> int:
        """Tasks to come."""
        return len(self.benchmark.task_classes)

    @property
    def classes_per_task(self) -> int:
        """Classes of the largest task."""
        return max(map(len, self.benchmark.task_classes))

    def given(self, **names: str) -> dict[str, Any]:
        """The choices that were made, under the keywords of a strategy: `given(epochs="train_epochs")`.

        Epochs and batch size are the benchmark's where nobody chose.
        """
        chosen = {keyword: getattr(self, name) for name, keyword in names.items()}
        for name in {"epochs", "batch_size"} & names.keys():
            if chosen[names[name]] is None:
                chosen[names[name]] = getattr(self.benchmark, name)
        return {keyword: value for keyword, value in chosen.items() if value is not None}

    def make_optimizer(self, parameters: Any, name: str, learning_rate: float) -> torch.optim.Optimizer:
        """The optimizer that was chosen, else the one named here."""
        kind = OPTIMIZERS.get(self.optimizer or name)
        if kind is None:
            raise ValueError(f"`optimizer` must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer or name!r}")
        rate = learning_rate if self.learning_rate is None else self.learning_rate
        return kind(parameters, rate)


OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
    "momentum": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
    "adam": lambda parameters, rate: Adam(parameters, lr=rate),
    "adamw": lambda parameters, rate: Adam(parameters, lr=rate, weight_decay=0.01, decoupled=True),
}
