"""Every method of the core trains an agent: targets follow it, a file brings it back, its counts are what it says."""

import copy
from typing import Any

import pytest
import torch
from small_agents import agent, fill, reach, same, target_distance
from stable_baselines3.common.utils import set_random_seed

from agents import SparseTD3
from sparse_core import PRESETS, sparse_layers
from sparse_core.meters import nnz, sparsity

CHANGING = [name for name, preset in PRESETS.items() if preset.changes]


# One of each kind; the others are slow ones: tests/sparse_core/test_sparsifier.py has them all.
KINDS = {"set", "rigl", "reset-in-place", "deepr", "granet", "snfs", "cht", "grasp", "top-kast", "trainable-threshold"}
METHODS = [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in CHANGING]


def trained(name: str, updates: int, **options: Any) -> Any:
    options.setdefault("sparsity", PRESETS[name].own_sparsity or 0.6)
    model = fill(agent(topology=name, period=3, policy_delay=2, total_updates=12, **options))
    for _ in range(updates):
        model.train(1, 16)
        assert target_distance(model) == 0
    return model


@pytest.mark.parametrize("name", METHODS)
def test_targets_share_the_topology_and_counts_end_as_asked(name: str) -> None:
    model = trained(name, 12)
    preset = PRESETS[name]
    fresh = agent(topology=name, sparsity=preset.own_sparsity or 0.6)
    start, end = (sum(nnz(network) for network in (each.actor, each.critic)) for each in (fresh, model))
    assert end == start if preset.prune is None and preset.exact else end < start
    for network in (model.actor, model.critic):
        layers = sparse_layers(network).values()
        cells = sum(layer.cells for layer in layers)
        if preset.own_sparsity is not None:  # of the layers that are masked, one in each network here
            assert sum(layer.multiplied for layer in layers) == cells * (1 - preset.own_sparsity)
        elif preset.exact:
            assert sparsity(network) == pytest.approx(0.6, abs=3 / cells)  # rounded once for each network
    assert model.changes or preset.keeps_count is False
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", METHODS)
def test_training_goes_on_from_a_file_as_from_memory(name: str, tmp_path: Any) -> None:
    model = trained(name, 7)
    model.save(tmp_path / "agent.zip")
    loaded = SparseTD3.load(tmp_path / "agent.zip", env=reach())
    loaded.replay_buffer = copy.deepcopy(model.replay_buffer)
    loaded.set_logger(model.logger)
    for each in (model, loaded):
        set_random_seed(11)
        each.train(5, 16)
    assert same(loaded.get_parameters(), model.get_parameters())
    assert same(loaded.adaptation_state(), model.adaptation_state())
    assert loaded.changes == model.changes


def test_options_go_with_the_name() -> None:
    model = trained("rigl:grow_mix=1:drop_fraction=0.5", 4)
    assert model.critic_sparsifier is not None
    assert model.critic_sparsifier.choices.grow_mix == 1
    assert model.critic_sparsifier.fraction(0) == 0.5
    with pytest.raises(ValueError, match=r"topology 'rigl' has no option 'grow_mux'; known: .*grow_mix"):
        agent(topology="rigl:grow_mux=1")


def test_pruned_neurons_are_gone_in_targets_and_files_too(tmp_path: Any) -> None:
    model = trained("set:pruned_neurons=0.25:neurons_from=0.3", 7)
    for sparsifier in (model.actor_sparsifier, model.critic_sparsifier):
        assert sparsifier is not None
        gone = sparsifier.neurons.gone
        assert gone.keys() == sparsifier.neurons.readers.keys() != set()  # every hidden layer, the critics' apart
        for name, neurons in gone.items():
            assert len(neurons) == int(0.25 * sparsifier.layers[name].shape[0])
            assert not sparsifier.layers[name].topology.fan_in[neurons].any()
    model.save(tmp_path / "agent.zip")
    loaded = SparseTD3.load(tmp_path / "agent.zip", env=reach())
    loaded.replay_buffer = copy.deepcopy(model.replay_buffer)
    loaded.set_logger(model.logger)
    for each in (model, loaded):
        set_random_seed(11)
        each.train(5, 16)
        assert target_distance(each) == 0
    assert same(loaded.get_parameters(), model.get_parameters())
    for name, neurons in loaded.critic_sparsifier.neurons.gone.items():
        assert not loaded.critic_sparsifier.layers[name].topology.fan_in[neurons].any()


def test_actor_and_critics_end_at_their_own_sparsity() -> None:
    options = dict(topology="granet", actor_sparsity=0.8, critic_sparsity=0.6, total_updates=12, period=2)
    model = fill(agent(**options))
    model.train(12, 16)
    for network, wanted in ((model.actor, 0.8), (model.critic, 0.6)):
        cells = sum(layer.cells for layer in sparse_layers(network).values())
        assert sparsity(network) == pytest.approx(wanted, abs=3 / cells)
