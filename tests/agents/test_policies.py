"""Networks: exact sparsity, SB3's names, and topologies that a seed decides."""

import io
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small_agents import agent, dense_state, reach, topologies
from stable_baselines3 import TD3
from stable_baselines3.td3.policies import Actor, TD3Policy

from agents import AGENT_PRESETS, SparseTD3, SparseTD3Policy
from sparse_core import Adam, sparse_layers
from sparse_core.initial_topologies import draw
from sparse_core.meters import layer_counts, nnz, sparsity


def networks(model: Any) -> dict[str, torch.nn.Module]:
    critics = {f"qf{index}": network for index, network in enumerate(model.critic.q_networks)}
    return {"mu": model.actor.mu, **critics}


def test_a_distribution_may_fix_the_number_of_connections() -> None:
    # ε (in + out): 3 · (3 + 20) and 4 · (20 + 30) in the actor, whose output keeps 30 · 2; 3 · (5 + 20) in the critics.
    model = agent(sparsity=None, distribution="epsilon:3,4", policy_kwargs=dict(net_arch=[20, 30]))
    counts = {name: [count.nnz for count in layer_counts(part).values()] for name, part in networks(model).items()}
    wide = [75, 200, 30]
    assert counts == {"mu": [60, 200, 60], "qf0": wide, "qf1": wide}  # 69 would be more than the first layer's 60
    model.learn(40)
    after = {name: [count.nnz for count in layer_counts(part).values()] for name, part in networks(model).items()}
    assert after == counts


def test_connections_begin_where_the_initial_topology_says(tmp_path: Path) -> None:
    small = dict(policy_kwargs=dict(net_arch=[20, 30]))
    model = agent(initial_topology="small-world:beta=0", **small)
    plain = [sparse_layers(agent(**small, **chosen).policy) for chosen in ({}, dict(initial_topology="random"))]
    for name, layer in sparse_layers(model.policy).items():
        assert layer.topology == draw("small-world:beta=0", layer.shape, layer.nnz, torch.Generator())
        assert layer.topology != plain[0][name].topology == plain[1][name].topology
    model.learn(40)
    model.save(tmp_path / "agent")
    loaded = SparseTD3.load(tmp_path / "agent", env=model.env)
    assert loaded.sparse_options.initial_topology == "small-world:beta=0"
    for name, layer in sparse_layers(model.policy).items():
        assert sparse_layers(loaded.policy)[name].topology == layer.topology


@pytest.mark.parametrize("wanted", [0.0, 0.3, 0.5, 0.81])
@pytest.mark.parametrize("distribution", ["uniform", "er", "erk", "er:7,64"])
def test_every_network_has_the_sparsity_asked_for(wanted: float, distribution: str) -> None:
    model = agent(sparsity=wanted, distribution=distribution, policy_kwargs=dict(net_arch=[20, 30], n_critics=3))
    assert len(networks(model)) == 4
    for part in (networks(model), {"mu": model.actor_target.mu, "qf0": model.critic_target.qf0}):
        for name, network in part.items():
            cells = {"mu": 3 * 20 + 20 * 30 + 30 * 2}.get(name, 5 * 20 + 20 * 30 + 30)
            assert nnz(network) == cells - round(wanted * cells)
            *_, output = layer_counts(network).values()
            assert output.nnz == output.cells


def test_actor_and_critics_apart() -> None:
    model = agent(sparsity=0.5, actor_sparsity=0.8, policy_kwargs=dict(net_arch=[40, 40]))
    assert [round(sparsity(network), 2) for network in networks(model).values()] == [0.8, 0.5, 0.5]
    model = agent(sparsity=0.5, critic_sparsity=0, actor_sparsity=0.7, policy_kwargs=dict(net_arch=[40, 40]))
    assert [round(sparsity(network), 2) for network in networks(model).values()] == [0.7, 0.0, 0.0]


