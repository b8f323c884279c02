"""Initial weights: how far a scheme stretches torch's own U(±1/√in_features) for a sparse layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparse_core.registry import Registry
from sparse_core.topology import Topology

Scheme = Callable[[Topology], Tensor]  # topology -> one factor per connection, (nnz,) float64

INITIALISATIONS: Registry[Scheme] = Registry("initialisation")


@INITIALISATIONS.register("torch")
def as_torch(topology: Topology) -> Tensor:
    """The scale of torch's own `nn.Linear`, which knows only `in_features` (as in the DS-TD3 release)."""
    return torch.ones(topology.nnz, dtype=torch.float64)


@INITIALISATIONS.register("fan-in")
def actual_fan_in(topology: Topology) -> Tensor:
    """Scaled for each output's actual fan-in, U(±1/√fan_in) (Evci et al. 2022, arXiv:2010.03533)."""
    fan_in = topology.fan_in[topology.rows.long()]
    return (topology.shape[1] / fan_in.double()).sqrt()
