"""Connectivity as a value: which connections a layer has, and one change from one such set to the next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparse_core.draws import among, sample_distinct

Regrow = Literal["no", "kept", "fresh"]


class Transpose(NamedTuple):
    """The same connections ordered by input: `permutation` takes per-connection data into this order."""

    permutation: Tensor  # (nnz,) int64: transposed order -> topology order
    row_pointer: Tensor  # (in_features + 1,) int64
    columns: Tensor  # (nnz,) int32, the outputs


@dataclass(frozen=True, eq=False)
class Topology:
    """Immutable connectivity of one bipartite layer: compressed rows, sorted, unique, an exact count.

    Rows are outputs and columns inputs, as in torch's `weight`; tensors live on the CPU.
    """

    shape: tuple[int, int]  # (out_features, in_features)
    row_pointer: Tensor  # (out_features + 1,) int64
    columns: Tensor  # (nnz,) int32

    def __post_init__(self) -> None:
        self._check_shape()
        rows, width = self.shape
        pointer, columns = self.row_pointer.numpy(), self.columns.numpy()  # a tenth of the time of torch's small calls
        if pointer.shape != (rows + 1,) or pointer[0] != 0 or pointer[-1] != self.nnz or (np.diff(pointer) < 0).any():
            raise ValueError(
                f"`row_pointer` does not describe {self.nnz} connections in {rows} rows; rebuild the topology"
            )
        if self.nnz and (columns.min() < 0 or columns.max() >= width):
            raise ValueError(f"`columns` must lie in [0, {width}); rebuild the topology")
        falls = np.flatnonzero(columns[1:] <= columns[:-1]) + 1
        if (pointer[np.searchsorted(pointer, falls)] != falls).any():  # only from one row to the next
            raise ValueError("connections must be sorted and unique within each row; rebuild the topology")

    def _check_shape(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"a topology needs at least one output and one input, got shape {self.shape}")

    @classmethod
    def from_positions(cls, shape: tuple[int, int], positions: Tensor) -> Topology:
        """The topology with these flat positions row · in_features + column (int64, ascending, unique)."""
        rows, width = shape
        positions = positions.to("cpu", torch.int64, copy=True)
        flat = positions.numpy()
        if flat.size and (flat.min() < 0 or flat.max() >= rows * width):
            raise ValueError(f"positions must lie in [0, {rows * width}) for shape {shape}")
        if (flat[1:] <= flat[:-1]).any():
            raise ValueError("positions must be ascending and unique; pass `positions.unique()`")
        row_pointer = np.searchsorted(flat, np.arange(rows + 1) * width)
        columns = (flat % width).astype(np.int32)
        topology = cls.__new__(cls)  # what follows from checked positions needs no second check
        vars(topology).update(
            shape=shape,
            row_pointer=torch.from_numpy(row_pointer),
            columns=torch.from_numpy(columns),
            positions=positions,  # as the cached property would
        )
        topology._check_shape()
        return topology

    @classmethod
    def from_mask(cls, mask: Tensor) -> Topology:
        """The topology whose connections are where a 2-D mask is not zero."""
        return cls.from_positions((mask.shape[0], mask.shape[1]), mask.flatten().nonzero().squeeze(1))

    @classmethod
    def full(cls, shape: tuple[int, int]) -> Topology:
        """Every connection present."""
        return cls.from_positions(shape, torch.arange(shape[0] * shape[1]))

    @classmethod
    def random(cls, shape: tuple[int, int], nnz: int, generator: torch.Generator) -> Topology:
        """Exactly `nnz` connections, uniform over all such topologies; never an out × in array."""
        return cls.from_positions(shape, sample_distinct(shape[0] * shape[1], nnz, generator))

    @property
    def nnz(self) -> int:
        """Number of connections, exact."""
        return self.columns.numel()

    @property
    def density(self) -> float:
        """Connections present / connections possible."""
        return self.nnz / (self.shape[0] * self.shape[1])

    @property
    def fan_in(self) -> Tensor:
        """Connections into each output, (out_features,) int64."""
        return self.row_pointer.diff()

    @property
    def fan_out(self) -> Tensor:
        """Connections out of each input, (in_features,) int64."""
        return torch.bincount(self.columns, minlength=self.shape[1])

    @property
    def rows(self) -> Tensor:
        """Output of each connection, (nnz,) int32."""
        return torch.from_numpy(np.repeat(np.arange(self.shape[0], dtype=np.int32), self.fan_in.numpy()))

    @cached_property
    def positions(self) -> Tensor:
        """Flat position row · in_features + column of each connection, (nnz,) int64, ascending."""
        return self.rows.long() * self.shape[1] + self.columns

    @cached_property
    def transpose(self) -> Transpose:
        """The same connections by input; built once, O(nnz log nnz)."""
        permutation = torch.sort(self.columns, stable=True).indices
        pointer = torch.cat([torch.zeros(1, dtype=torch.int64), self.fan_out.cumsum(0)])
        return Transpose(permutation, pointer, self.rows[permutation])

    def widened(self, factor: int) -> Topology:
        """Each connection as `factor` adjacent ones: shape (out_features, in_features · factor)."""
        if factor == 1:
            return self
        columns = (self.columns[:, None] * factor + torch.arange(factor, dtype=torch.int32)).flatten()
        return Topology((self.shape[0], self.shape[1] * factor), self.row_pointer * factor, columns)

    def to_mask(self) -> Tensor:
        """A dense boolean mask, for people and tests."""
        mask = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.bool)
        mask[self.positions] = True
        return mask.view(self.shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Topology):
            return NotImplemented
        return self.shape == other.shape and torch.equal(self.positions, other.positions)

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: object) -> Topology:
        return self


@dataclass(frozen=True, eq=False)
class Rewiring:
    """One change of a layer's movable connections, as a value that every follower applies alike."""

    shape: tuple[int, int]
    before: Tensor  # (n,) int64 flat positions
    after: Tensor  # (m,) int64 flat positions
    source: Tensor  # (m,) int64: index into `before`, or -1 for a new connection
    dropped: Tensor  # flat positions that are gone
    grown: Tensor  # flat positions that are new (a regrown one counts as grown only if `fresh`)

    @classmethod
    def of(cls, shape: tuple[int, int], before: Tensor, drop: Tensor, grow: Tensor, regrow: Regrow = "no") -> Rewiring:
        """Drop the connections with these indices into `before`, grow these flat positions.

        A position both dropped and grown keeps its value and state with `regrow="kept"`, starts anew
        with `"fresh"`, and is an error with `"no"`.
        """
        keep = torch.ones(before.numel(), dtype=torch.bool)
        keep[drop] = False
        dropped = before[drop]
        regrown = among(grow, dropped.sort().values)
        if regrow == "no" and bool(regrown.any()):
            raise ValueError("a connection was dropped and grown in one change; allow it with `regrow`, or exclude it")
        if regrow == "kept":
            keep[torch.searchsorted(before, grow[regrown])] = True
            grow, dropped = grow[~regrown], before[~keep]
        kept = keep.nonzero().squeeze(1)
        after, order = torch.cat([before[kept], grow]).sort()
        source = torch.cat([kept, kept.new_full((grow.numel(),), -1)])[order]
        return cls(shape, before, after, source, dropped, grow)

    def carry(self, tensor: Tensor, fill: float = 0.0) -> Tensor:
        """Per-connection data (n, …) in the order after the change (m, …), new connections at `fill`."""
        source = self.source.to(tensor.device)
        new = source < 0
        if not tensor.shape[0]:
            return tensor.new_full((source.numel(), *tensor.shape[1:]), fill)
        return tensor.index_select(0, source.clamp(min=0)).index_fill(0, new.nonzero().squeeze(1), fill)
