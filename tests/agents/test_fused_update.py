"""The update without autograd: what it takes on, that it equals autograd's, and that it follows its agent."""

import copy
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from small_agents import METHODS, agent, autograd, dense_state, fill, reach, topologies
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from agents import SparseTD3, td3_kernels
from agents.autograd_update import AutogradUpdate
from agents.collection import PlainActor
from agents.fused_update import FusedActor, FusedUpdate
from sparse_core import kernels
from sparse_core.vectors import VECTOR_BYTES


class DoubleReplayBuffer(ReplayBuffer):
    """Samples in float64; actions, whose dtype the noise has, as they are."""

    def sample(self, *args: Any, **kwargs: Any) -> ReplayBufferSamples:
        batch = super().sample(*args, **kwargs)
        return batch._replace(rewards=batch.rewards.double(), dones=batch.dones.double())


class DoubleFlatten(FlattenExtractor):
    """Takes SB3's float32 features back to float64."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations).double()


def doubles(**options: Any) -> list[SparseTD3]:
    """An agent in float64, and one that autograd updates; noise and clip are such that float32 loses nothing."""
    options = dict(target_policy_noise=0.25, target_noise_clip=0.5, replay_buffer_class=DoubleReplayBuffer) | options
    kwargs = options.pop("policy_kwargs", dict(net_arch=[16, 16]))
    # With its usual eps Adam makes a step of full length out of a gradient that is nothing but rounding.
    kwargs["optimizer_kwargs"] = dict(eps=0.01) | kwargs.get("optimizer_kwargs", {})
    fused = agent(**options, policy_kwargs=kwargs)
    other = autograd(agent(**options, policy_kwargs=kwargs | dict(features_extractor_class=DoubleFlatten)))
    for model in (fused, other):
        model.policy.double()
    return [fused, other]


def assert_same(first: SparseTD3, second: SparseTD3, tolerance: float) -> None:
    assert topologies(first) == topologies(second)
    expected, got = dense_state(second), dense_state(first)
    for name, weights in expected.items():
        torch.testing.assert_close(got[name], weights, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


OPTIONS: dict[str, dict[str, Any]] = {
    "one critic": dict(policy_kwargs=dict(net_arch=[16, 16], n_critics=1)),
    "three critics": dict(policy_kwargs=dict(net_arch=dict(pi=[12, 16], qf=[16, 16, 8]), n_critics=3)),
    "settings": dict(policy_delay=3, tau=0.1, gamma=0.9, target_policy_noise=0.5, target_noise_clip=0.125),
    "weight decay": dict(policy_kwargs=dict(net_arch=[16, 16], optimizer_kwargs=dict(weight_decay=0.1))),
    "decoupled": dict(
        policy_kwargs=dict(net_arch=[16, 16], optimizer_kwargs=dict(weight_decay=0.1, decoupled=True, betas=(0.5, 0.9)))
    ),
    "schedule": dict(learning_rate=lambda left: 1e-3 * left),
    "gemm": dict(backend="gemm"),
    "two environments": dict(env=DummyVecEnv([reach, reach])),
    "first layers dense": dict(dense=["input", "output"]),
    "nothing dense": dict(dense=[]),
    "normalised": dict(norm="layer"),
    "normalised, gemm": dict(norm="layer", backend="gemm", topology="rigl", total_updates=100),
    "warm-up": dict(topology="smet:warmup=12", total_updates=100),
    "one age": dict(topology="set:ages=false"),
}


COMMON = {"csr", "gemm", "three critics", "schedule", "two environments", "normalised, gemm", "warm-up", "one age"}


@pytest.mark.parametrize(
    "case", [case if case in COMMON else pytest.param(case, marks=pytest.mark.slow) for case in OPTIONS]
)
def test_updates_are_autograds_in_float64(case: str) -> None:
    models = doubles(**dict(backend="csr") | OPTIONS[case])
    for model in models:
        set_random_seed(3)
        fill_all(model)
        for _ in range(4):
            model.train(15, 16)
    assert [type(model._update) for model in models] == [FusedUpdate, AutogradUpdate]
    assert models[0].changes > 3
    assert_same(*models, 1e-12)


@pytest.mark.parametrize(("case", "more"), [("nothing dense", 9), ("normalised", 0), ("normalised", 9), ("rigl", 0)])
def test_an_update_in_parts_gives_the_same_bits(case: str, more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tile of the batch from actions to gradients, as agents too wide for the cache do it; captures included."""
    options = dict(backend="csr") | OPTIONS.get(case, dict(topology="rigl", total_updates=100))
    tile = kernels.LARGEST * VECTOR_BYTES // 4
    models = []
    for cache in (kernels.CACHE, 1):
        monkeypatch.setattr("sparse_core.fused_networks.CACHE", cache)
        model = fill_all(agent(**options))
        set_random_seed(3)
        for _ in range(3):
            model.train(15, 2 * tile + more)
        models.append(model)
    assert [len(model._update._critics.parts()) for model in models] == [1, 3 if more else 2]
    assert models[0].changes > 3
    assert_same(*models, 0)
    assert models[0].logger.name_to_value == models[1].logger.name_to_value


