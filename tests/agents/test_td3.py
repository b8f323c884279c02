"""The update: against SB3's own, its topology changes, and what it bootstraps from."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from small_agents import (
    METHODS,
    MOVING,
    SEARCHING,
    agent,
    autograd,
    dense_state,
    fill,
    reach,
    target_distance,
    topologies,
)
from stable_baselines3 import TD3
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor, nn

from agents import SparseSAC, SparseTD3
from sparse_core import Adam, SparseLinear, sparse_layers


class Mixer(BaseFeaturesExtractor):
    """A features extractor that learns."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 5)
        self.mix = nn.Linear(observation_space.shape[0], 5)

    def forward(self, observations: Tensor) -> Tensor:
        return torch.tanh(self.mix(observations))


def train_alike(ours: SparseTD3, theirs: TD3, updates: int) -> None:
    for model in (ours, theirs):
        set_random_seed(7)
        fill(model).train(updates, 16)


def assert_close(ours: SparseTD3, theirs: TD3, tolerance: float) -> None:
    expected, got = dense_state(theirs), dense_state(ours)
    assert expected.keys() == got.keys()
    for name, weights in expected.items():
        torch.testing.assert_close(got[name], weights, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(n_steps=3),
        dict(policy_delay=3, tau=0.1, gamma=0.9, target_policy_noise=0.5, target_noise_clip=0.3),
        dict(policy_kwargs=dict(net_arch=dict(pi=[8], qf=[12, 8]), n_critics=3)),
        dict(policy_kwargs=dict(net_arch=[8], features_extractor_class=Mixer)),
        dict(policy_kwargs=dict(net_arch=[8], features_extractor_class=Mixer, share_features_extractor=True)),
        dict(policy_kwargs=dict(net_arch=[8], optimizer_kwargs=dict(weight_decay=0.1))),
    ],
    ids=["defaults", "n-step", "settings", "networks", "extractor", "shared extractor", "weight decay"],
)
@pytest.mark.parametrize("optimizer", ["ours", "torch"])
def test_dense_agent_is_sb3s_own(options: dict[str, Any], optimizer: str) -> None:
    ours = copy.deepcopy(options)
    if optimizer == "torch":
        ours.setdefault("policy_kwargs", dict(net_arch=[16, 16]))["optimizer_class"] = torch.optim.Adam
    sparse, dense = agent(sparsity=0, topology="dense", **ours), agent(kind=TD3, **options)
    assert_close(sparse, dense, 0)
    train_alike(sparse, dense, 30)
    assert_close(sparse, dense, 1e-5)


@pytest.mark.parametrize("decay", [pytest.param(0.0, marks=pytest.mark.slow), 0.1])
@pytest.mark.parametrize("backend", ["gemm", "csr", "rows"])
@pytest.mark.parametrize("optimizer", [Adam, torch.optim.Adam])
def test_static_agent_is_sb3s_own_behind_masks(optimizer: type, backend: str, decay: float) -> None:
    policy = dict(net_arch=[16, 16], optimizer_kwargs=dict(weight_decay=decay))
    sparse = agent(
        topology="static", sparsity=0.7, backend=backend, policy_kwargs={**policy, "optimizer_class": optimizer}
    )
    dense = agent(kind=TD3, policy_kwargs=policy)
    masked = sparse_layers(sparse.policy)
    assert len(masked) == 12  # two of each of six networks
    for name, layer in masked.items():
        weight, mask = dense.policy.get_submodule(name).weight, layer.topology.to_mask()
        weight.data *= mask
        weight.register_hook(lambda gradient, mask=mask: gradient * mask)
    assert_close(sparse, dense, 0)
    train_alike(sparse, dense, 30)
    assert_close(sparse, dense, 1e-4)


def test_logged_losses_are_those_of_the_last_update() -> None:
    sparse, dense = agent(topology="dense"), agent(kind=TD3)
    for model in (sparse, dense):
        set_random_seed(7)
        fill(model).train(1, 16)
        model.train(1, 16)
    expected = dense.logger.name_to_value
    for name in ("critic_loss", "actor_loss"):
        assert float(sparse._losses[name]) == pytest.approx(expected[f"train/{name}"], rel=1e-5)


