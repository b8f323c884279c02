"""What a sparse model has and costs: exact counts, bytes and arithmetic; pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.optim import Optimizer

from sparse_core.backends import BACKENDS
from sparse_core.conv import SparseConv2d
from sparse_core.draws import among
from sparse_core.layers import SparseLinear, sparse_layers
from sparse_core.topology import Topology


@dataclass(frozen=True)
class LayerCount:
    """One weight matrix: weights that multiply, weights possible; a connection is one, or a whole kernel of them."""

    nnz: int
    cells: int
    stored: int | None = None
    """Weights kept, where that is more than multiply (top-kast): what is executed; None: as many."""


def layer_counts(model: nn.Module) -> dict[str, LayerCount]:
    """Every weight matrix of a model by name and in its order: sparse layers, and parameters of two or more axes."""
    counts: dict[str, LayerCount] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            stored = None if module.masking is None else module.nnz
            counts[name] = LayerCount(module.multiplied, module.cells, stored)
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and id(parameter) not in seen:
                seen.add(id(parameter))
                label = f"{name}.{own}".removeprefix(".").removesuffix(".weight")
                counts[label] = LayerCount(parameter.numel(), parameter.numel())
    return counts


def nnz(model: nn.Module) -> int:
    """Weights that multiply, of all weight matrices, dense ones included, biases not; exact."""
    return sum(count.nnz for count in layer_counts(model).values())


def stored(model: nn.Module) -> int:
    """Weights kept, of all weight matrices: more than `nnz` where a masking multiplies some of them alone."""
    return sum(count.nnz if count.stored is None else count.stored for count in layer_counts(model).values())


def sparsity(model: nn.Module) -> float:
    """1 - weights that multiply / weights possible, over all weight matrices; 0.0 for a model without any."""
    counts = layer_counts(model).values()
    cells = sum(count.cells for count in counts)
    return 1 - sum(count.nnz for count in counts) / cells if cells else 0.0


def density(model: nn.Module) -> float:
    """1 - sparsity."""
    return 1 - sparsity(model)


@dataclass(frozen=True)
class Bytes:
    """Memory of a model in training, in bytes."""

    parameters: int
    """Values, biases, dense weights, frozen values."""
    gradients: int
    optimizer: int
    indices: int
    """Integer buffers: where the connections are."""
    scratch: int
    """Dense scratch that the layers' backends hold at their peak in one forward and backward pass.

    Patches, from which `csr` and `rows` make convolutions, are not in it: they are activations, as large as images are.
    """

    @property
    def total(self) -> int:
        """All of them together."""
        return sum(asdict(self).values())


def memory(*models: nn.Module, optimizers: tuple[Optimizer, ...] = ()) -> Bytes:
    """Bytes that models and their optimizers hold now, and the scratch their layers use."""
    parameters = gradients = indices = 0
    # What an optimizer has stepped had a gradient, and will again: one just restored has it not yet.
    trained = {parameter for optimizer in optimizers for parameter in optimizer.state}
    scratch: list[tuple[int, int]] = []
    for model in models:
        for parameter in model.parameters():
            parameters += parameter.nbytes
            gradients += parameter.nbytes if parameter.grad is not None or parameter in trained else 0
        for buffer in model.buffers():
            if buffer.dtype.is_floating_point:
                parameters += buffer.nbytes
            else:
                indices += buffer.nbytes
        for layer in sparse_layers(model).values():
            indices += sum(own.nbytes for name, own in layer.derived.items() if name not in layer._buffers)
            scratch.append(BACKENDS[layer.backend].scratch(layer))
    state = sum(
        tensor.nbytes
        for optimizer in optimizers
        for entry in optimizer.state.values()
        for tensor in entry.values()
        if isinstance(tensor, Tensor)
    )
    peak = sum(held for held, _ in scratch) + max((passing for _, passing in scratch), default=0)
    return Bytes(parameters, gradients, state, indices, peak)


@dataclass(frozen=True)
class Use:
    """What one sample asks of one weight matrix."""

    applications: int
    """How often it is applied: once in a perceptron, H'·W' times in a convolution."""
    inputs: int
    """Numbers that come in."""
    outputs: int


def uses(model: nn.Module, sample: Tensor | None = None) -> dict[str, Use]:
    """What one sample asks of each weight matrix in `layer_counts`, by the same names.

    Args:
        model: is not changed: a copy runs, in evaluation mode.
        sample: a batch of inputs, (B, …). Without one every matrix counts as applied once, which is wrong for
            convolutions, and so an error. A matrix that no linear layer or convolution holds (of an attention, an
            embedding) counts as applied once in any case.

    Raises:
        ValueError: for a model with convolutions and no sample.
    """
    once = {name: Use(1, 0, 0) for name in layer_counts(model)}
    if sample is not None:
        return once | _watched(model, sample, list(once))
    appliers = _appliers(model)
    convolutions = [name for name, module in appliers.items() if isinstance(module, (SparseConv2d, _ConvNd))]
    if convolutions:
        raise ValueError(
            f"how often {', '.join(convolutions)} is applied depends on the size of the images; give a `sample`"
        )
    return once | {
        name: Use(1, module.in_features, module.out_features)
        for name, module in appliers.items()
        if name in once and isinstance(module, (SparseLinear, nn.Linear))
    }


def _appliers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and convolutions by the names that `layer_counts` gives their weights."""
    return {
        # The weight of a dense layer that is the whole model has no other name than its own.
        name or ("" if isinstance(module, SparseLinear) else "weight"): module
        for name, module in model.named_modules()
        if isinstance(module, (SparseLinear, nn.Linear, _ConvNd))
    }


