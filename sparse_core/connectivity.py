"""What a sparse layer stores: values and integer indices, movable and frozen, and how these change."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sparse_core.draws import among
from sparse_core.maskings import Masking
from sparse_core.topology import Rewiring, Topology

_PERSISTENT = (
    "values", "bias", "row_pointer", "columns", "frozen", "frozen_values", "frozen_bias", "frozen_bias_values",
)  # fmt: skip


class Connectivity(nn.Module):
    """The connections of one layer; `SparseLinear` makes them and multiplies by them.

    `values` is a 1-D parameter, one entry per movable connection in the topology's order (of
    `connection_shape` each); indices are buffers. Frozen connections and biases are buffers, too.
    """

    values: Tensor
    bias: Tensor | None
    row_pointer: Tensor
    columns: Tensor
    frozen: Tensor
    frozen_values: Tensor
    bias_outputs: Tensor
    frozen_bias: Tensor
    frozen_bias_values: Tensor
    in_features: int
    out_features: int
    connection_shape: tuple[int, ...]
    masking: Masking | None

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features): of the topology."""
        return self.out_features, self.in_features

    @property
    def weights_per_connection(self) -> int:
        """How many weights one connection has: 1, but for convolutions whose connections are whole kernels."""
        return math.prod(self.connection_shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns) of the dense matrix of its weights: `shape`, with each connection as wide as its weights."""
        return self.out_features, self.in_features * self.weights_per_connection

    @property
    def connections(self) -> int:
        """Connections, movable and frozen: the topology's count."""
        return self.columns.numel()

    @property
    def nnz(self) -> int:
        """Weights present, movable and frozen: connections × weights per connection."""
        return self.connections * self.weights_per_connection

    @property
    def cells(self) -> int:
        """Weights that would be possible."""
        return math.prod(self.matrix_shape)

    @property
    def sparsity(self) -> float:
        """Share of possible weights that are absent."""
        return 1 - self.nnz / self.cells

    @property
    def topology(self) -> Topology:
        """A snapshot of the connectivity, movable and frozen together, on the CPU."""
        return Topology(self.shape, self.row_pointer.cpu().clone(), self.columns.cpu().clone())

    @property
    def positions(self) -> Tensor:
        """Flat positions of the movable connections, (n,) int64, ascending; kept by `gemm`, else worked out."""
        kept = getattr(self, "gemm_positions", None)
        return self.split_positions()[0] if kept is None else kept

    @property
    def frozen_positions(self) -> Tensor:
        """Flat positions of the frozen connections, int64, ascending."""
        kept = getattr(self, "gemm_frozen_positions", None)
        return self.split_positions()[1] if kept is None else kept

    def effective_bias(self) -> Tensor | None:
        """All biases (out_features,), movable and frozen merged; None without bias."""
        if self.bias is None or not self.frozen_bias.numel():
            return self.bias
        merged = self.bias.new_zeros(self.out_features).index_copy(0, self.frozen_bias.long(), self.frozen_bias_values)
        return merged.index_copy(0, self.bias_outputs, self.bias)

    @torch.no_grad()
    def rewire(self, rewiring: Rewiring, fill: float = 0.0) -> None:
        """Apply one change: kept connections keep their value, new ones start at `fill`; frozen ones stay.

        In place where the count stays; otherwise `values` takes the new length under the same Parameter.
        """
        if self.masking is not None:
            raise ValueError(
                "a masked layer keeps every connection: none can move; make it sparse with `to_sparse` first"
            )
        if rewiring.shape != self.shape or not torch.equal(rewiring.before, self.positions.cpu()):
            raise ValueError("this change was made for another topology; make a new one from the layer as it is")
        values = rewiring.carry(self.values, fill)
        gradient = None if self.values.grad is None else rewiring.carry(self.values.grad)
        frozen = self.frozen_positions.cpu()
        positions = torch.cat([rewiring.after, frozen]).sort().values if frozen.numel() else rewiring.after
        topology = Topology.from_positions(self.shape, positions)
        assign(self, "columns", topology.columns)
        self.row_pointer.copy_(topology.row_pointer)
        assign(self, "frozen", torch.searchsorted(positions, frozen).to(torch.int32))
        assign(self, "values", values)
        self.values.grad = gradient
        self._index()

    @torch.no_grad()
    def freeze(self, positions: Tensor | None = None, biases: Tensor | None = None) -> tuple[Rewiring, Tensor]:
        """Move connections (flat positions; None: all) and biases (outputs) from parameters to buffers.

        Returns the change of `values` (frozen ones count as dropped) and the indices of the biases that
        stay movable, with which optimizer state follows; `Sparsifier.freeze` does that.
        """
        if self.masking is not None:
            raise ValueError(
                f"a layer masked by {type(self.masking).__name__} cannot freeze part of its connections: what is "
                "multiplied is chosen among all of them; make it sparse with `to_sparse` first"
            )
        movable = self.positions.to("cpu", copy=True)
        positions = movable if positions is None else positions.to("cpu", torch.int64).unique()
        if not bool(among(positions, movable).all()):
            raise ValueError("only movable connections of this layer can be frozen; some positions are not among them")
        if self.bias is not None and biases is not None:
            biases = biases.to(self.bias.device, torch.int64).unique()
            if not bool(torch.isin(biases, self._movable_biases()).all()):
                raise ValueError("only biases that are still movable can be frozen; some outputs are not among them")
        rewiring = Rewiring.of(self.shape, movable, torch.searchsorted(movable, positions), movable.new_empty(0))
        stays = rewiring.source.to(self.values.device)
        merged_positions, order = torch.cat([self.frozen_positions.cpu(), positions]).sort()
        moved = self.values[torch.searchsorted(movable, positions).to(self.values.device)]
        assign(self, "frozen_values", torch.cat([self.frozen_values, moved])[order.to(moved.device)])
        assign(self, "frozen", torch.searchsorted(self.topology.positions, merged_positions).to(torch.int32))
        gradient = self.values.grad
        assign(self, "values", self.values[stays])
        self.values.grad = None if gradient is None else gradient[stays]
        kept_biases = self._freeze_biases(biases)
        self._index()
        return rewiring, kept_biases

    def _freeze_biases(self, outputs: Tensor | None) -> Tensor:
        if self.bias is None:
            return torch.empty(0, dtype=torch.int64)
        movable = self._movable_biases()
        if outputs is None or not outputs.numel():
            return torch.arange(movable.numel())
        stays = (~torch.isin(movable, outputs)).nonzero().squeeze(1)
        frozen, order = torch.cat([self.frozen_bias.long(), outputs]).sort()
        values = torch.cat([self.frozen_bias_values, self.bias[torch.searchsorted(movable, outputs)]])[order]
        gradient = self.bias.grad
        assign(self, "bias", self.bias[stays])
        self.bias.grad = None if gradient is None else gradient[stays]
        assign(self, "frozen_bias", frozen.to(torch.int32))
        assign(self, "frozen_bias_values", values)
        return stays.cpu()

    def _movable_biases(self) -> Tensor:
        movable = torch.ones(self.out_features, dtype=torch.bool, device=self.frozen_bias.device)
        movable[self.frozen_bias.long()] = False
        return movable.nonzero().squeeze(1)

    def split_positions(self) -> tuple[Tensor, Tensor]:
        """Flat positions of movable and of frozen connections, each ascending, worked out from the indices."""
        rows = torch.repeat_interleave(
            torch.arange(self.out_features, device=self.columns.device),
            self.row_pointer.diff(),
            output_size=self.connections,
        )
        positions = rows.mul_(self.in_features).add_(self.columns)
        if not self.frozen.numel():
            return positions, positions.new_empty(0)
        movable = torch.ones(self.connections, dtype=torch.bool, device=positions.device)
        movable[self.frozen.long()] = False
        return positions[movable], positions[~movable]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # The indices tell the outputs, but not the inputs: those of a narrower layer would fit into a wider one.
        if hasattr(destination, "_metadata"):
            own = {"in_features": self.in_features, "weights_per_connection": self.weights_per_connection}
            destination._metadata[prefix[:-1]].update(own)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        *args: Any,
    ) -> None:
        own = {name: tensor for name in _PERSISTENT if (tensor := getattr(self, name)) is not None}
        incoming = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
        if len(incoming) < len(own):  # parts of two topologies do not make one: all or nothing
            missing_keys += [prefix + name for name in own if name not in incoming]
            known = {prefix + name for name in (*_PERSISTENT, *self._modules)}
            unexpected_keys += [
                name for name in state_dict if name.startswith(prefix) and not known & {name, name.rpartition(".")[0]}
            ]
            return
        self._check_origin(prefix[:-1] or "the layer", local_metadata)
        self._check_incoming(prefix, incoming)
        for name, tensor in incoming.items():
            if own[name].shape != tensor.shape:
                assign(self, name, own[name].new_empty(tensor.shape))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, *args)
        self._index()

    def _check_origin(self, name: str, metadata: dict[str, Any]) -> None:
        """Raise for a state of another kind of layer, where it says of what kind."""
        each, inputs = (metadata.get(what, getattr(self, what)) for what in ("weights_per_connection", "in_features"))
        if each != self.weights_per_connection:
            raise ValueError(
                f"{name} has {self.weights_per_connection} weights in a connection, but what is loaded was made with "
                f"{each}; use the same `conv_unit`"
            )
        if inputs != self.in_features:
            raise ValueError(f"{name} has {self.in_features} inputs, but what is loaded was made for {inputs}")

    def _check_incoming(self, prefix: str, incoming: dict[str, Tensor]) -> None:
        """Raise for a damaged or foreign file, before it becomes an index out of bounds."""
        topology = Topology(self.shape, incoming["row_pointer"].cpu(), incoming["columns"].cpu())
        _check_parts(prefix, incoming, "values", "frozen", topology.nnz, self.connection_shape)
        if "bias" in incoming:
            _check_parts(prefix, incoming, "bias", "frozen_bias", self.out_features)

    def _index(self) -> None:
        """Rebuild what follows from the persistent indices."""
        raise NotImplementedError


