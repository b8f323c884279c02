"""Measures of one network's topology that a run takes, where they take no more than seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch

from sparse_core import SmallWorld, Topology, network_distance, small_world

WIDEST = 1024  # outputs of a layer: pairing the neurons of wider ones takes seconds at every evaluation
MOST = 500_000  # connections of a network whose small-worldness is found in seconds

Layers = Mapping[str, Topology]
Values = dict[str, float | None]


def distance(before: Layers, now: Layers) -> float | None:
    """Topology distance of one network at two times (NNSTD, arXiv:2006.14085); None for layers over 1024 wide."""
    if not now or max(topology.shape[0] for topology in now.values()) > WIDEST:
        return None
    return network_distance(before, now, linear=True).mean


def small_worldness(layers: Layers, generator: torch.Generator) -> SmallWorld | None:
    """Of the sparse layers of a network; None without any, for over 500,000 connections, or with gaps between them."""
    stack = [*layers.values()]
    gaps = any(above.shape[0] != below.shape[1] for above, below in pairwise(stack))
    if not stack or gaps or sum(topology.nnz for topology in stack) > MOST:
        return None
    return small_world(stack, generator)


def finite(values: Mapping[str, float]) -> Values:
    """The same with None for what JSON has no word for."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
