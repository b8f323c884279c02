"""AFAF: a new task begins from the old neurons that its data excite most (Sokar et al. 2022, arXiv:2110.05329)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from continual.archive import Task
from continual.ledger import CapacityError, Grant
from continual.options import Sizes
from continual.scoring import evaluating
from continual.spacenet import SpaceNet, SpaceNet2021
from sparse_core.draws import largest


class AFAF(SpaceNet):
    """Sparse subspaces in one network: a new task reads old neurons that matter for it; reserved ones never change.

    From task `reuse_from` on, candidates are found per class and layer: the neurons that the class's samples
    excite most in the network as it is. Connections go from candidates and some free neurons to free
    neurons only; the output layer reads free neurons only, against ambiguous classes. From then on connections
    take what room there is, whatever `policy` says of it.

    Args:
        reuse_from: tasks (from 0) before this one are placed at random in free neurons, as in SpaceNet.
        reuse_layers: first layers that get no new connections from then on; never the last hidden one.
        reuse: candidates of a class, as a share of the neurons a task selects; the rest of these are free ones.
        **keywords: of `SpaceNet`.
    """

    def __init__(self, *, reuse_from: int = 2, reuse_layers: int = 1, reuse: float = 0.3, **keywords: Any) -> None:
        super().__init__(**keywords)
        if not 0 < reuse < 1:
            raise ValueError(f"`reuse` must be a share in (0, 1), got {reuse!r}")
        self.reuse_from, self.reuse_layers, self.reuse = reuse_from, reuse_layers, reuse

    @classmethod
    def defaults(cls, isolation: str, multi_head: bool) -> dict[str, Any]:
        """The release's choices: SpaceNet's, but that what was just dropped may grow again."""
        return {**SpaceNet2021.defaults(isolation, multi_head), "regrow": "kept"}

    @classmethod
    def optimization(cls, isolation: str, multi_head: bool) -> tuple[str, float]:
        """The release's."""
        return "sgd", 0.1

    @classmethod
    def sizes(
        cls, shapes: Sequence[tuple[int, int]], classes: int, tasks: int, isolation: str, multi_head: bool
    ) -> Sizes:
        """Shares of the release: 0.2 of a hidden layer selected and 0.3 of these kept, 0.1 of the last and all kept."""
        fitted = Sizes.fitting(shapes, classes, tasks, densities=(0.25, 0.25, 0.7), reserve=0.3)
        last = max(classes, min(round(0.1 * shapes[-2][0]), shapes[-2][0] // tasks))
        selected, reserved = (*fitted.selected[:-1], last), (*fitted.reserved[:-1], last)
        blocks = [*fitted.connections]
        below = selected[-2] * (shapes[-2][1] // shapes[-3][0]) if len(selected) > 1 else shapes[-2][1]
        blocks[-2], blocks[-1] = max(1, round(0.25 * last * below)), max(1, round(0.7 * last * classes))
        return Sizes(selected, reserved, tuple(blocks))

    def _allot(self, task: Task) -> dict[str, Grant]:
        if len(self.tasks) < self.reuse_from:
            return super()._allot(task)
        draws, demands = self._draws["allocation"], self._demands(task)
        excited = self._excited(task)
        grants: dict[str, Grant] = {}
        below: list[Tensor] = [torch.arange(self.ledger.shapes[self.ledger.names[0]][1])] * len(task.classes)
        for index, name in enumerate(self.ledger.names):
            last = index == len(self.ledger.names) - 1
            # The output layer reads free neurons only, so the layer below it needs some.
            reused, demand = index < min(self.reuse_layers, len(self.ledger.hidden) - 1), demands[name]
            extra = 0 if reused else max(1, round((1 - self.reuse) * demand.selected))
            outputs, released = task.units, torch.empty(0, dtype=torch.int64)
            if not last:
                outputs, released = self.ledger.select(name, extra, draws, policy=self.options.policy)
            count = 0 if reused else demand.connections // len(task.classes)
            positions = torch.empty(0, dtype=torch.int64)
            for number, sources in enumerate(below):
                targets = outputs[number : number + 1] if last else outputs
                if count:
                    room = min(count, targets.numel() * sources.numel())
                    try:
                        more, _ = self.ledger.place(
                            name, targets, sources, room, draws, policy="shrink", also_taken=positions
                        )  # fmt: skip
                    except CapacityError:
                        # Classes that excite the same neurons leave each other no room, and need none.
                        if last or not positions.numel():
                            raise
                        continue
                    positions = torch.cat([positions, more]).sort().values
            nothing = positions[:0]
            reserved = min(demand.reserved, outputs.numel())
            grants[name] = Grant(outputs, torch.cat(below).unique(), positions, reserved, released, nothing)
            if not last:
                after = self.ledger.names[index + 1]
                spread = self.ledger.shapes[after][1] // self.ledger.shapes[name][0]
                into_output = index == len(self.ledger.names) - 2
                chosen = [outputs if into_output else torch.cat([outputs, group]).unique() for group in excited[index]]
                below = [(group[:, None] * spread + torch.arange(spread)).flatten() for group in chosen]
        return grants

    @torch.no_grad()
    def _excited(self, task: Task) -> list[list[Tensor]]:
        """By hidden layer and class: the neurons whose mean activation over the class's samples is largest."""
        x, y = self._own_samples()
        found: list[list[Tensor]] = [[] for _ in self.ledger.hidden]
        with evaluating(self.network):
            for label in task.classes:
                sums: list[Tensor] = []
                for batch in x[y == label].split(1024):
                    means = [
                        a.flatten(2).mean(2).sum(0) if a.dim() > 2 else a.sum(0)
                        for a in self.network.activations(batch)
                    ]
                    sums = means if not sums else [one + two for one, two in zip(sums, means, strict=True)]
                for index, (name, total) in enumerate(zip(self.ledger.hidden, sums, strict=True)):
                    count = max(1, round(self.reuse * self._demands(task)[name].selected))
                    total = total.cpu()
                    count = min(count, int((total > 0).sum()))
                    found[index].append(largest(total, count))
        return found