def _check_parts(
    prefix: str, incoming: dict[str, Tensor], movable: str, frozen: str, total: int, each: tuple[int, ...] = ()
) -> None:
    """Raise unless movable and frozen entries of shape `each` are `total`, and the frozen ones point among them."""
    indices, values = incoming[frozen], incoming[f"{frozen}_values"]
    given, wanted = tuple(incoming[movable].shape), total - indices.numel()
    if given != (wanted, *each):
        of = f" of {each[0]} weights" if each else ""
        raise ValueError(
            f"{prefix}{movable} holds {' × '.join(map(str, given))} values for {wanted} movable connections{of}"
        )
    indices_fit = bool((indices.diff() > 0).all()) and (not len(indices) or 0 <= indices[0] <= indices[-1] < total)
    if values.shape != (*indices.shape, *each) or not indices_fit:
        raise ValueError(
            f"{prefix}{frozen} must hold distinct ascending indices within [0, {total}), one per frozen value"
        )


def assign(layer: Connectivity, name: str, tensor: Tensor) -> None:
    """In place where the length stays, so that storage stays where it is; otherwise under the same object."""
    own = getattr(layer, name)
    device, dtype = own.device, own.dtype
    if own.shape == tensor.shape:
        with torch.no_grad():
            own.copy_(tensor)  # not through `.data`: a backward pass that still needs the old content must notice
    else:
        own.grad = None
        # A graph that is still alive holds on to a gradient accumulator of the old length; torch
        # makes a new one only when the dtype changes, so change it on the way.
        own.data = torch.empty(0, dtype=torch.float32 if own.dtype == torch.float16 else torch.float16, device=device)
        own.data = tensor.detach().to(device, dtype, copy=True)
