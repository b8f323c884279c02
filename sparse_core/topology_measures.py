"""Measures of topologies: how far apart two networks are, how much was explored, how much gradient arrives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparse_core.activity import chain_of
from sparse_core.draws import among
from sparse_core.layers import SparseLinear, sparse_layers
from sparse_core.topology import Rewiring, Topology

BLOCK_ROWS = 512  # of a matrix of overlaps at a time
DENSE_CELLS = 2**26  # of the larger side, at most, where overlaps are a dense product
DENSE_IS_FASTER = 100  # multiplications of a dense product in the time of one of a sparse product


class NetworkDistance(NamedTuple):
    """How far apart two networks' topologies are: 0 for the same up to an order of neurons, 1 for nothing in common."""

    mean: float
    """Over the layers."""
    layers: dict[str, float]
    """Of each layer, the mean over its neurons."""


def topologies(model: nn.Module) -> dict[str, Topology]:
    """The topology of every sparse layer by the layer's name, as it is now."""
    return {name: layer.active_topology for name, layer in sparse_layers(model).items()}


def network_distance(
    a: nn.Module | Mapping[str, Topology], b: nn.Module | Mapping[str, Topology], *, linear: bool = False
) -> NetworkDistance:
    """Distance of two networks' sparse topologies, whatever the order of their neurons (NNSTD, arXiv:2006.14085).

    A neuron of one network is held against one of the other by their sets of inputs A and B: (|A - B| + |B - A|) /
    |A ∪ B|, and 0 where both are empty. In each layer neurons are paired so that the sum is least (Hungarian method);
    the layer that reads them (`activity.chain_of`) then sees the second network's neurons in the first one's order.
    Inputs of a first layer keep their places. A layer with n outputs takes 8 n² bytes, and for n = 4096 seconds.

    Args:
        a: a model with sparse layers, or the topology of each layer by its name, from inputs to outputs.
        b: another of the same layers.
        linear: of topologies: whether none is a convolution's, so that each output feeds one input. Models know.

    Raises:
        ValueError: for networks without sparse layers, or whose layers have other names or shapes.
    """
    ones, others = (topologies(given) if isinstance(given, nn.Module) else given for given in (a, b))
    shapes = [{name: topology.shape for name, topology in given.items()} for given in (ones, others)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(
            f"two networks with the same sparse layers can be compared, got (outputs, inputs) {shapes[0]} and "
            f"{shapes[1]}; give models of one architecture, or topologies under the same names"
        )
    models = [sparse_layers(given) for given in (a, b) if isinstance(given, nn.Module)]
    above = chain_of(models[0] if models else ones, linear)
    places, layers = dict[str, NDArray[np.int64]](), dict[str, float]()
    for name, topology in ones.items():
        mine, other = adjacency(topology), adjacency(others[name])
        if name in above:
            taps = topology.shape[1] // ones[above[name]].shape[0]
            columns = other.indices.astype(np.int64)
            other.indices = places[above[name]][columns // taps] * taps + columns % taps
        places[name], layers[name] = _matched(_distances(mine, other))
    return NetworkDistance(float(np.mean([*layers.values()])), layers)


def adjacency(topology: Topology) -> Any:
    """A topology as a SciPy sparse matrix of ones (outputs, inputs)."""
    from scipy import sparse

    ones = np.ones(topology.nnz, np.float32)
    parts = (ones, topology.columns.numpy().astype(np.int64), topology.row_pointer.numpy().astype(np.int64))
    return sparse.csr_array(parts, shape=topology.shape)


def overlaps(one: Any, other: Any) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Blocks of rows of `one @ other.T`, dense: how many columns two rows of sparse matrices of ones share."""
    work = float(one.sum(axis=0, dtype=np.float64) @ other.sum(axis=0, dtype=np.float64))
    dense = one.shape[0] * other.shape[0] * one.shape[1] < DENSE_IS_FASTER * work
    dense = dense and other.shape[0] * other.shape[1] <= DENSE_CELLS
    against = other.T.toarray() if dense else other.T.tocsr()
    for start in range(0, one.shape[0], BLOCK_ROWS):
        rows = one[start : start + BLOCK_ROWS]
        yield slice(start, start + rows.shape[0]), rows.toarray() @ against if dense else (rows @ against).toarray()


def _distances(one: Any, other: Any) -> NDArray[np.float64]:
    """The normalised edit distance of each neuron of one layer from each of the other, (n, n)."""
    found = np.empty((one.shape[0], other.shape[0]))
    fan_in = [np.diff(each.indptr).astype(np.float64) for each in (one, other)]
    for rows, shared in overlaps(one, other):
        either = fan_in[0][rows, None] + fan_in[1] - shared
        found[rows] = np.where(either > 0, 1 - shared / np.maximum(either, 1), 0)
    return found


def _matched(distances: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """For each neuron of the second layer its place in the first, and the mean distance, the least there is."""
    from scipy.optimize import linear_sum_assignment

    mine, other = linear_sum_assignment(distances)
    places = np.empty_like(mine)
    places[other] = mine
    return places, float(distances[mine, other].mean())


def in_time_overparameterisation(explored: dict[str, Tensor], rewirings: Mapping[str, Rewiring]) -> float:
    """Share of possible positions that ever held a connection after one more change (R_s of ITOP, arXiv:2102.02887).

    Args:
        explored: by layer, flat positions that ever held a connection, ascending; takes in those of the change. A
            layer that is not in it begins with its connections before the change.
        rewirings: the change, as `Sparsifier.step` returns it; the share is over its layers. Ask at steps with a
            change: of none there is no share, and this is 0.
    """
    cells = 0
    for name, change in rewirings.items():
        known = explored.get(name, change.before)
        explored[name] = torch.cat([known, change.grown[~among(change.grown, known)]]).sort().values
        cells += change.shape[0] * change.shape[1]
    return sum(explored[name].numel() for name in rewirings) / max(cells, 1)


@torch.no_grad()
def gradient_flow(model: nn.Module) -> dict[str, float]:
    """Squared norm of the last gradient at each layer's connections, by the layer's name (arXiv:2010.03533).

    Of sparse layers movable connections, of dense ones all weights; biases and normalisations are left out, and so
    are layers without gradient. Ask between `loss.backward()` and `zero_grad`.

    Raises:
        ValueError: where no layer has a gradient.
    """
    gradients = {
        name: weights.grad for name, weights in layer_weights(model).items() if weights.grad is not None
    }  # fmt: skip
    if not gradients:
        raise ValueError(
            "gradient flow wants a model that has gradients, got one without; call it after `loss.backward()` and "
            "before the gradients are cleared"
        )
    return squared_norms(gradients)


def layer_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameter that holds each layer's connections, by the layer's name, layers without movable ones left out."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            found[name] = module.values
        elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            found[name] = module._parameters.get("weight")  # None where it is parametrized
    return {name: own for name, own in found.items() if own is not None and own.requires_grad and own.numel()}


def squared_norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The sum of squares of each, taken from the device at once."""
    found = torch.stack([tensor.double().square().sum() for tensor in tensors.values()]).tolist()
    return dict(zip(tensors, found, strict=True))


def effective_gradient_flow(flow: Mapping[str, float]) -> float:
    """Mean over layers of the gradient's norm at connections, of what `gradient_flow` gave (EGF, arXiv:2102.01670).

    Unlike the norm of the whole gradient it does not let one wide layer speak for all.
    """
    return float(np.mean(np.sqrt([*flow.values()])))
