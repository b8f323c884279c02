"""Stored samples of earlier classes, and SpaceNet with them (arXiv:2007.07617, its rehearsal variant)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from continual.archive import Task
from continual.augmentation import jittered
from continual.learner import Costs, Setup
from continual.ledger import Demand
from continual.options import CROWDED, Sizes
from continual.spacenet import SpaceNet
from sparse_core.draws import sample_distinct


class Memory:
    """So many samples of each unit, drawn once when it has been learned; with one head, a unit is a class.

    Args:
        per_class: samples kept of a class; all of a class that has fewer.
    """

    def __init__(self, per_class: int) -> None:
        if per_class < 1:
            raise ValueError(f"`memory` must be at least 1 sample a class, got {per_class}")
        self.per_class = per_class
        self.x: Tensor | None = None
        self.y = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return self.y.numel()

    def add(self, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
        """Draw from samples (n, …) with units (n,), unit by unit in ascending order."""
        for label in y.unique():
            places = (y == label).nonzero().squeeze(1)
            chosen = places[sample_distinct(places.numel(), min(self.per_class, places.numel()), generator)]
            self.x = x[chosen] if self.x is None else torch.cat([self.x.to(x.device), x[chosen]])
            self.y = torch.cat([self.y.to(y.device), y[chosen]])

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` of the kept samples, drawn with repetition."""
        assert self.x is not None
        rows = torch.randint(len(self), (count,), generator=generator).to(self.x.device)
        return self.x.index_select(0, rows), self.y.index_select(0, rows)

    @property
    def nbytes(self) -> int:
        """Bytes of samples and labels as they are kept."""
        return self.y.nbytes + (0 if self.x is None else self.x.nbytes)


class SpaceNetRehearsal(SpaceNet):
    """SpaceNet whose later tasks rehearse stored samples: each of them also brings connections to all classes so far.

    Args:
        memory: samples kept of each class.
        jitter: whether new and rehearsed images are turned, stretched and moved a little, new and old alike:
            few images are seen often, and must not be known by heart.
        **keywords: of `SpaceNet`.
    """

    def __init__(self, *, memory: int = 200, jitter: bool = False, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.jitter = jitter
        if self.strict:
            raise ValueError("rehearsal needs `isolation='shared'`: with strict isolation nothing is forgotten")
        self.memory = Memory(memory)

    @classmethod
    def defaults(cls, isolation: str, multi_head: bool) -> dict[str, Any]:
        """Every class so far takes part in the loss; reserved neurons may be read, since rehearsal keeps watch."""
        return {"head": "current", "drop": "importance", "grow": "gradient", "drop_fraction": 0.2}

    @classmethod
    def optimization(cls, isolation: str, multi_head: bool) -> tuple[str, float]:
        """Optimizer and learning rate where none is given."""
        return "adam", 0.002

    @classmethod
    def sizes(
        cls, shapes: Sequence[tuple[int, int]], classes: int, tasks: int, isolation: str, multi_head: bool
    ) -> Sizes:
        """Half of what a task selects is reserved; output connections fit although every task brings some to all."""
        sizes = Sizes.fitting(shapes, classes, tasks)
        # Task j brings them to j tasks' classes: in the end (tasks + 1) / 2 times a task's own, for each class.
        read = sizes.selected[-1] + (tasks - 1) * sizes.reserved[-1]
        most = max(1, int(CROWDED * classes * read * 2 / (tasks + 1)))
        return replace(sizes, connections=(*sizes.connections[:-1], min(sizes.connections[-1], most)))

    @classmethod
    def for_setup(cls, setup: Setup, **chosen: Any) -> Self:
        """As `SpaceNet.for_setup`, with the memory that was chosen; jittered unless pixels have lost their places."""
        jitter = setup.benchmark.scenario == "class-il" and len(setup.benchmark.input_shape) == 3
        return super().for_setup(setup, **{"jitter": jitter, **setup.given(memory="memory"), **chosen})

    def _demands(self, task: Task) -> dict[str, Demand]:
        """Output connections for every class that takes part, as many each as a task's own classes get."""
        demands, last = super()._demands(task), self.ledger.names[-1]
        count = demands[last].connections * self._trained_units(task).numel() // len(task.classes)
        return {**demands, last: replace(demands[last], connections=count)}

    def _trained_units(self, task: Task) -> Tensor:
        return torch.cat([*(earlier.units for earlier in self.tasks), task.units]).unique()

    def _training_samples(self) -> tuple[Tensor, Tensor]:
        (x, y), draws = super()._training_samples(), self._draws["samples"]
        if len(self.memory):
            rehearsed = self.memory.draw(x.shape[0] * len(self.tasks), draws)
            x, y = torch.cat([x, rehearsed[0].to(x)]), torch.cat([y, rehearsed[1].to(y)])
        return (jittered(x, draws) if self.jitter else x), y

    def _end_task(self) -> None:
        x, y = self._own_samples()
        y = self._units_of(y)  # as long as the task is the current one
        super()._end_task()
        self.memory.add(x, y, self._draws["samples"])

    def costs(self) -> Costs:
        """With the bytes of the memory."""
        return replace(super().costs(), memory_bytes=self.memory.nbytes)

    def state(self) -> dict[str, Any]:
        """With the memory."""
        return {**super().state(), "memory": {"x": self.memory.x, "y": self.memory.y}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """With the memory."""
        super().load_state(state)
        self.memory.x, self.memory.y = state["memory"]["x"], state["memory"]["y"]