@pytest.mark.parametrize("topology", METHODS)
@pytest.mark.parametrize(
    ("period", "delay"),
    [pytest.param(4, 2, marks=pytest.mark.slow), (3, 2), pytest.param(2, 3, marks=pytest.mark.slow)],
)
def test_targets_share_the_topology_after_every_update(topology: str, period: int, delay: int) -> None:
    model = agent(topology=topology, sparsity=None, period=period, policy_delay=delay, total_updates=30)
    fill(model)
    start, sizes = topologies(model), {name: layer.nnz for name, layer in sparse_layers(model.policy).items()}
    for _ in range(30):
        model.train(1, 16)
        assert target_distance(model) == 0
        assert {name: layer.nnz for name, layer in sparse_layers(model.policy).items()} == sizes
    moved = {name for name, now in topologies(model).items() if now != start[name]}
    assert moved == (set(start) if topology in SEARCHING else set())


@pytest.mark.parametrize("topology", MOVING)
def test_new_connection_enters_the_target_by_polyak_alone(topology: str) -> None:
    model = fill(agent(topology=topology, period=2, tau=0.5, total_updates=100))
    model.train(1, 16)
    old = {name: layer.to_dense().weight for name, layer in sparse_layers(model.critic_target).items()}
    model.train(1, 16)
    assert model.changes == 1
    for name, layer in sparse_layers(model.critic_target).items():
        online = sparse_layers(model.critic)[name]
        rewiring = model.last_rewirings[f"critic.{name}"]
        assert rewiring.grown.numel()
        at = torch.isin(layer.positions, rewiring.grown)
        kept = old[name].flatten()[layer.positions].masked_fill(at, 0)
        torch.testing.assert_close(layer.values, (kept + online.values) / 2)
        assert not online.values[at].any()
        assert not layer.values[at].any()


def changes_at(model: SparseTD3, updates: int) -> dict[str, list[int]]:
    """The updates at which actor, and critics, changed their topology."""
    found: dict[str, list[int]] = {"actor": [], "critic": []}
    for update in range(1, updates + 1):
        before = topologies(model)
        model.train(1, 16)
        for part, list_ in found.items():
            if any(now != before[name] for name, now in topologies(model).items() if name.startswith(f"{part}.")):
                list_.append(update)
    return found


@pytest.mark.parametrize("topology", SEARCHING)
@pytest.mark.parametrize(
    ("period", "delay", "stop", "expected"),
    [
        pytest.param(6, 2, 1.0, [6, 12, 18, 24, 30], marks=pytest.mark.slow),
        (6, 2, 0.5, [6, 12]),
        (5, 2, 1.0, [6, 10, 16, 20, 26, 30]),
        pytest.param(7, 3, 1.0, [9, 15, 21, 30], marks=pytest.mark.slow),
        (1, 4, 1.0, [4, 8, 12, 16, 20, 24, 28, 32]),
        (33, 1, 1.0, []),
    ],
)
def test_actor_and_critics_change_at_the_same_policy_update(
    topology: str, period: int, delay: int, stop: float, expected: list[int]
) -> None:
    model = agent(
        topology=topology, period=period, policy_delay=delay, stop=stop, schedule="constant", total_updates=32
    )
    found = changes_at(fill(model), 32)
    assert found == {"actor": expected, "critic": expected}
    assert model.changes == len(expected)


def test_drop_fraction_follows_its_schedule() -> None:
    model = fill(agent(period=4, drop_fraction=0.4, schedule="linear", total_updates=20, sparsity=0.5))
    shares = []
    for _ in range(5):
        model.train(4, 16)
        change = model.last_rewirings["critic.qf0.2"]
        shares.append(change.dropped.numel() / change.before.numel())
    # What a change drops and grows again at once stays, so a little less than ζ goes.
    wanted = [0.32, 0.24, 0.16, 0.08, 0.0]
    assert all(0.6 * most <= share <= most for share, most in zip(shares, wanted, strict=True))


def dense_copy(network: nn.Module) -> nn.Module:
    """The network with all its possible connections, absent ones at zero."""
    copied = copy.deepcopy(network)
    for name, layer in sparse_layers(copied).items():
        parent = copied.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], layer.to_dense())
    return copied


def dense_gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    gradients = torch.autograd.grad(loss, [module.weight for module in linear.values()])
    return dict(zip(linear, gradients, strict=True))