def _watched(model: nn.Module, sample: Tensor, names: Sequence[str]) -> dict[str, Use]:
    """One forward pass of a copy, watched layer by layer; a layer that is not called counts nothing."""
    twin, batch = deepcopy(model).eval(), sample.shape[0]
    watched = {name: module for name, module in _appliers(twin).items() if name in names}
    found = {name: Use(0, 0, 0) for name in watched}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            given, numbers = inputs[0].numel() // batch, output.numel() // batch
            # A transposed convolution applies its weights at each position of its input.
            at, channels = (given, "in") if isinstance(module, _ConvTransposeNd) else (numbers, "out")
            size = getattr(module, f"{channels}_channels", None) or getattr(module, f"{channels}_features")
            before = found[name]
            found[name] = Use(before.applications + at // size, before.inputs + given, before.outputs + numbers)

        return note

    for name, module in watched.items():
        module.register_forward_hook(watch(name))
    with torch.no_grad():
        twin(sample)
    return found


Weights = Mapping[str, float] | None
"""Weights of some matrices, by their names in `layer_counts`, in the place of those that a model has now."""


def forward_flops(model: nn.Module, sample: Tensor | None = None, weights: Weights = None) -> int:
    """Multiplications and additions of one sample's forward pass, 2 per weight and application; biases not counted.

    A model with convolutions needs a `sample` (see `uses`). `weights` may be averages over training
    (`Sparsifier.mean_weights`), where their number changes. A masked layer executes all the weights that it keeps.
    """
    return sum(_flops(model, sample, weights).values())


def training_flops(model: nn.Module, sample: Tensor | None = None, weights: Weights = None) -> int:
    """One sample's forward and backward pass: 3 forwards less the first layer's input gradient, which nobody needs."""
    flops = list(_flops(model, sample, weights).values())
    return 3 * sum(flops) - (flops[0] if flops else 0)


def _flops(model: nn.Module, sample: Tensor | None, weights: Weights) -> dict[str, int]:
    asked, given = uses(model, sample), weights or {}
    counts = layer_counts(model)
    executed = {
        name: given.get(name, each.nnz) if each.stored is None else each.stored for name, each in counts.items()
    }
    return {name: round(2 * count * asked[name].applications) for name, count in executed.items()}


def growth_flops(model: nn.Module, batch: int, sample: Tensor | None = None, dense: bool = True) -> int:
    """One change that looks at gradients: of every sparse layer for a batch, 2·B·N per application.

    A method that looks at as many as there are connections (`dense=False`: MEST, GSE) needs 2·B·n.
    """
    asked = uses(model, sample)
    return sum(
        2 * batch * (layer.cells if dense else layer.nnz) * asked[name].applications
        for name, layer in sparse_layers(model).items()
    )


def capture_bytes(model: nn.Module, batch: int, sample: Tensor | None = None) -> int:
    """Inputs and output gradients of `batch` samples that gradient growth keeps for every sparse layer."""
    asked = uses(model, sample)
    return sum(
        batch * (asked[name].inputs + asked[name].outputs) * layer.values.element_size()
        for name, layer in sparse_layers(model).items()
    )


def topology_distance(first: Topology, second: Topology) -> float:
    """Share of connections that only one of two topologies has, |A Δ B| / |A ∪ B|: 0 equal, 1 disjoint."""
    if first.shape != second.shape:
        raise ValueError(f"topologies of one shape are compared, got {first.shape} and {second.shape}")
    common = int(among(first.positions, second.positions).sum())
    union = first.nnz + second.nnz - common
    return (union - common) / union if union else 0.0


def degrees(layer: SparseLinear) -> dict[str, Tensor]:
    """Connections that multiply per output (`fan_in`) and per input (`fan_out`), int64."""
    topology = layer.active_topology
    return {"fan_in": topology.fan_in, "fan_out": topology.fan_out}
