"""Bad input: a clear error before anything is made."""

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small_agents import agent, reach
from stable_baselines3 import TD3
from stable_baselines3.td3.policies import CnnPolicy, MlpPolicy

from agents import SparseTD3, SparseTD3Policy
from agents.options import SparseOptions
from sparse_core import PRESETS

HIDDEN = "every hidden layer must be at least 1 wide"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(sparsity=1.0), "`sparsity` must be a number in [0, 1), the share of connections left out, got 1.0"),
        (dict(sparsity=-0.1), "got -0.1"),
        (dict(sparsity=float("nan")), "got nan"),
        (dict(sparsity="0.5"), "got '0.5'"),
        (dict(sparsity=float("nan"), actor_sparsity=0.5, critic_sparsity=0.5), "got nan"),
        (dict(actor_sparsity=1.0), "got 1.0"),
        (dict(critic_sparsity=-1.0), "got -1.0"),
        (
            dict(topology="sett"),
            "no topology called 'sett'; did you mean 'set'? known: acdc, cht, chts, ctre-seq, ctre-sim,",
        ),
        (dict(topology="dense", sparsity=0.5), "topology 'dense' keeps every connection, got sparsity 0.5"),
        (dict(topology="dense", actor_sparsity=0.5), "or choose a sparse topology, as 'static' or 'set'"),
        (dict(distribution="erkk"), "no distribution called 'erkk'; did you mean 'erk'?"),
        (dict(init="fanin"), "no initialisation called 'fanin'; did you mean 'fan-in'?"),
        (dict(schedule="cosin"), "no schedule called 'cosin'; did you mean 'cosine'?"),
        (dict(backend="gem"), "no backend called 'gem'; did you mean 'gemm'?"),
        (dict(drop_fraction=1.1), "`drop_fraction` must be in [0, 1], got 1.1"),
        (dict(drop_fraction=float("nan")), "`drop_fraction` must be in [0, 1], got nan"),
        (dict(stop=-0.5), "`stop` must be a share of the updates in [0, 1], got -0.5"),
        (dict(period=0), "`period` must be a whole number of at least 1, got 0"),
        (dict(period=float("nan")), "`period` must be a whole number of at least 1, got nan"),
        (dict(capture_batches=0), "`capture_batches` must be a whole number of at least 1, got 0"),
        (dict(total_updates=-1), "`total_updates` must not be negative, got -1"),
        (dict(batch_size=500), "`batch_size` must not exceed `buffer_size`, got 500 > 400; take a larger buffer"),
        (dict(batch_size=0), "`batch_size` must be at least 1, got 0"),
        (dict(buffer_size=-5), "`buffer_size` must be at least 1, got -5"),
        (dict(policy_delay=0), "`policy_delay` must be at least 1, got 0"),
        (dict(learning_starts=-1), "`learning_starts` must not be negative, got -1"),
        (dict(policy_kwargs=dict(net_arch=[16, 0])), f"{HIDDEN}, got `net_arch` [16, 0]"),
        (dict(policy_kwargs=dict(net_arch=dict(pi=[16], qf=[-1]))), f"{HIDDEN}, got `net_arch` {{'pi'"),
        (
            dict(dense="hidden"),
            "`dense` names no layer with 'hidden'; give 'input', 'output', an index from 0 to 2, or a glob",
        ),
        (dict(dense=("input", 7)), "`dense` names no layer with 7"),
        (dict(sparsity=0.99), "`sparsity` 0.99 cannot be met"),
        (dict(distribution="counts:9,9", sparsity=0.5), "distribution 'counts:9,9' fixes the number of connections"),
        (dict(initial_topology="random-graph"), "no initial topology called 'random-graph'; did you mean 'random'?"),
        (dict(initial_topology="brf:r=2"), "option 'r' of initial topology 'brf' must be in [0, 1], got 2"),
        (dict(initial_topology="correlated"), "initial topology 'correlated' reads inputs, which are not known here"),
        (dict(topology="set:pruned_neurons=1.5"), "`pruned_neurons` must be a share in [0, 1), got 1.5"),
        (dict(topology="rigl:grow_mix=3"), "`grow_mix` must be a share in [0, 1], got 3.0"),
        (dict(topology="set:drop_temperature=-1"), "`drop_temperature` must be a number ≥ 0, got -1.0"),
        (dict(topology="rigl:drop=nope"), "no drop rule called 'nope'"),
        (dict(topology="rigl:birth=nope"), "no birth called 'nope'"),
        (dict(topology="rigl:redistribute=nope"), "no redistribution called 'nope'"),
        (dict(topology="rigl:period=0"), "`period` must be at least 1 step between two topology changes, got 0"),
        (dict(topology="rigl:warmup=-1"), "`warmup` must be a whole number of steps ≥ 0, got -1"),
        (dict(distribution="er:1"), "must give one positive factor for each of the 2 sparse layers"),
    ],
)
def test_value_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        agent(**options)


def test_settings_given_by_position_are_checked_too() -> None:
    with pytest.raises(ValueError, match="`batch_size` must not exceed `buffer_size`, got 64 > 32"):
        SparseTD3("MlpPolicy", reach(), 1e-3, 32, 10, 64)


@pytest.mark.parametrize("steps", [-1, 0.5, True, float("nan")])
def test_steps_that_cannot_be(steps: Any) -> None:
    model = agent()
    with pytest.raises(ValueError, match=f"`total_timesteps` must be a whole number ≥ 0, got {steps!r}"):
        model.learn(steps)
    assert model.num_timesteps == 0
    assert model.critic_sparsifier is None