def fill_all(model: SparseTD3) -> SparseTD3:
    """As `fill`, for any number of environments."""
    fill(model, 0)
    buffer, draws = model.replay_buffer, np.random.default_rng(0)
    for name in ("observations", "next_observations", "actions", "rewards"):
        ring = getattr(buffer, name)
        ring[:] = draws.uniform(-1, 1, ring.shape).astype(np.float32)  # to which SB3 rounds what networks see
    buffer.dones[::7] = 1
    buffer.timeouts[::14] = 1
    buffer.pos = 150
    return model


@pytest.mark.parametrize("topology", METHODS)
@pytest.mark.parametrize("environments", [1, 2])
def test_rows_are_gathered_as_sampled(topology: str, environments: int) -> None:
    env = DummyVecEnv([reach] * environments)
    models = [agent(env, topology=topology, total_updates=99, sparsity=None) for _ in range(2)]
    autograd(models[1])
    for model in models:
        set_random_seed(3)
        fill_all(model).train(12, 16)
    assert isinstance(models[0]._update, FusedUpdate)
    assert_same(*models, 1e-5)


def test_replay_of_several_steps() -> None:
    models = [agent(n_steps=3), autograd(agent(n_steps=3))]
    for model in models:
        set_random_seed(3)
        fill(model).train(9, 16)
    assert isinstance(models[0]._update, FusedUpdate)
    assert_same(*models, 1e-5)


def normalised() -> SparseTD3:
    env = VecNormalize(DummyVecEnv([reach]))
    env.obs_rms.mean[:] = 0.3
    return agent(env)


def test_normalised_observations() -> None:
    models = [normalised(), autograd(normalised())]
    for model in models:
        set_random_seed(3)
        model._vec_normalize_env = model.env
        fill(model).train(9, 16)
    assert isinstance(models[0]._update, FusedUpdate)
    assert_same(*models, 1e-5)


TAKEN: dict[str, tuple[bool, dict[str, Any]]] = {
    "defaults": (True, {}),
    "dense": (True, dict(topology="dense", sparsity=0)),
    "other backend": (False, dict(backend="rows")),
    "masks": (False, dict(topology="top-kast")),
    "other activation": (False, dict(policy_kwargs=dict(net_arch=[16, 16], activation_fn=nn.ELU))),
    "other optimizer": (False, dict(policy_kwargs=dict(net_arch=[16, 16], optimizer_class=torch.optim.Adam))),
    "shared extractor": (True, dict(policy_kwargs=dict(net_arch=[16, 16], share_features_extractor=True))),
    "no hidden layer": (True, dict(sparsity=0, policy_kwargs=dict(net_arch=[]))),
}


@pytest.mark.parametrize("case", TAKEN)
def test_agents_it_takes_on(case: str) -> None:
    fits, options = TAKEN[case]
    model = fill(agent(**options))
    model.train(2, 16)
    assert isinstance(model._update, FusedUpdate if fits else AutogradUpdate)


def test_without_numba_autograd_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("agents.fused_update", "sparse_core.fused_networks"):
        monkeypatch.setitem(sys.modules, name, None)
    model = fill(agent(backend="gemm"))
    model.train(2, 16)
    assert isinstance(model._update, AutogradUpdate)


def load_state(model: SparseTD3, other: SparseTD3) -> None:
    model.policy.load_state_dict(other.policy.state_dict())


def load_optimizers(model: SparseTD3, other: SparseTD3) -> None:
    load_state(model, other)
    for name in ("actor", "critic"):
        getattr(model, name).optimizer.load_state_dict(copy.deepcopy(getattr(other, name).optimizer.state_dict()))


def change_backends(model: SparseTD3, other: SparseTD3) -> None:
    model.policy.use_backends(dict.fromkeys(model.backends, "gemm"))


