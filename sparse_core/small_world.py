"""Small-worldness: whether neighbours meet again more often than in a random topology of the same degrees."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from sparse_core.draws import sample_distinct
from sparse_core.topology import Topology
from sparse_core.topology_measures import overlaps


class SmallWorld(NamedTuple):
    """A topology beside random ones with the same degrees; None where there is nothing to count."""

    sigma: float | None
    """(clustering / that of random ones) / (path length / that of random ones): above 1 for a small world."""
    clustering: float | None
    path_length: float | None
    random_clustering: float | None
    random_path_length: float | None


def small_world(
    layers: Topology | Sequence[Topology],
    generator: torch.Generator,
    *,
    references: int = 4,
    trades: int = 10,
    sources: int = 128,
) -> SmallWorld:
    """Small-worldness σ of a layer, or of a stack of layers as one graph (Humphries & Gurney 2008).

    A network of layers has no triangles: `clustering` is the share of its paths of three connections that a fourth
    closes (Robins & Alexander 2004, doi 10.1023/B:CMOT.0000032580.12184.c0). `path_length` is the mean number of
    connections between two neurons that are joined at all, connections being walked either way.

    Args:
        layers: one topology, or several of which each reads the outputs of the one before.
        generator: draws the random topologies and the sources.
        references: random topologies that are averaged over.
        trades: rounds of `rewired` that make each of them.
        sources: neurons from which distances are measured; all of them where there are no more.

    Raises:
        ValueError: for layers that do not read one another.
    """
    stack = [layers] if isinstance(layers, Topology) else [*layers]
    sizes = [(above.shape[0], below.shape[1]) for above, below in pairwise(stack)]
    if not stack or any(outputs != inputs for outputs, inputs in sizes):
        raise ValueError(
            "a stack wants layers of which each reads the outputs of the one before, got (outputs, inputs) "
            f"{[topology.shape for topology in stack]}; give one network's layers from inputs to outputs, or one layer"
        )
    own = _look(stack, generator, sources)
    random = [
        _look([rewired(layer, generator, trades) for layer in stack], generator, sources) for _ in range(references)
    ]
    clustering, path_length = (
        None if None in values else float(np.mean(values)) for values in zip(*random, strict=True)
    )
    return SmallWorld(_sigma(*own, clustering, path_length), *own, clustering, path_length)


def _sigma(*measured: float | None) -> float | None:
    """σ of clustering, path length, and those of random topologies."""
    if None in measured or not all(measured[1:]):
        return None
    clustering, path_length, random_clustering, random_path_length = map(float, measured)  # type: ignore[arg-type]
    return clustering / random_clustering / (path_length / random_path_length)


def _look(stack: Sequence[Topology], generator: torch.Generator, sources: int) -> tuple[float | None, float | None]:
    graph = _graph(stack)
    return _clustering(graph), _path_length(graph, generator, sources)


def _graph(stack: Sequence[Topology]) -> Any:
    """Neurons of even levels × those of odd ones, as a SciPy sparse matrix of ones: no connection is within either."""
    from scipy import sparse

    widths = [stack[0].shape[1], *(topology.shape[0] for topology in stack)]
    starts = [sum(widths[level % 2 : level : 2]) for level in range(len(widths))]
    even, odd = [], []
    for level, topology in enumerate(stack, 1):
        ends = topology.columns.numpy() + starts[level - 1], topology.rows.numpy() + starts[level]
        even.append(ends[(level + 1) % 2])
        odd.append(ends[level % 2])
    places = np.concatenate(even), np.concatenate(odd)
    shape = sum(widths[::2]), sum(widths[1::2])
    return sparse.csr_array((np.ones(len(places[0]), np.float32), places), shape=shape)


def _clustering(graph: Any) -> float | None:
    """Closed paths of three connections / all of them; None where there are none."""
    degrees = [graph.sum(axis=side, dtype=np.float64) for side in (1, 0)]
    even, odd = graph.nonzero()
    paths = float(((degrees[0][even] - 1) * (degrees[1][odd] - 1)).sum())
    if not paths:
        return None
    closed = 0.0
    for _, shared in overlaps(graph, graph):
        closed += float((shared * (shared - 1)).sum(dtype=np.float64))
    # Of a neuron with itself: its degree. What is left counts each ring of four connections four times.
    return (closed - float((degrees[0] * (degrees[0] - 1)).sum())) / paths


def _path_length(graph: Any, generator: torch.Generator, sources: int) -> float | None:
    """Mean distance from some neurons to all that can be reached; None where there are none."""
    from scipy import sparse

    both = sparse.block_array([[None, graph], [graph.T, None]], format="csr")
    neurons = both.shape[0]
    chosen = sample_distinct(neurons, min(sources, neurons), generator).numpy()
    front = np.zeros((neurons, len(chosen)), np.float32)
    front[chosen, np.arange(len(chosen))] = 1
    seen, distance, total, pairs = front > 0, 0, 0, 0
    while front.any():
        distance += 1
        reached = (both @ front > 0) & ~seen
        seen |= reached
        front = reached.astype(np.float32)
        new = int(reached.sum())
        total, pairs = total + distance * new, pairs + new
    return total / pairs if pairs else None


def rewired(topology: Topology, generator: torch.Generator, trades: int = 10) -> Topology:
    """A random topology in which every neuron has as many connections as in this one.

    In each of `trades` rounds outputs meet in random pairs, and two that meet share out at random the inputs that only
    one of them has (global curveball, Carstens et al. 2016, arXiv:1609.05137): uniform over all such topologies in the
    end. O(nnz log nnz) a round.
    """
    outputs, inputs = topology.shape
    rows, columns = topology.rows.numpy().astype(np.int64), topology.columns.numpy().astype(np.int64)
    for _ in range(trades):
        pair = np.empty(outputs, np.int64)
        pair[torch.randperm(outputs, generator=generator).numpy()] = np.arange(outputs) // 2
        places = pair[rows] * inputs + columns
        order = np.argsort(places)
        met = np.diff(places[order], prepend=-1, append=-1) == 0
        traded = order[~(met[1:] | met[:-1])]  # pair by pair
        draws = torch.rand(len(traded), dtype=torch.float64, generator=generator).numpy()
        rows[traded] = rows[traded[np.argsort(pair[rows[traded]] + draws)]]
    return Topology.from_positions(topology.shape, torch.from_numpy(np.sort(rows * inputs + columns)))