@pytest.mark.parametrize("steps", [0, 30, 30.0, np.int64(30)])
def test_steps_that_can_be(steps: Any) -> None:
    assert agent().learn(steps).num_timesteps == steps


class Spaces(gymnasium.Env):
    def __init__(self, observations: spaces.Space, actions: spaces.Space) -> None:
        self.observation_space, self.action_space = observations, actions


BOX = spaces.Box(-1.0, 1.0, (2,))
DICT = spaces.Dict({"position": BOX})


@pytest.mark.parametrize("policy", ["MlpPolicy", SparseTD3Policy])
@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (BOX, spaces.Discrete(3), "SparseTD3 takes Box actions, got Discrete(3)"),
        (BOX, spaces.MultiBinary(3), "SparseTD3 takes Box actions, got MultiBinary(3)"),
        (DICT, BOX, "SparseTD3 takes Box observations, got Dict; flatten them with"),
    ],
)
def test_environment_that_cannot_be(policy: Any, observations: Any, actions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SparseTD3(policy, Spaces(observations, actions))


def test_discrete_actions_of_an_environment_by_name() -> None:
    with pytest.raises(ValueError, match=re.escape("SparseTD3 takes Box actions, got Discrete(2)")):
        SparseTD3("MlpPolicy", "CartPole-v1")


@pytest.mark.parametrize("policy", ["CnnPolicy", "MultiInputPolicy", "Mlp", MlpPolicy, CnnPolicy, None])
def test_policy_that_cannot_be(policy: Any) -> None:
    wanted = f"`policy` must be 'MlpPolicy' or a subclass of SparseTD3Policy, got {policy!r}"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        SparseTD3(policy, reach())


@pytest.mark.parametrize("topology", [name for name, preset in PRESETS.items() if preset.changes])
def test_optimizer_whose_state_cannot_follow(topology: str) -> None:
    with pytest.raises(TypeError, match="Adafactor is not known to be elementwise"):
        agent(
            topology=topology, sparsity=PRESETS[topology].own_sparsity or 0.6,
            policy_kwargs=dict(net_arch=[16, 16], optimizer_class=torch.optim.Adafactor),
        )  # fmt: skip


def test_error_leaves_random_numbers_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="did you mean"):
        agent(topology="sett")
    with pytest.raises(ValueError, match="Discrete"):
        agent(Spaces(BOX, spaces.Discrete(2)))
    assert torch.equal(torch.get_rng_state(), before)


def resolve(**given: Any) -> SparseOptions:
    arguments: dict[str, Any] = dict(
        sparsity=None, topology="set", actor_sparsity=None, critic_sparsity=None, distribution=None, dense=("output",),
        init=None, drop_fraction=None, period=1_000, schedule=None, stop=None, capture_batches=1, total_updates=None,
        backend="gemm",
    )  # fmt: skip
    return SparseOptions.resolve(**{**arguments, **given})


def test_choices_given_with_the_name_are_the_users() -> None:
    options = resolve(topology="rigl:period=7:capture_batches=8:stop=0.2", period=None, capture_batches=None)
    assert (options.period, options.capture_batches, options.stop) == (7, 8, 0.2)
    assert resolve(topology="rigl:period=7", period=9).period == 9  # an argument beats them
    assert PRESETS["set:birth=0.1"].birth == 0.1  # a number, not a name


@pytest.mark.parametrize("name", [*PRESETS])
def test_a_period_that_makes_a_method_what_it_is_is_kept(name: str) -> None:
    own = {"itop-set": 1500, "itop-rigl": 4000, **dict.fromkeys(("deepr", "sr-ste", "trainable-threshold"), 1)}
    own.update(dict.fromkeys(("wast", "wast-random"), 1))
    assert resolve(topology=name, period=None).period == own.get(name, 1000)


@pytest.mark.parametrize("name", [*PRESETS])
def test_defaults_are_the_topologys_own(name: str) -> None:
    preset, options = PRESETS[name], resolve(topology=name)
    own = ("distribution", "init", "initial_topology", "drop_fraction", "schedule", "stop")
    assert [getattr(options, each) for each in own] == [getattr(preset, each) for each in own]
    assert options.actor == options.critic == (0.0 if preset.dense else 0.5)
    assert options.moves == preset.changes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("drop_fraction", 0.0),
        ("stop", 0.0),
        ("schedule", "linear"),
        ("init", "fan-in"),
        ("distribution", "er:1,2"),
        ("initial_topology", "brf:r=0"),
    ],
)
def test_what_is_given_beats_the_topologys_own(name: str, value: Any) -> None:
    assert getattr(resolve(topology="rigl", **{name: value}), name) == value


def test_constructor_takes_sb3s_own_defaults() -> None:
    names = (
        "learning_rate", "buffer_size", "learning_starts", "batch_size", "tau", "gamma", "train_freq",
        "gradient_steps", "policy_delay", "target_policy_noise", "target_noise_clip", "n_steps",
    )  # fmt: skip
    ours, theirs = SparseTD3("MlpPolicy", reach()), TD3("MlpPolicy", reach())
    assert {name: getattr(ours, name) for name in names} == {name: getattr(theirs, name) for name in names}
    assert ours.policy.net_arch == theirs.policy.net_arch
