"""Topologies that come from elsewhere."""

import pytest
import torch
from small_agents import agent, fill, reach, topologies
from stable_baselines3.common.utils import set_random_seed

from agents import SparseTD3
from sparse_core import Topology, sparse_layers


def online(model: SparseTD3) -> dict[str, Topology]:
    return {name: topology for name, topology in topologies(model).items() if "target" not in name}


def test_agent_begins_with_the_given_topology_and_weights_of_its_own_seed() -> None:
    donor = fill(agent(topology="set", seed=5, total_updates=40))
    donor.train(40, 16)
    assert donor.changes
    heir, other = (agent(topology="final-topology", topologies=online(donor), seed=seed) for seed in (6, 7))
    assert topologies(heir) == topologies(other) == topologies(donor)
    layers = [sparse_layers(model.policy) for model in (donor, heir, other)]
    for name, layer in layers[1].items():
        assert not torch.equal(layer.values, layers[0][name].values)
        assert not torch.equal(layer.values, layers[2][name].values)
    before = topologies(heir)
    set_random_seed(0)
    fill(heir).train(20, 16)
    assert topologies(heir) == before
    assert heir.changes == 0


def test_weights_are_those_that_the_seed_gives_a_static_agent() -> None:
    """The draw of the topology stands apart from that of the weights: only the connections differ."""
    donor, static = agent(topology="static", seed=5), agent(topology="static", seed=6)
    heir = agent(topology="final-topology", topologies=online(donor), seed=6)
    for name, layer in sparse_layers(heir.policy).items():
        other = sparse_layers(static.policy)[name]
        common = torch.isin(layer.positions, other.positions)
        assert 0 < common.sum() < layer.nnz
        assert torch.equal(layer.values[common], other.values[torch.isin(other.positions, layer.positions)])


def test_without_a_topology_it_is_an_error() -> None:
    with pytest.raises(
        ValueError, match="'final-topology' takes its connections from elsewhere, got none; give `topol"
    ):
        SparseTD3("MlpPolicy", reach(), topology="final-topology")


def test_topologies_that_do_not_fit() -> None:
    donor = online(agent(topology="static"))
    with pytest.raises(ValueError, match="where sparsity and distribution ask for"):
        agent(topology="final-topology", topologies=donor, sparsity=0.7)
    with pytest.raises(ValueError, match="must name every layer that becomes sparse and no other; differing: 2"):
        agent(topology="final-topology", topologies={name: t for name, t in donor.items() if name != "actor.mu.2"})