@pytest.mark.parametrize(
    ("dense", "sparse"),
    [
        (("output",), {"mu.0", "mu.2"}),
        ((), {"mu.0", "mu.2", "mu.4"}),
        (("input", "output"), {"mu.2"}),
        ("input", {"mu.2", "mu.4"}),
        ((1,), {"mu.0", "mu.4"}),
        (("2",), {"mu.0", "mu.4"}),
    ],
)
def test_layers_that_stay_dense(dense: Any, sparse: set[str]) -> None:
    model = agent(sparsity=0.2, distribution="uniform", dense=dense)
    assert set(sparse_layers(model.actor)) == sparse


def test_sparse_by_default_and_dense_by_topology() -> None:
    assert sparsity(agent(sparsity=None).actor) == pytest.approx(0.5, abs=0.01)
    assert not sparse_layers(agent(topology="dense").policy)


def test_names_are_those_of_sb3() -> None:
    dense, ours, theirs = agent(topology="dense"), agent(), agent(kind=TD3)
    assert dense.get_parameters().keys() == ours.get_parameters().keys() == theirs.get_parameters().keys()
    assert list(dense.policy.state_dict()) == list(theirs.policy.state_dict())
    assert list(dense_state(ours)) == list(dense_state(theirs))
    assert isinstance(ours.actor.optimizer, Adam)


def test_weights_are_those_sb3_would_draw() -> None:
    ours, theirs = dense_state(agent()), dense_state(agent(kind=TD3))
    for name, weights in ours.items():
        assert torch.equal(weights, torch.where(weights == 0, 0.0, theirs[name]))


def test_fan_in_initialisation_stretches_the_weights() -> None:
    plain, scaled = agent(init="torch"), agent(init="fan-in")
    for name, layer in sparse_layers(plain.actor).items():
        other = sparse_layers(scaled.actor)[name]
        factor = (layer.in_features / layer.topology.fan_in[layer.topology.rows.long()]).sqrt()
        torch.testing.assert_close(other.values, layer.values * factor)


@pytest.mark.parametrize(
    "other",
    [
        dict(topology="rigl", init="torch"),
        dict(topology="static"),
        dict(init="fan-in"),
        dict(learning_rate=1.0, tau=0.5, buffer_size=50),
        dict(drop_fraction=0.9, period=3),
        dict(critic_sparsity=0.6),
        dict(policy_kwargs=dict(net_arch=[16, 16], activation_fn=torch.nn.Tanh, optimizer_class=torch.optim.SGD)),
    ],
)
def test_seed_alone_decides_the_first_topology(other: dict[str, Any]) -> None:
    expected = topologies(agent())
    torch.manual_seed(99)  # what was drawn before does not count
    assert topologies(agent(**other)) == expected


def test_networks_have_topologies_of_their_own() -> None:
    first, second = topologies(agent()), topologies(agent(seed=1))
    assert all(first[name] != second[name] for name in first)
    assert first["critic.qf0.2"] != first["critic.qf1.2"] != first["actor.mu.2"]
    critics_only = topologies(agent(actor_sparsity=0.3))
    assert all(critics_only[name] == first[name] for name in first if name.startswith("critic"))


def test_without_a_seed_targets_still_follow() -> None:
    model = agent(seed=None)
    found = topologies(model)
    assert all(found[name] == found[name.replace("_target", "")] for name in found)
    assert found != topologies(agent(seed=None))


def test_policy_saved_alone_acts_alike() -> None:
    model = agent()
    model.learn(60)
    assert model.changes
    stored = io.BytesIO()
    model.policy.save(stored)
    stored.seek(0)
    loaded = SparseTD3Policy.load(stored, device="cpu")
    observation = model.observation_space.sample()
    assert (loaded.predict(observation)[0] == model.predict(observation)[0]).all()


def test_policy_of_ones_own() -> None:
    class Narrow(SparseTD3Policy):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "net_arch": [8]})

    model = SparseTD3(Narrow, reach(), sparsity=0.3, seed=0, learning_starts=5, batch_size=8)
    assert model.learn(30).actor.mu[0].shape == (8, 3)


