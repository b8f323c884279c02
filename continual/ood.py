"""SpaceNet that knows its own: strict subnetworks, and heads that refuse what is not of their task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from continual.archive import Task
from continual.ledger import Grant
from continual.options import Sizes
from continual.outliers import pseudo_outliers
from continual.spacenet import SpaceNet
from sparse_core.draws import among, largest


class SpaceNetOOD(SpaceNet):
    """Strict subnetworks with a one-vs-rest head, trained against pseudo-outliers of the task's own images; ours.

    A class is told within its task and against everything else at once (within-task × task identity,
    Kim et al. 2022, arXiv:2208.09734), so logits of tasks that never met can be compared as they are.

    Args:
        outliers: pseudo-outliers for each image of a mini-batch.
        **keywords: of `SpaceNet`; images must be (n, c, h, w).
    """

    made_for = "class-il"
    """What its scores at the top are of, though its subnetworks are strict."""

    def __init__(self, *, outliers: float = 1.5, **keywords: Any) -> None:
        if not outliers >= 0:
            raise ValueError(f"`outliers` must be a number ≥ 0 for each image, got {outliers!r}")
        if keywords.setdefault("isolation", "strict") != "strict":
            raise ValueError("`spacenet-ood` is strict only: its heads judge subnetworks that never see each other")
        super().__init__(**keywords)
        if outliers and self.options.head != "sigmoid":
            raise ValueError(
                f"outliers belong to no class, which only the head 'sigmoid' can be told, got {self.options.head!r}; "
                "leave the head out, or give `outliers=0`"
            )
        self.outliers = outliers

    @classmethod
    def defaults(cls, isolation: str, multi_head: bool) -> dict[str, Any]:
        """Chosen on validation data; docs/results.md says how."""
        return {
            "isolation": "strict", "reads": "own", "head": "sigmoid", "drop": "magnitude", "grow": "gradient",
            "drop_fraction": 0.2, "schedule": "cosine", "capture_batches": 20, "init": "he", "rate_schedule": "cosine",
        }  # fmt: skip

    @classmethod
    def optimization(cls, isolation: str, multi_head: bool) -> tuple[str, float]:
        """Optimizer and learning rate where none is given."""
        return "adam", 0.004

    @classmethod
    def sizes(
        cls, shapes: Sequence[tuple[int, int]], classes: int, tasks: int, isolation: str, multi_head: bool
    ) -> Sizes:
        """As many connections as SpaceNet's tasks have."""
        return Sizes.fitting(shapes, classes, tasks, reserve=0.0)

    def _training_samples(self) -> tuple[Tensor, Tensor]:
        x, y = super()._training_samples()
        count = round(self.outliers * x.shape[0])
        if not count:
            return x, y
        # From the whole task, not the batch: halves of the same few images would be learned by heart.
        made = pseudo_outliers(self._images, count, self._draws["samples"])
        return torch.cat([x, made]), torch.cat([y, y.new_full((count,), -1)])

    def _plan(self, task: Task) -> dict[str, Grant]:
        """The base's plan, the first layer's connections drawn in proportion to how much their inputs vary."""
        grants = super()._plan(task)
        name, grant = next(iter(grants.items()))
        if self.network.channels:
            return grants
        spread = self._images.flatten(1).std(0).cpu() + 1e-3
        positions = (grant.outputs[:, None] * spread.numel() + grant.inputs).flatten()
        free = positions[~among(positions, self.ledger.taken(name)) | among(positions, grant.given_back)]
        # The largest of log(u) / weight are a draw without replacement in proportion to the weights.
        keys = torch.rand(free.numel(), generator=self._draws["allocation"]).log() / spread[free % spread.numel()]
        chosen = free[largest(keys, grant.positions.numel())]
        return {**grants, name: replace(grant, positions=chosen)}

    def _continue_task(self) -> None:
        super()._continue_task()
        self._images, _ = self._own_samples()

    def _begin_task(self) -> None:
        self._images, _ = self._own_samples()
        super()._begin_task()

    def _end_task(self) -> None:
        super()._end_task()
        self._images = torch.empty(0)
