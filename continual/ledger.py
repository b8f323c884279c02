"""Who owns what: every connection and every reserved neuron, and whether the next task still fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sparse_core.draws import among, largest, sample_distinct, sample_outside

Worth = Callable[[str, Tensor], Tensor]
Policy = Literal["error", "shrink", "reclaim"]
POLICIES: tuple[Policy, ...] = ("error", "shrink", "reclaim")


class CapacityError(ValueError):
    """A task does not fit into what is free; nothing has changed."""


@dataclass(frozen=True)
class Demand:
    """What one task wants of one layer: neurons to work with, connections into them, neurons to keep afterwards."""

    selected: int
    connections: int
    reserved: int


@dataclass(frozen=True, eq=False)
class Grant:
    """What one task gets in one layer; growth stays within outputs × inputs."""

    outputs: Tensor  # selected neurons, ascending int64
    inputs: Tensor  # inputs they may read, ascending int64
    positions: Tensor  # flat positions of its first connections, ascending int64
    reserved: int
    released: Tensor
    """Neurons of earlier tasks that lose their protection for this (policy `reclaim`)."""
    given_back: Tensor
    """Flat positions whose connections earlier tasks lose for this (policy `reclaim`)."""


@dataclass(frozen=True)
class LayerCapacity:
    """One row of the ledger's table, in neurons and connections."""

    layer: str
    neurons: int
    used: int
    """Neurons that at least one finished task has connections into."""
    reserved: int
    free: int
    cells: int
    connections: int
    by_task: tuple[int, ...]


