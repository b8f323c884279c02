"""Finished tasks: what is known of each, and under strict isolation everything that stood when it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from continual.networks import (
    Connections,
    SubspaceNetwork,
    all_biases,
    connect,
    frozen_connections,
    merged,
    movable_connections,
)


@dataclass(frozen=True, eq=False)
class Task:
    """A task's classes and units; under strict isolation also its own connections, biases and normalisations."""

    classes: tuple[int, ...]
    units: Tensor
    label: int | None
    """Avalanche's task label, where the benchmark gives each task one of its own."""
    connections: dict[str, Connections]
    biases: dict[str, Tensor]
    norms: dict[str, dict[str, Tensor]]

    def plain(self) -> dict[str, Any]:
        """The task in plain containers."""
        return {
            "classes": list(self.classes), "units": self.units, "label": self.label, "biases": self.biases,
            "norms": self.norms, "connections": {name: tuple(part) for name, part in self.connections.items()},
        }  # fmt: skip

    @classmethod
    def from_plain(cls, entry: Mapping[str, Any]) -> Task:
        """What `plain` gave."""
        return cls(
            tuple(entry["classes"]), entry["units"], entry["label"],
            {name: Connections(*part) for name, part in entry["connections"].items()},
            dict(entry["biases"]), {name: dict(content) for name, content in entry["norms"].items()},
        )  # fmt: skip


class Archive:
    """The finished tasks of one network, in their order.

    Args:
        network: the live network; under shared isolation it holds all tasks.
        strict: whether each task keeps what stood when it ended.
        reads: under strict isolation: `"own"` connections only, or `"earlier"` tasks' too.
    """

    def __init__(self, network: SubspaceNetwork, strict: bool, reads: str) -> None:
        self.network, self.strict, self.reads = network, strict, reads
        self.tasks: list[Task] = []
        self._views: dict[int, SubspaceNetwork] = {}

    def add(self, task: Task) -> None:
        """Close a task: under strict isolation, copy what stands now."""
        if self.strict:
            for name, layer in self.network.chain.items():
                # As small as they can be, and on the CPU: a task's network is made when it is asked for.
                own, cells = movable_connections(layer), layer.shape[0] * layer.shape[1]
                places = own.positions.to(torch.int32 if cells < 2**31 else torch.int64)
                task.connections[name], task.biases[name] = Connections(places, own.values.cpu()), all_biases(layer)
            task.norms.update({name: norm.content() for name, norm in self.network.norm_of.items()})
        self.tasks.append(task)

    def visible(self, name: str, number: int) -> Connections:
        """Earlier connections that task `number` reads in a layer under strict isolation, as they stood."""
        nothing = Connections(torch.empty(0, dtype=torch.int64), self.network.chain[name].values.detach()[:0].cpu())
        if self.reads == "own" or name == list(self.network.chain)[-1]:
            return nothing
        return merged([nothing, *(task.connections[name] for task in self.tasks[:number])])

    def network_of(self, number: int) -> SubspaceNetwork:
        """The network as a finished task reads it, in evaluation mode; kept until something is forgotten."""
        if number not in self._views:
            view, task = self.network.empty_copy(), self.tasks[number]
            for name, layer in view.chain.items():
                everything = merged([self.visible(name, number), task.connections[name]])
                connect(layer, everything, movable_connections(layer), task.biases[name])
            for name, norm in view.norm_of.items():
                norm.restore(task.norms[name])
            self._views[number] = view.eval()
        return self._views[number]

    def worth(self, name: str, positions: Tensor) -> Tensor:
        """|value| of connections that finished tasks own, summed over a kernel."""
        layer = self.network.chain[name]
        parts = merged([task.connections[name] for task in self.tasks]) if self.strict else frozen_connections(layer)
        return layer.per_connection(parts.restricted(positions).values.abs()).cpu()

    def keep_only(self, name: str, positions: Tensor) -> None:
        """Forget all other connections of a layer."""
        self._views.clear()
        for task in self.tasks:
            if name in task.connections:
                task.connections[name] = task.connections[name].restricted(positions)
        if not self.strict:
            layer = self.network.chain[name]
            kept = frozen_connections(layer).restricted(positions)
            connect(layer, kept, movable_connections(layer), all_biases(layer), layer.frozen_bias.cpu().long())

    def nbytes(self) -> tuple[int, int]:
        """Bytes of values and biases, and of where connections are, of all finished tasks."""
        if not self.strict:
            layers = self.network.chain.values()
            norms = [tensor for norm in self.network.norm_of.values() for tensor in norm.content().values()]
            return (
                sum(layer.frozen_values.nbytes + all_biases(layer).nbytes for layer in layers)
                + sum(tensor.nbytes for tensor in norms),
                sum(layer.columns.nbytes + layer.row_pointer.nbytes for layer in layers),
            )
        parts = [part for task in self.tasks for part in task.connections.values()]
        others = [bias for task in self.tasks for bias in task.biases.values()]
        others += [tensor for task in self.tasks for norm in task.norms.values() for tensor in norm.values()]
        values = sum(part.values.nbytes for part in parts) + sum(tensor.nbytes for tensor in others)
        return values, sum(part.positions.nbytes for part in parts)

    def flops(self) -> int:
        """Multiplications and additions that score one sample with its task not known."""
        networks = [self.network_of(number) for number in range(len(self.tasks))] if self.strict else [self.network]
        return 2 * sum(
            layer.nnz * network.places[name] for network in networks for name, layer in network.chain.items()
        )

    def restore(self, tasks: Sequence[Task]) -> None:
        """Hold exactly these tasks."""
        self.tasks = list(tasks)
        self._views.clear()
