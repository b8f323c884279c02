"""What a sparse model has and costs: exact counts, bytes and arithmetic; pure functions."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_core.backends import BACKENDS
from sparse_core.draws import among
from sparse_core.layers import SparseLinear, sparse_layers
from sparse_core.topology import Topology


@dataclass(frozen=True)
class LayerCount:
    """One weight matrix: connections present, connections possible."""

    nnz: int
    cells: int


def layer_counts(model: nn.Module) -> dict[str, LayerCount]:
    """Every weight matrix of a model by name and in its order: sparse layers, and parameters of two or more axes."""
    counts: dict[str, LayerCount] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            counts[name] = LayerCount(module.nnz, module.in_features * module.out_features)
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and id(parameter) not in seen:
                seen.add(id(parameter))
                label = f"{name}.{own}".removeprefix(".").removesuffix(".weight")
                counts[label] = LayerCount(parameter.numel(), parameter.numel())
    return counts


def nnz(model: nn.Module) -> int:
    """Connections of all weight matrices, dense ones included, biases not; exact."""
    return sum(count.nnz for count in layer_counts(model).values())


def sparsity(model: nn.Module) -> float:
    """1 - connections / connections possible, over all weight matrices; 0.0 for a model without any."""
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
    """Dense scratch that the layers' backends hold at their peak in one forward and backward pass."""

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
        scratch += [BACKENDS[layer.backend].scratch(layer) for layer in sparse_layers(model).values()]
    state = sum(
        tensor.nbytes
        for optimizer in optimizers
        for entry in optimizer.state.values()
        for tensor in entry.values()
        if isinstance(tensor, Tensor)
    )
    peak = sum(held for held, _ in scratch) + max((passing for _, passing in scratch), default=0)
    return Bytes(parameters, gradients, state, indices, peak)


def forward_flops(model: nn.Module) -> int:
    """Multiplications and additions of one sample's forward pass, 2 per connection; biases not counted."""
    return 2 * nnz(model)


def training_flops(model: nn.Module) -> int:
    """One sample's forward and backward pass: 3 forwards less the first layer's input gradient, which nobody needs."""
    counts = list(layer_counts(model).values())
    return 3 * forward_flops(model) - (2 * counts[0].nnz if counts else 0)


def growth_flops(model: nn.Module, batch: int) -> int:
    """One gradient-guided change: the dense gradient of every sparse layer for a batch, 2·B·N."""
    return sum(2 * batch * layer.in_features * layer.out_features for layer in sparse_layers(model).values())


def capture_bytes(model: nn.Module, batch: int) -> int:
    """Inputs and output gradients of `batch` samples that gradient growth keeps for every sparse layer."""
    return sum(
        batch * (layer.in_features + layer.out_features) * layer.values.element_size()
        for layer in sparse_layers(model).values()
    )


def topology_distance(first: Topology, second: Topology) -> float:
    """Share of connections that only one of two topologies has, |A Δ B| / |A ∪ B|: 0 equal, 1 disjoint."""
    if first.shape != second.shape:
        raise ValueError(f"topologies of one shape are compared, got {first.shape} and {second.shape}")
    common = int(among(first.positions, second.positions).sum())
    union = first.nnz + second.nnz - common
    return (union - common) / union if union else 0.0


def degrees(layer: SparseLinear) -> dict[str, Tensor]:
    """Connections per output (`fan_in`) and per input (`fan_out`), int64."""
    topology = layer.topology
    return {"fan_in": topology.fan_in, "fan_out": topology.fan_out}