def halfcheetah() -> Any:
    class Shapes(gymnasium.Env):
        observation_space = spaces.Box(-np.inf, np.inf, (17,))
        action_space = spaces.Box(-1.0, 1.0, (6,))

    return Shapes()


# Layer one and two by hand: λ (in + out) connections; the third is dense.
BY_HAND = {"actor": (7 * (17 + 256), 64 * (256 + 256), 256 * 6), "critic": (7 * (23 + 256), 64 * (256 + 256), 256)}
CELLS = {"actor": (17 * 256, 256 * 256, 256 * 6), "critic": (23 * 256, 256 * 256, 256)}


def test_ds_td3_has_its_papers_densities() -> None:
    own = {part: 1 - sum(BY_HAND[part]) / sum(CELLS[part]) for part in CELLS}
    dense = sum(CELLS["actor"]) + 2 * sum(CELLS["critic"])
    sparse = sum(BY_HAND["actor"]) + 2 * sum(BY_HAND["critic"])
    assert (dense, sparse) == (214_784, 106_169)  # 50.6 % sparse, as the release
    model = agent(
        halfcheetah(), actor_sparsity=own["actor"], critic_sparsity=own["critic"],
        policy_kwargs=dict(net_arch=[256, 256]),
        distribution=AGENT_PRESETS["ds-td3-2022"].distribution_for("HalfCheetah-v5"),
    )  # fmt: skip
    for name, network in networks(model).items():
        part = "actor" if name == "mu" else "critic"
        assert tuple(count.nnz for count in layer_counts(network).values()) == BY_HAND[part]
    densities = [1 - layer.sparsity for layer in sparse_layers(model.actor).values()]
    assert densities == pytest.approx([0.439, 0.5], abs=5e-4)


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.95])
def test_ds_td3_scales_to_any_sparsity(wanted: float) -> None:
    model = agent(
        halfcheetah(), sparsity=wanted, policy_kwargs=dict(net_arch=[256, 256]),
        distribution=AGENT_PRESETS["ds-td3-2022"].distribution_for("HalfCheetah-v5"),
    )  # fmt: skip
    for name, network in networks(model).items():
        part = "actor" if name == "mu" else "critic"
        first, second, output = (count.nnz for count in layer_counts(network).values())
        assert first + second + output == sum(CELLS[part]) - round(wanted * sum(CELLS[part]))
        assert first / second == pytest.approx(BY_HAND[part][0] / BY_HAND[part][1], rel=2e-3)


class Frozen(torch.nn.BatchNorm1d):
    """Never trains, as people freeze batch normalisation."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


class Counting(torch.nn.Module):
    """Notices every change of its mode."""

    def __init__(self) -> None:
        self.changes = 0
        super().__init__()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training":
            self.__dict__["changes"] += 1
        super().__setattr__(name, value)


def test_training_mode_is_set_as_sb3_sets_it() -> None:
    policies = [agent().policy for _ in range(2)]
    for policy in policies:
        policy.actor.mu.extend([Frozen(2), torch.nn.Sequential(Counting(), torch.nn.Dropout())])
        policy.critic.qf0.register_module("nothing", None)
    ours, theirs = policies
    for mode in (True, False, True):
        ours.set_training_mode(mode)
        TD3Policy.set_training_mode(theirs, mode)
        modes = [{name: module.training for name, module in policy.named_modules()} for policy in policies]
        assert modes[0] == modes[1]
        assert set(modes[0].values()) == {True, False} if mode else {False}
    assert ours.actor.mu[-1][0].changes == theirs.actor.mu[-1][0].changes > 2


def test_an_actors_own_way_of_changing_its_mode_is_taken() -> None:
    class Stubborn(Actor):
        def set_training_mode(self, mode: bool) -> None:
            super().set_training_mode(False)

    policy = agent().policy
    policy.actor.__class__ = Stubborn
    policy.set_training_mode(True)
    assert (policy.actor.training, policy.critic.training) == (False, True)