def replace_a_parameter(model: SparseTD3, other: SparseTD3) -> None:
    bias = model.critic.qf0[-1].bias
    bias.data = bias.detach() + 1


def move_by_hand(model: SparseTD3, other: SparseTD3) -> None:
    model.critic_sparsifier.update()


def there_and_back(model: SparseTD3, other: SparseTD3) -> None:
    for backend in ("gemm", "csr"):
        model.policy.use_backends(dict.fromkeys(model.backends, backend))
    load_state(model, other)


def stop_a_layer(model: SparseTD3, other: SparseTD3) -> None:
    model.critic.qf0[0].requires_grad_(False)


def exchange_a_module(model: SparseTD3, other: SparseTD3) -> None:
    model.critic.qf0[1] = nn.ELU()


def change_betas(model: SparseTD3, other: SparseTD3) -> None:
    model.critic.optimizer.param_groups[0]["betas"] = (0.5, 0.9)


def exchange_moments(model: SparseTD3, other: SparseTD3) -> None:
    for state in model.critic.optimizer.state.values():
        state["exp_avg"] = torch.zeros_like(state["exp_avg"])


MEDDLERS = (
    load_state, load_optimizers, change_backends, replace_a_parameter, move_by_hand,
    there_and_back, stop_a_layer, exchange_a_module, change_betas, exchange_moments,
)  # fmt: skip


@pytest.mark.parametrize("meddle", MEDDLERS)
def test_follows_what_happens_between_two_calls(meddle: Callable[[SparseTD3, SparseTD3], None]) -> None:
    other = fill(agent(seed=1))
    other.train(25, 16)  # two changes: ages of every connection
    models = [agent(period=1000, backend="csr"), autograd(agent(period=1000, backend="csr"))]
    for model in models:
        set_random_seed(3)
        fill(model).train(5, 16)
        meddle(model, other)
        model.train(5, 16)
    assert isinstance(models[0]._update, AutogradUpdate if meddle in (stop_a_layer, exchange_a_module) else FusedUpdate)
    assert_same(*models, 1e-5)


@pytest.mark.parametrize("how", ["wrapped", "hooked for all"])
def test_whoever_looks_at_the_steps_sees_them(how: str) -> None:
    model, calls = fill(agent()), []
    optimizer = model.critic.optimizer
    if how == "wrapped":  # as people clip gradients in SB3, and as learning rate schedulers do

        def step(*given: Any, own: Any = optimizer.step, **options: Any) -> Any:
            calls.append(optimizer)
            return own(*given, **options)

        optimizer.step = step
        model.train(6, 16)
    else:
        handle = register_optimizer_step_pre_hook(lambda each, *_: calls.append(each))
        try:
            model.train(6, 16)
        finally:
            handle.remove()
    assert calls.count(optimizer) == 6
    assert isinstance(model._update, AutogradUpdate)


def test_another_optimizer_in_the_middle_is_taken() -> None:
    model = fill(agent(topology="static"))
    model.train(4, 16)
    assert isinstance(model._update, FusedUpdate)
    before = [parameter.detach().clone() for parameter in model.critic.parameters()]
    model.critic.optimizer = torch.optim.SGD(model.critic.parameters(), lr=1e-3)
    model.train(4, 16)
    assert isinstance(model._update, AutogradUpdate)
    assert not any(torch.equal(*pair) for pair in zip(before, model.critic.parameters(), strict=True))
    assert not model.critic.optimizer.state  # plain SGD has none: what stepped was this one


@pytest.mark.parametrize("when", ["pre", "post"])
def test_a_step_hook_is_called(when: str) -> None:
    model, calls = fill(agent()), []
    getattr(model.critic.optimizer, f"register_step_{when}_hook")(lambda *_: calls.append(1))
    model.train(3, 16)
    assert len(calls) == 3


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU])
def test_a_loaded_agent_acts_as_it_learns(activation: type[nn.Module], tmp_path: Path) -> None:
    model = agent(policy_kwargs=dict(net_arch=[16, 16], activation_fn=activation))
    model.learn(30)
    model.save(tmp_path / "agent.zip")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        assert not {"_acting", "_update"} & json.loads(archive.read("data")).keys()
    loaded = SparseTD3.load(tmp_path / "agent.zip", env=reach())
    loaded.learn(40)
    observation = np.ones((1, 3))
    with torch.no_grad():
        expected = loaded.actor(torch.ones(1, 3)).numpy()
    np.testing.assert_allclose(loaded._act(observation), expected, rtol=0, atol=1e-6)


