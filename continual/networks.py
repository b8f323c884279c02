"""A chain of sparse layers that starts without a connection: each task brings its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from continual.normalisation import NORMS, TaskNorm
from sparse_core import SparseLinear, Topology, sparse_layers
from sparse_core.conv import SparseConv2d
from sparse_core.draws import among


class SubspaceNetwork(nn.Module):
    """Sparse layers in a chain without connections, one output per class: perceptron or convolutional network.

    Strategies give each task connections of its own and freeze them when the task ends. In a convolution
    a neuron is a channel and a connection a whole kernel (SpaceNet, arXiv:2007.07617).

    Args:
        inputs: features of a flattened sample; for convolutions its shape (channels, height, width).
        hidden: neurons of each hidden layer.
        units: outputs: one per class (single head), or one per task and class (multi-head).
        channels: channels of 3×3 convolutions before the hidden layers, each with a 2×2 max-pooling after it.
        norm: `"none"`, or `"batch"` for batch normalisation before each activation; see `TaskNorm`.
        backend: what multiplies; see `SparseLinear`.
        dtype: of all values.
    """

    def __init__(
        self,
        inputs: int | Sequence[int],
        hidden: Sequence[int],
        units: int,
        *,
        channels: Sequence[int] = (),
        norm: str = "none",
        backend: str = "csr",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
        if min(*shape, units, *hidden, *channels) < 1 or not hidden:
            raise ValueError(f"`inputs`, `hidden` and `units` must be positive, got {inputs}, {list(hidden)}, {units}")
        if channels and len(shape) != 3:
            raise ValueError(f"`channels` need `inputs` as (channels, height, width), got {inputs!r}")
        if norm not in NORMS:
            raise ValueError(f"`norm` must be one of {', '.join(NORMS)}, got {norm!r}")
        self.inputs, self.hidden, self.units = inputs, tuple(hidden), units
        self.channels, self.norm = tuple(channels), norm
        layers: list[SparseLinear] = []
        for fan_out in channels:
            layers.append(_empty_conv(shape[0], fan_out, dtype))
            shape = (fan_out, shape[1] // 2, shape[2] // 2)
        if min(shape) < 1:
            raise ValueError(f"images of {inputs} are too small for {len(channels)} poolings; take fewer `channels`")
        for fan_in, fan_out in pairwise([math.prod(shape), *hidden, units]):
            layers.append(_empty_layer(fan_in, fan_out, backend, dtype))
        self.layers = nn.ModuleList(layers)
        neurons = [*channels, *hidden]
        self.norms = nn.ModuleList(TaskNorm(count).to(dtype) for count in neurons if norm == "batch")

    @property
    def chain(self) -> dict[str, SparseLinear]:
        """The sparse layers by name, from the first to the output layer."""
        return sparse_layers(self)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each layer; of a convolution, in channels."""
        return {name: layer.shape for name, layer in self.chain.items()}

    @property
    def upstream(self) -> dict[str, str]:
        """For each layer but the first, the one it reads."""
        return {after: before for before, after in pairwise(self.chain)}

    @property
    def places(self) -> dict[str, int]:
        """How often each layer is applied to one sample: a convolution at every pixel of its output, others once."""
        sides = [] if isinstance(self.inputs, int) else [int(side) for side in self.inputs[1:]]
        counts = {}
        for index, name in enumerate(self.chain):
            counts[name] = math.prod(sides) if index < len(self.channels) else 1
            sides = [side // 2 for side in sides]
        return counts

    @property
    def norm_of(self) -> dict[str, TaskNorm]:
        """The normalisation after each hidden layer, by the layer's name; empty without."""
        return {name: norm for name, norm in zip(self.chain, self.norms, strict=False) if isinstance(norm, TaskNorm)}

    def forward(self, x: Tensor) -> Tensor:
        """Samples (B, …) to logits (B, units)."""
        logits: Tensor = self.layers[-1](self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Activations (B, neurons) of the last hidden layer."""
        *_, last = self.activations(x)
        return last

    def activations(self, x: Tensor) -> Iterator[Tensor]:
        """Activations of each hidden layer in turn: (B, neurons), of a convolution (B, channels, height, width)."""
        first = self.layers[0].values
        assert isinstance(first, Tensor)
        x = x.to(first.dtype)
        for index, layer in enumerate(list(self.layers)[:-1]):
            convolutional = index < len(self.channels)
            x = layer(x if convolutional else x.flatten(1))
            if len(self.norms):
                x = self.norms[index](x)
            x = torch.relu(x)
            if convolutional:
                x = max_pool2d(x, 2)
            yield x

    def empty_copy(self) -> Self:
        """A network of the same layers without a connection."""
        output = self.layers[-1]  # the first may be a convolution, whose backend is always the same
        assert isinstance(output, SparseLinear)
        copy = type(self)(
            self.inputs, self.hidden, self.units, channels=self.channels, norm=self.norm, backend=output.backend,
            dtype=output.values.dtype,
        )  # fmt: skip
        return copy.to(output.values.device)


def _empty_layer(fan_in: int, fan_out: int, backend: str, dtype: torch.dtype | None) -> SparseLinear:
    topology = Topology.from_positions((fan_out, fan_in), torch.empty(0, dtype=torch.int64))
    layer = SparseLinear(
        fan_in, fan_out, topology=topology, backend=backend, dtype=dtype, generator=torch.Generator()
    )  # fmt: skip
    return _with_zero_biases(layer)


def _empty_conv(fan_in: int, fan_out: int, dtype: torch.dtype | None) -> SparseLinear:
    topology = Topology.from_positions((fan_out, fan_in), torch.empty(0, dtype=torch.int64))
    layer = SparseConv2d(
        fan_in, fan_out, 3, padding=1, unit="kernel", topology=topology, backend="gemm", dtype=dtype,
        generator=torch.Generator(),
    )  # fmt: skip
    return _with_zero_biases(layer)


def _with_zero_biases(layer: SparseLinear) -> SparseLinear:
    with torch.no_grad():
        assert layer.bias is not None
        layer.bias.zero_()
    return layer


class Connections(NamedTuple):
    """Some connections of one layer, ascending by flat position."""

    positions: Tensor  # (n,) int64
    values: Tensor  # (n,)

    def restricted(self, positions: Tensor) -> Connections:
        """Those among `positions` (ascending)."""
        inside = among(self.positions, positions)
        return Connections(self.positions[inside], self.values[inside])


def merged(parts: Iterable[Connections]) -> Connections:
    """Disjoint connections put together."""
    positions, values = zip(*parts, strict=True)
    ascending, order = torch.cat(positions).long().sort()
    return Connections(ascending, torch.cat(values)[order.to(values[0].device)])


def frozen_connections(layer: SparseLinear) -> Connections:
    """The frozen connections of a layer, copied."""
    return Connections(layer.frozen_positions.cpu().clone(), layer.frozen_values.clone())


def movable_connections(layer: SparseLinear) -> Connections:
    """The movable connections of a layer, copied."""
    return Connections(layer.positions.cpu().clone(), layer.values.detach().clone())


@torch.no_grad()
def connect(
    layer: SparseLinear, frozen: Connections, movable: Connections, bias: Tensor, frozen_bias: Tensor | None = None
) -> None:
    """Give a layer exactly these connections and biases (outputs,); `frozen_bias`: outputs whose bias is frozen.

    Parameters stay the same objects; optimizer state and captures are the caller's to clear.
    """
    device = layer.values.device
    positions = torch.cat([frozen.positions, movable.positions]).sort().values
    topology = Topology.from_positions(layer.shape, positions)
    fixed = torch.zeros(topology.shape[0], dtype=torch.bool)
    if frozen_bias is not None:
        fixed[frozen_bias] = True
    bias = bias.cpu()
    layer.values.grad = None
    assert layer.bias is not None
    layer.bias.grad = None
    content = {
        "values": movable.values,
        "bias": bias[~fixed],
        "row_pointer": topology.row_pointer,
        "columns": topology.columns,
        "frozen": torch.searchsorted(positions, frozen.positions).to(torch.int32),
        "frozen_values": frozen.values,
        "frozen_bias": fixed.nonzero().squeeze(1).to(torch.int32),
        "frozen_bias_values": bias[fixed],
    }
    layer.load_state_dict({name: tensor.to(device) for name, tensor in content.items()})


def all_biases(layer: SparseLinear) -> Tensor:
    """All biases (outputs,) on the CPU, movable and frozen."""
    bias = layer.effective_bias()
    assert bias is not None
    return bias.detach().cpu().clone()