def critic_loss(model: SparseTD3, critic: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        noise = torch.randn_like(batch.actions) * model.target_policy_noise
        noise = noise.clamp(-model.target_noise_clip, model.target_noise_clip)
        actions = (model.actor_target(batch.next_observations) + noise).clamp(-1, 1)
        values = torch.cat(model.critic_target(batch.next_observations, actions), 1).min(1, keepdim=True).values
        wanted = batch.rewards + (1 - batch.dones) * model.gamma * values
    return sum(F.mse_loss(value, wanted) for value in critic(batch.observations, batch.actions))


def after_rigl(layer: SparseLinear, gradient: Tensor, fraction: float) -> Tensor:
    """Where RigL puts the layer's connections: the weakest go, the steepest among all that is then free come."""
    count = int(fraction * layer.nnz + 1e-9)
    weakest = layer.values.detach().abs().argsort()[:count]
    stays = torch.ones(layer.nnz, dtype=torch.bool)
    stays[weakest] = False
    kept = layer.positions[stays]
    scores = gradient.flatten().abs().index_fill(0, kept, -1)
    return torch.cat([kept, scores.argsort(descending=True)[:count]]).sort().values


class Spy:
    """Stands before an update and works out, on dense copies, the gradients that growth should have seen."""

    def __init__(self, model: SparseTD3, update: Any, signals: dict[str, list[dict[str, Tensor]]]) -> None:
        self.model, self.update, self.batch_size, self.signals = model, update, update.batch_size, signals
        self.is_current, self.targets = update.is_current, update.targets

    def draw(self) -> None:
        drawn = np.random.get_state()  # noqa: NPY002
        self.batch = self.model.replay_buffer.sample(self.batch_size)
        np.random.set_state(drawn)  # noqa: NPY002
        self.update.draw()

    def critics(self) -> Any:
        drawn = torch.get_rng_state()
        critic = dense_copy(self.model.critic)
        self.signals["critic"].append(dense_gradients(critic, critic_loss(self.model, critic, self.batch)))
        torch.set_rng_state(drawn)
        return self.update.critics()

    def actor(self) -> Any:
        actor, observations = dense_copy(self.model.actor), self.batch.observations
        with self.model.critic_sparsifier.paused():  # this pass is the test's own
            loss = -self.model.critic.q1_forward(observations, actor(observations)).mean()
            self.signals["actor"].append(dense_gradients(actor, loss))
        return self.update.actor()


@pytest.mark.parametrize("made", [autograd, lambda model: model], ids=["autograd", "fused"])
@pytest.mark.parametrize(
    ("period", "capture_batches"),
    [pytest.param(4, 1, marks=pytest.mark.slow), (5, 1), pytest.param(6, 2, marks=pytest.mark.slow), (7, 2)],
)
def test_growth_follows_each_networks_own_loss(
    period: int, capture_batches: int, made: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = agent(
        topology="rigl", sparsity=0.7, period=period, capture_batches=capture_batches, drop_fraction=0.3,
        schedule="constant", stop=1.0, learning_rate=3e-3,
    )  # fmt: skip
    make, move = fill(made(model))._make_update, model._move_connections
    signals: dict[str, list[dict[str, Tensor]]] = {"critic": [], "actor": []}
    expected: dict[str, dict[str, Tensor]] = {}

    def spy_move(policy_update: bool) -> bool:
        for part, seen in signals.items():
            recent = seen[-capture_batches:]
            expected[part] = {
                name: after_rigl(layer, torch.stack([signal[name] for signal in recent]).sum(0), 0.3)
                for name, layer in sparse_layers(getattr(model, part)).items()
                if len(recent) == capture_batches
            }
        return move(policy_update)

    monkeypatch.setattr(model, "_make_update", lambda batch_size: Spy(model, make(batch_size), signals))
    monkeypatch.setattr(model, "_move_connections", spy_move)
    for change in range(1, 4):
        while model.changes < change:
            model.train(1, 16)
        for part in ("actor", "critic"):
            for name, layer in sparse_layers(getattr(model, part)).items():
                assert torch.equal(layer.positions, expected[part][name]), f"{part}.{name} at change {change}"
            assert any(r.grown.numel() for name, r in model.last_rewirings.items() if name.startswith(f"{part}."))


def test_actor_update_leaves_the_critic_alone() -> None:
    model = fill(agent(topology="rigl", total_updates=100))
    frozen = model.critic.qf0[-1].bias.requires_grad_(False)  # a user's choice stays
    model.train(1, 16)
    before = copy.deepcopy(model.critic.state_dict())
    for parameter in model.critic.parameters():
        parameter.grad = None
    model._update.draw()
    model._update.actor()
    assert all(parameter.grad is None for parameter in model.critic.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.critic.state_dict().items())
    assert [p for p in model.critic.parameters() if not p.requires_grad] == [frozen]


@pytest.mark.parametrize("topology", MOVING)
def test_zero_sparsity_trains_alike_under_every_topology(topology: str) -> None:
    dense, moving = agent(topology="dense"), agent(topology=topology, sparsity=0, period=2, total_updates=20)
    for model in (dense, moving):
        set_random_seed(3)
        fill(model).train(10, 16)
    states = dense_state(dense), dense_state(moving)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_schedule_without_a_known_length_is_an_error() -> None:
    model = fill(agent(topology="rigl"))
    with pytest.raises(ValueError, match="give `total_updates`, the planned critic gradient steps"):
        model.train(1, 16)
    model = agent(topology="rigl", train_freq=(1, "episode"), gradient_steps=2)
    with pytest.raises(ValueError, match="give `total_updates`"):
        model.learn(100)
    agent(topology="rigl", train_freq=(1, "episode"), gradient_steps=2, total_updates=20).learn(60)


@pytest.mark.parametrize(
    ("total", "options"),
    [
        (60, {}),
        (60, dict(learning_starts=0)),
        (61, dict(train_freq=4, gradient_steps=3)),
        (60, dict(train_freq=7, gradient_steps=-1)),
        (64, dict(train_freq=(1, "episode"), gradient_steps=-1, learning_starts=16)),
        (10, dict(learning_starts=50)),
        (60, dict(gradient_steps=0)),
    ],
)
def test_planned_updates_are_those_that_come(total: int, options: dict[str, Any]) -> None:
    model = agent(**options).learn(total)
    assert model._planned_updates() == model._n_updates


class Paying(gymnasium.Env):
    """Pays 1 a step and looks the same for ever; `ends` after one step or not at all."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, ends: bool) -> None:
        self.ends = ends

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(2, np.float32), 1.0, self.ends, False, {}


@pytest.mark.parametrize(("ends", "value"), [(True, 1.0), (False, 2.0)])
def test_truncation_bootstraps_and_termination_does_not(ends: bool, value: float) -> None:
    env = TimeLimit(Paying(ends), 1)
    model = agent(env, gamma=0.5, learning_rate=1e-2, tau=0.2, policy_delay=1, sparsity=0.3).learn(200)
    assert set(model.replay_buffer.dones[:100].flatten()) == {1.0}  # every step is an episode's last
    with torch.no_grad():
        values = model.critic(torch.zeros(1, 2), torch.zeros(1, 1))
    assert [float(each) for each in values] == pytest.approx([value, value], abs=0.1)


def test_environment_by_name() -> None:
    model = SparseTD3(
        "MlpPolicy", "Pendulum-v1", sparsity=0.5, learning_starts=10, batch_size=8, policy_kwargs=dict(net_arch=[8])
    )
    assert model.learn(30).num_timesteps == 30


def test_world_is_made_once() -> None:
    env = reach()
    assert agent(env).get_env().envs[0].unwrapped is env.unwrapped


class Normed(BaseFeaturesExtractor):
    """Observations through a batch normalisation."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space, space.shape[0])
        self.norm = nn.BatchNorm1d(space.shape[0])

    def forward(self, observations: Tensor) -> Tensor:
        return self.norm(observations)


@pytest.mark.parametrize("kind", [SparseTD3, SparseSAC])
def test_targets_normalise_by_the_same_statistics(kind: type) -> None:
    options = dict(net_arch=[16, 16], features_extractor_class=Normed)
    model = fill(agent(kind=kind, sparsity=0.6, period=10, policy_kwargs=options))
    model.train(4, 16)
    pairs = [(model.critic, model.critic_target)]
    pairs += [(model.actor, model.actor_target)] if kind is SparseTD3 else []
    for online, target in pairs:
        for name in ("running_mean", "running_var"):
            ours, theirs = (getattr(each.features_extractor.norm, name) for each in (online, target))
            assert torch.equal(ours, theirs), name
            assert not torch.equal(ours, getattr(nn.BatchNorm1d(3), name)), name
