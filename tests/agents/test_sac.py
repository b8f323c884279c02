"""SparseSAC: against SB3's own SAC, its topology changes, its targets, and files that bring it back."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from small_agents import agent, dense_state, fill, reach, same, topologies
from stable_baselines3 import SAC
from stable_baselines3.common.utils import set_random_seed
from torch import nn

from agents import AGENT_PRESETS, SparseSAC
from agents.costs import training_cost
from sparse_core import PRESETS, Adam, SparseLinear, sparse_layers
from sparse_core.meters import nnz, sparsity


def sac(kind: type = SparseSAC, **options: Any) -> Any:
    """As `agent`: learns from step 20 on, changes its topology every 10 updates."""
    if kind is SparseSAC and options.get("topology") != "dense":
        options = dict(sparsity=0.6, period=10, backend="gemm") | options
    return agent(kind=kind, **options)


def train_alike(updates: int, *models: Any) -> None:
    for model in models:
        set_random_seed(7)
        fill(model)
        for _ in range(updates):
            model.train(1, 16)


def assert_close(ours: SparseSAC, theirs: SAC, tolerance: float) -> None:
    expected, got = dense_state(theirs), dense_state(ours)
    assert expected.keys() == got.keys()
    for name, weights in expected.items():
        torch.testing.assert_close(got[name], weights, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(ent_coef=0.2, tau=0.1, gamma=0.9),
        dict(ent_coef="auto_0.1", target_entropy=-1.0),
        dict(n_steps=3, policy_kwargs=dict(net_arch=dict(pi=[8], qf=[12, 8]), n_critics=3)),
    ],
    ids=["defaults", "fixed entropy", "entropy", "n-step and networks"],
)
def test_dense_agent_is_sb3s_own(options: dict[str, Any]) -> None:
    sparse, dense = sac(topology="dense", **copy.deepcopy(options)), sac(SAC, **options)
    assert_close(sparse, dense, 0)
    train_alike(20, sparse, dense)
    assert_close(sparse, dense, 1e-5)
    expected = dense.logger.name_to_value
    assert isinstance(sparse.actor.optimizer, Adam)
    for name in ("critic_loss", "actor_loss", "ent_coef", "ent_coef_loss"):
        if f"train/{name}" in expected and name in sparse._losses:
            assert float(sparse._losses[name]) == pytest.approx(expected[f"train/{name}"], rel=1e-4, abs=1e-6)
    assert {"critic_loss", "actor_loss"} <= sparse._losses.keys()


def test_static_agent_is_sb3s_own_behind_masks() -> None:
    sparse, dense = sac(topology="static", sparsity=0.7), sac(SAC)
    masked = sparse_layers(sparse.policy)
    assert len(masked) == 10  # two of each of five networks
    for name, layer in masked.items():
        weight, mask = dense.policy.get_submodule(name).weight, layer.topology.to_mask()
        weight.data *= mask
        weight.register_hook(lambda gradient, mask=mask: gradient * mask)
    assert_close(sparse, dense, 0)
    train_alike(20, sparse, dense)
    assert_close(sparse, dense, 1e-4)


def test_the_actor_is_one_network_with_two_outputs() -> None:
    model = sac(sparsity=0.5)
    cells = 3 * 16 + 16 * 16 + 16 * 4
    assert set(sparse_layers(model.actor)) == {"latent_pi.0", "latent_pi.2"}  # mu and log_std stay dense
    assert nnz(model.actor) == cells - round(0.5 * cells)
    everything = sac(sparsity=0.5, dense=(), distribution="uniform")
    assert set(sparse_layers(everything.actor)) == {"latent_pi.0", "latent_pi.2", "mu", "log_std"}
    assert sparsity(everything.actor) == pytest.approx(0.5, abs=0.01)
    alone = sac(sparsity=None, input_sparsity=0.8)
    assert set(sparse_layers(alone.policy)) == {
        "actor.latent_pi.0", *(f"{critic}.qf{i}.0" for critic in ("critic", "critic_target") for i in (0, 1))
    }  # fmt: skip


@pytest.mark.parametrize("topology", ["set", "rigl", "reset-in-place"])
def test_targets_share_the_topology_after_every_update(topology: str) -> None:
    model = fill(sac(topology=topology, period=3, total_updates=30))
    start = topologies(model)
    for update in range(1, 10):
        model.train(1, 16)
        assert model.changes == update // 3
        now = topologies(model)
        assert all(now[name] == now[name.replace("critic", "critic_target")] for name in now if "critic." in name)
    moved = {name for name in start if topologies(model)[name] != start[name]}
    assert moved == (set() if topology == "reset-in-place" else set(start))


def test_growth_of_the_actor_sees_its_own_loss() -> None:
    model = fill(sac(topology="rigl", period=2, total_updates=100))
    model.train(1, 16)
    layer = model.actor.latent_pi[0]
    seen: list[torch.Tensor] = []
    move = model._move_connections

    def spy(*arguments: Any) -> bool:
        seen.extend(inputs for inputs, _ in model.actor.latent_pi[0].capture.pairs)
        return move(*arguments)

    model._move_connections = spy
    model.train(1, 16)
    assert len(seen) == 1
    assert torch.equal(seen[0], model._update._batch.observations)  # not the next ones, and once
    assert model.changes == 1
    assert layer is model.actor.latent_pi[0]


def test_targets_are_copies_every_so_many_updates() -> None:
    model = fill(sac(topology="dense", tau=1.0, target_update_interval=3))
    first = copy.deepcopy(model.critic_target.state_dict())
    for update in range(1, 8):
        model.train(1, 16)  # SB3 would count within this call and copy every time
        if update % 3 == 0:
            first = copy.deepcopy(model.critic.state_dict())
        assert same(dict(model.critic_target.state_dict()), dict(first))


def test_training_goes_on_from_a_file_as_from_memory(tmp_path: Any) -> None:
    model = fill(sac(topology="rigl", total_updates=40))
    model.train(13, 16)
    model.save(tmp_path / "agent.zip")
    loaded = SparseSAC.load(tmp_path / "agent.zip", env=reach())
    assert loaded.sparse_options == model.sparse_options
    loaded.replay_buffer = copy.deepcopy(model.replay_buffer)
    loaded.set_logger(model.logger)
    for each in (model, loaded):
        set_random_seed(11)
        each.train(12, 16)
    assert same(loaded.get_parameters(), model.get_parameters())
    assert same(loaded.adaptation_state(), model.adaptation_state())
    assert loaded.changes == model.changes == 2
    assert torch.equal(loaded.log_ent_coef, model.log_ent_coef)


def test_learns_and_acts() -> None:
    model = sac().learn(60)
    assert (model.changes, model._n_updates) == (4, 40)
    actions, _ = model.predict(np.zeros((5, 3)), deterministic=True)
    inputs = torch.zeros(5, 3)
    for module in model.acting_modules:
        inputs = module(inputs)
    assert actions == pytest.approx(2 * inputs.detach().numpy())


def test_cost_worked_example() -> None:
    # Three observations, two actions, four hidden units: the actor has 12 + 8 + 8 weights, a critic 20 + 4.
    model = sac(topology="dense", policy_kwargs=dict(net_arch=[4]), batch_size=8)
    actor, critic = 2 * 28, 2 * 24
    targets = actor + 2 * critic
    critics = 2 * (3 * critic - 2 * 20)
    policy = 3 * actor - 2 * 12 + 2 * (critic + critic)  # its loss asks both critics
    assert training_cost(model, updates=10, steps=30) == 8 * 10 * (targets + critics + policy) + actor * (30 - 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(use_sde=True), "SparseSAC draws actions independently, got `use_sde=True`; leave gSDE out"),
        (dict(ent_coef=-0.1), "`ent_coef` must be a number ≥ 0 or 'auto', got -0.1"),
        (dict(target_update_interval=0), "`target_update_interval` must be at least 1, got 0"),
        (dict(policy="CnnPolicy"), "`policy` must be 'MlpPolicy' or a subclass of SparseSACPolicy, got 'CnnPolicy'"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], message: str) -> None:
    policy = options.pop("policy", "MlpPolicy")
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(").replace("`", "`")):
        SparseSAC(policy, reach(), **options)


def test_presets() -> None:
    plain, sparse = AGENT_PRESETS["sac"], AGENT_PRESETS["ds-sac"]
    assert (plain.algo, plain.hidden, plain.learning_rate, plain.batch_size) == ("sac", (256, 256), 3e-4, 256)
    assert (plain.learning_starts, plain.tau, plain.gamma, plain.ent_coef) == (100, 0.005, 0.99, None)
    assert (sparse.learning_rate, sparse.batch_size, sparse.weight_decay) == (3e-4, 256, 0)
    assert (sparse.tau, sparse.target_update_interval, sparse.ent_coef) == (1, 1_000, 0.2)
    assert (sparse.drop_fraction, sparse.period_share, sparse.sparsity) == (0.1, None, 0.5)
    wanted = {"HalfCheetah-v5": "er:12,80", "Walker2d-v5": "er:12,80", "Hopper-v5": "er:7,20", "Ant-v5": "er:30,64"}
    assert {env: sparse.distribution_for(env) for env in wanted} == wanted
    assert sparse.distribution_for("Humanoid-v5") == "er:61,64"


def test_grasp_looks_at_gradients_again_and_draws_nothing() -> None:
    """The look leaves the random stream where it was: the losses until the change are those of a static agent."""
    model = fill(sac(topology="grasp", period=4, total_updates=12))
    begun = nnz(model.actor)
    set_random_seed(3)
    model.train(3, 16)
    before = torch.get_rng_state()
    loss = model._update.actor_gradient()
    assert torch.equal(loss, model._update.actor_gradient())
    assert torch.equal(torch.get_rng_state(), before)
    model.train(3, 16)
    assert model.changes == 1
    assert nnz(model.actor) < begun
    cells = sum(layer.cells for layer in sparse_layers(model.actor).values())
    assert sparsity(model.actor) == pytest.approx(0.6, abs=1 / cells)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.masking])
def test_masked_methods_train_it_and_its_targets_keep_the_same(name: str) -> None:
    model = sac(topology=name, sparsity=PRESETS[name].own_sparsity or 0.6, period=3)
    train_alike(9, model)
    assert model.changes == 3
    assert model.critic_sparsifier is not None
    for layer in sparse_layers(model.critic).values():
        assert layer.nnz == layer.cells
        assert layer.multiplied < layer.cells or not PRESETS[name].exact
    online, target = (sparse_layers(network) for network in (model.critic, model.critic_target))
    assert all(torch.equal(layer.masking.kept, target[key].masking.kept) for key, layer in online.items())


def test_every_hidden_layer_is_normalised() -> None:
    model = sac(norm="layer")
    kinds = [SparseLinear, nn.LayerNorm, nn.ReLU] * 2
    assert [type(module) for module in model.actor.latent_pi] == kinds
    for network in (*model.critic.q_networks, *model.critic_target.q_networks):
        assert [type(module) for module in network] == [*kinds, nn.Linear]