CHECKED = """
import numpy as np
from agents import td3_kernels

def gathered(last):
    ring, flat, batch = np.zeros((5, 2, 3), np.float32), np.zeros((5, 2), np.float32), np.zeros(4, np.float32)
    x = np.zeros((6, 4), np.float32)
    places, environments = np.array([0, 4, 2, last]), np.array([0, 1, 1, 0])
    td3_kernels.gather(ring, ring, ring, flat, flat, flat, places, environments, 0.9, x, x.copy(), batch, batch.copy())

gathered(4)
print("inside")
try:
    gathered(5)
except IndexError:
    print("outside")
"""


@pytest.mark.slow
def test_rows_are_read_within_the_ring(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(td3_kernels.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", CHECKED], env=environment, cwd=root, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.split() == ["inside", "outside"], done.stderr[-2000:]


def test_target_values_by_hand() -> None:
    nan = np.nan
    next_values = np.array([[[1.0, 5.0, nan, 1.0]], [[3.0, 4.0, 1.0, nan]]])
    values, gradients = np.zeros((2, 1, 4)), np.empty((2, 1, 4))
    rewards, discounts = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.5, 0.0, 1.0, 1.0])
    td3_kernels.temporal_difference(values, next_values, rewards, discounts, gradients, 0, 4, 0.0)
    # targets 1 + 0.5 · 1, 1 + 0 · 4, and what has diverged is seen to
    np.testing.assert_array_equal(gradients, [[[-0.75, -0.5, nan, nan]]] * 2)
    loss = td3_kernels.temporal_difference(values, next_values, rewards, discounts, gradients, 0, 1, 0.0)
    assert loss == 2 * 1.5**2
    assert td3_kernels.temporal_difference(values, next_values, rewards, discounts, gradients, 1, 2, loss) == loss + 2


def test_smoothing_by_hand() -> None:
    actions, noise = np.array([[0.0, 0.9, -0.9, np.nan]]), np.array([[1.0], [5.0], [-5.0], [0.0]])
    td3_kernels.smooth(actions, noise, 0.25, 0.5)
    np.testing.assert_array_equal(actions, [[0.25, 1.0, -1.0, np.nan]])


def test_another_batch_size() -> None:
    models = [agent(), autograd(agent())]
    for model in models:
        set_random_seed(3)
        fill(model)
        for batch_size in (16, 32, 16):
            model.train(3, batch_size)
    assert_same(*models, 1e-5)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_update_allocates_nothing_once_warm(norm: str) -> None:
    model = fill(agent(topology="rigl", total_updates=10_000, period=1_000, backend="csr", norm=norm))
    model.train(4, 16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        model.train(4, 16)
    assert sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages()) == 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        autograd(model)._update = None
        model.train(4, 16)
    assert sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages()) > 0  # it would have been seen


def test_signals_are_captured_only_before_a_change() -> None:
    model = fill(agent(topology="rigl", total_updates=100, period=10))
    captured = []
    for _ in range(20):
        model.train(1, 16)
        captured.append(model.critic.qf0[0].capture is not None)
    assert captured == [step in (9, 19) for step in range(1, 21)]


def test_acting_is_the_actors_whatever_happens_to_it() -> None:
    model = fill(agent(gymnasium.make("Pendulum-v1"), sparsity=0.5, policy_kwargs=dict(net_arch=[64, 64])))
    for observation in np.random.default_rng(0).normal(size=(5, 1, 3)):
        with torch.no_grad():
            expected = model.actor(torch.from_numpy(observation).float())
        np.testing.assert_allclose(model._act(observation), expected.numpy(), rtol=0, atol=1e-6)
        assert isinstance(model._acting, FusedActor)
        model.train(1, 16)
        model.policy.load_state_dict(copy.deepcopy(model.policy.state_dict()))
        model.actor.mu[0].bias.data = model.actor.mu[0].bias.detach() + 0.1
    model.actor_sparsifier.freeze(next(iter(model.actor_sparsifier.layers)))
    with torch.no_grad():
        expected = model.actor(torch.from_numpy(observation).float())
    assert np.array_equal(model._act(observation), expected.numpy())
    assert isinstance(model._acting, PlainActor)
    model.train(1, 16)
    assert isinstance(model._update, AutogradUpdate)
