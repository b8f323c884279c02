"""How the topologies of a run move, and how much gradient reaches them: measures taken at its evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from agents import SparseAgent
from agents.gradients import gradient_flow_at
from runs.given_topology import topologies
from runs.topology_measures import Layers, Values, distance, finite, small_worldness
from runs.topology_records import places_looked_at
from sparse_core import Topology, generators


def network_of(layer: str) -> str:
    """The network that a layer of an agent belongs to, by its name: `actor`, `critic.qf0`."""
    owner, part, *_ = layer.split(".")
    return owner if owner == "actor" else f"{owner}.{part}"


def by_network(layers: Layers) -> dict[str, dict[str, Topology]]:
    """The layers of each network of an agent."""
    found: dict[str, dict[str, Topology]] = {}
    for name, topology in layers.items():
        found.setdefault(network_of(name), {})[name] = topology
    return found


def distances(model: SparseAgent, positions: Mapping[str, Tensor]) -> dict[str, float]:
    """For each network, how far its topology is from the one with these positions; nothing for other and wide ones."""
    now = topologies(model)
    before = {
        name: Topology.from_positions(topology.shape, positions[name])
        for name, topology in now.items()
        if name in positions
    }
    found = {network: distance(layers, by_network(now)[network]) for network, layers in by_network(before).items()}
    return {network: each for network, each in found.items() if each is not None}


def gradient_flows(model: SparseAgent) -> Values:
    """Gradient flow of each layer on up to 512 transitions, evenly spaced over the replay buffer; {} without any.

    Not of the last update's own batch: that is a small one, differs from arm to arm, and a change of the topology
    right after it leaves nothing of it. None where a gradient is not finite.
    """
    places = places_looked_at(model)
    if places is None:
        return {}
    buffer: Any = model.replay_buffer

    def rows(name: str) -> Tensor:
        return torch.from_numpy(getattr(buffer, name)[places].reshape(len(places), -1)).float().to(model.device)

    batch = ReplayBufferSamples(
        rows("observations"), rows("actions"), rows("next_observations"), rows("dones") * (1 - rows("timeouts")),
        rows("rewards"),
    )  # fmt: skip
    return finite(gradient_flow_at(model, batch))


def flow_of_networks(flows: Values) -> dict[str, float]:
    """Of each network with finite gradients, the sum over its layers."""
    found: dict[str, float] = {}
    for name, flow in flows.items():
        found[network_of(name)] = found.get(network_of(name), 0.0) + (math.nan if flow is None else flow)
    return {network: flow for network, flow in found.items() if math.isfinite(flow)}


def small_worlds(model: SparseAgent, seed: int) -> dict[str, Values]:
    """Small-worldness of each network that has one, with what it is made of."""
    draws = generators(seed, "small-world")["small-world"]
    found = {name: small_worldness(layers, draws) for name, layers in by_network(topologies(model)).items()}
    return {name: world._asdict() for name, world in found.items() if world is not None}