class TaskLedger:
    """The owner of every connection and every reserved neuron of a chain of layers.

    Args:
        shapes: (outputs, inputs) of each layer by name, from the first to the output layer.
        shared_inputs: whether a later task may read reserved neurons.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], *, shared_inputs: bool = True) -> None:
        self.shapes = dict(shapes)
        self.names = list(shapes)
        self.shared_inputs = shared_inputs
        self.tasks = 0
        self._positions = {name: torch.empty(0, dtype=torch.int64) for name in shapes}
        self._owners = {name: torch.empty(0, dtype=torch.int16) for name in shapes}
        self.reserved_by = {name: torch.full((shape[0],), -1, dtype=torch.int16) for name, shape in shapes.items()}
        self.reserve_order = {name: torch.zeros(shape[0]) for name, shape in shapes.items()}

    @property
    def hidden(self) -> list[str]:
        """Names of all layers but the output layer, whose neurons are classes and never reserved."""
        return self.names[:-1]

    def taken(self, name: str) -> Tensor:
        """Flat positions that finished tasks own, ascending."""
        return self._positions[name]

    def owned_by(self, name: str, task: int) -> Tensor:
        """Flat positions that `task` owns, ascending."""
        return self._positions[name][self._owners[name] == task]

    def owners(self, name: str, positions: Tensor) -> Tensor:
        """The task that owns each flat position, -1 for none; (n,) int16."""
        if not self._positions[name].numel():
            return torch.full(positions.shape, -1, dtype=torch.int16)
        index = torch.searchsorted(self._positions[name], positions).clamp_(max=self._positions[name].numel() - 1)
        owner = self._owners[name][index]
        return torch.where(self._positions[name][index] == positions, owner, owner.new_tensor(-1))

    def free(self, name: str) -> Tensor:
        """Neurons that no task has reserved, ascending."""
        return (self.reserved_by[name] < 0).nonzero().squeeze(1)

    def plan(
        self,
        demands: Mapping[str, Demand],
        units: Tensor,
        generator: torch.Generator,
        *,
        policy: Policy = "error",
        worth: Worth | None = None,
    ) -> dict[str, Grant]:
        """Draw a task's neurons and connections, or say before anything changes that they do not fit.

        Args:
            demands: by layer name; of the output layer only `connections` counts.
            units: outputs of the output layer that the task trains.
            generator: draws neurons, then connections, layer by layer.
            policy: `"error"` raises; `"shrink"` takes what there is, as long as that is something; `"reclaim"`
                lifts the protection of the least important reserved neurons, and takes back the connections
                of least `worth` that do not end in a reserved neuron. The grant says which.
            worth: (layer, flat positions) -> importance of those connections; wanted by `"reclaim"`.

        Raises:
            CapacityError: with the layer, what was wanted, what is free, and what to do.
        """
        grants: dict[str, Grant] = {}
        inputs, spread = torch.arange(self.shapes[self.names[0]][1]), 1
        for index, name in enumerate(self.names):
            demand, shape = demands[name], self.shapes[name]
            outputs, released = units, torch.empty(0, dtype=torch.int64)
            if index < len(self.names) - 1:
                outputs, released = self.select(name, demand.selected, generator, policy=policy)
            if index:
                spread = shape[1] // self.shapes[self.names[index - 1]][0]
                inputs = self._readable(index, grants[self.names[index - 1]].outputs, spread)
            place = self.place(
                name, outputs, inputs, demand.connections, generator, policy=policy, worth=worth, released=released
            )  # fmt: skip
            grants[name] = Grant(outputs, inputs, place[0], min(demand.reserved, outputs.numel()), released, place[1])
        return grants

    def _released(self, name: str, count: int, policy: Policy) -> Tensor:
        """The least important reserved neurons, as many as are missing, where the policy allows that."""
        missing = count - self.free(name).numel()
        reserved = (self.reserved_by[name] >= 0).nonzero().squeeze(1)
        if policy != "reclaim" or missing <= 0:
            return reserved[:0]
        return reserved[largest(-self.reserve_order[name][reserved], min(missing, reserved.numel()))]

    def select(
        self, name: str, count: int, generator: torch.Generator, *, policy: Policy = "error"
    ) -> tuple[Tensor, Tensor]:
        """`count` neurons uniform over the free ones, ascending, and those released for them; see `plan`."""
        released = self._released(name, count, policy)
        free = torch.cat([self.free(name), released]).sort().values
        if count > free.numel():
            if policy == "error" or not free.numel():
                raise CapacityError(
                    f"task {self.tasks + 1} wants {count} free neurons in layer {name!r}, but {free.numel()} of "
                    f"{self.shapes[name][0]} are free; widen the layer, select or reserve fewer, or take "
                    "another policy (shrink, reclaim)"
                )
            count = free.numel()
        return free[sample_distinct(free.numel(), count, generator)], released

    def _readable(self, index: int, selected: Tensor, spread: int) -> Tensor:
        """Inputs of layer `index` that the task may read: its own neurons below, and reserved ones if shared."""
        neurons = selected
        if self.shared_inputs:
            reserved = (self.reserved_by[self.names[index - 1]] >= 0).nonzero().squeeze(1)
            neurons = torch.cat([selected, reserved]).unique()
        return (neurons[:, None] * spread + torch.arange(spread)).flatten()

    def place(
        self,
        name: str,
        outputs: Tensor,
        inputs: Tensor,
        count: int,
        generator: torch.Generator,
        *,
        policy: Policy = "error",
        worth: Worth | None = None,
        also_taken: Tensor | None = None,
        released: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`count` positions uniform over the free ones of outputs × inputs, and those given back for them; see `plan`.

        `also_taken` are flat positions, ascending, that count as taken (not with `"reclaim"`); `released` are
        neurons whose connections are no longer protected.
        """
        width = self.shapes[name][1]
        taken = self._positions[name]
        if also_taken is not None:
            taken = torch.cat([taken, also_taken]).unique()
        row, column = taken // width, taken % width
        inside = among(row, outputs) & among(column, inputs)
        cells = outputs.numel() * inputs.numel()
        given_back = taken[:0]
        if policy == "reclaim" and worth is not None:
            protected = self.reserved_by[name] >= 0
            if released is not None:
                protected[released] = False
            unprotected = inside & ~protected[row]
            missing = min(count - cells + int(inside.sum()), int(unprotected.sum()))
            if missing > 0:
                candidates = taken[unprotected]
                given_back = candidates[largest(-worth(name, candidates), missing)]
                inside = inside & ~among(taken, given_back)
        blocked = torch.searchsorted(outputs, row[inside]) * inputs.numel() + torch.searchsorted(inputs, column[inside])
        vacant = cells - blocked.numel()
        if count > vacant:
            if policy == "error" or not vacant:
                raise CapacityError(
                    f"task {self.tasks + 1} wants {count} connections in layer {name!r}, but {vacant} of the {cells} "
                    "positions between its neurons are free; widen the layer, ask for fewer connections, or take "
                    "another policy (shrink, reclaim)"
                )
            count = vacant
        ranks = sample_outside(cells, count, blocked, generator)
        return outputs[ranks // inputs.numel()] * width + inputs[ranks % inputs.numel()], given_back

    def close_task(
        self, positions: Mapping[str, Tensor], reserved: Mapping[str, Tensor], importance: Mapping[str, Tensor]
    ) -> int:
        """Enter what a finished task owns: connections, and neurons with their importance; the task's number.

        Raises:
            ValueError: where another task owns or has reserved any of it; nothing has changed then.
        """
        number = self.tasks + 1
        for name, own in positions.items():
            if bool(among(own, self._positions[name]).any()):
                raise ValueError(f"task {number} claims connections in layer {name!r} that another task owns")
        for name, neurons in reserved.items():
            if bool((self.reserved_by[name][neurons] >= 0).any()):
                raise ValueError(f"task {number} reserves neurons in layer {name!r} that another task has reserved")
        for name, own in positions.items():
            merged, order = torch.cat([self._positions[name], own]).sort()
            owners = torch.cat([self._owners[name], torch.full((own.numel(),), self.tasks, dtype=torch.int16)])
            self._positions[name], self._owners[name] = merged, owners[order]
        for name, neurons in reserved.items():
            self.reserved_by[name][neurons] = self.tasks
            self.reserve_order[name][neurons] = importance[name][neurons].float()
        self.tasks += 1
        return self.tasks - 1

    def release(self, name: str, neurons: Tensor) -> None:
        """Make reserved neurons free again."""
        self.reserved_by[name][neurons] = -1

    def give_back(self, name: str, positions: Tensor) -> Tensor:
        """Strike connections out; connections lost by each task, (tasks,) int64."""
        gone = among(self._positions[name], positions.sort().values)
        lost = torch.bincount(self._owners[name][gone].long(), minlength=self.tasks)
        self._positions[name], self._owners[name] = self._positions[name][~gone], self._owners[name][~gone]
        return lost

    def table(self) -> list[LayerCapacity]:
        """Used, reserved and free, layer by layer."""
        rows = []
        for name, (outputs, inputs) in self.shapes.items():
            used = torch.zeros(outputs, dtype=torch.bool)
            used[self._positions[name] // inputs] = True
            reserved = int((self.reserved_by[name] >= 0).sum())
            by_task = torch.bincount(self._owners[name].long(), minlength=self.tasks).tolist()
            rows.append(
                LayerCapacity(
                    name, outputs, int(used.sum()), reserved, outputs - reserved,
                    outputs * inputs, self._positions[name].numel(), tuple(by_task),
                )
            )  # fmt: skip
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Everything in the books."""
        return {
            "tasks": self.tasks,
            "positions": dict(self._positions),
            "owners": dict(self._owners),
            "reserved_by": dict(self.reserved_by),
            "reserve_order": dict(self.reserve_order),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        if list(state["positions"]) != self.names:
            raise ValueError(f"the saved ledger has layers {list(state['positions'])}, this network {self.names}")
        self.tasks = int(state["tasks"])
        self._positions, self._owners = dict(state["positions"]), dict(state["owners"])
        self.reserved_by = {name: tensor.clone() for name, tensor in state["reserved_by"].items()}
        self.reserve_order = {name: tensor.clone() for name, tensor in state["reserve_order"].items()}
