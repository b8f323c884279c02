"""TD3 agents as contestants: ours, Stable-Baselines3's and SBX's, with the same settings and transitions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents import SparseTD3
from runs.bench.timing import Contestant
from runs.small_dense import small_hidden
from sparse_core import sparse_layers
from sparse_core.meters import nnz

OBSERVATIONS, ACTIONS = 17, 6  # as HalfCheetah-v5's
WIDTH = 256
TRANSITIONS = 10_000
GRADIENT_STEPS = 10  # per call of `train`: even, so that each call has as many policy updates
PERIOD = 1_000  # updates between two topology changes: the agent's default
LONG_AGO = 1_000_000  # updates planned, so that no schedule comes to its end meanwhile
SETTINGS = dict(learning_rate=1e-3, gamma=0.99, tau=0.005, policy_delay=2, seed=0)


class HalfCheetahSpaces(gymnasium.Env[Any, Any]):
    """The spaces of HalfCheetah-v5, for agents that learn from a given replay buffer and never act."""

    observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """An observation of zeros."""
        return np.zeros(OBSERVATIONS), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Not to be called."""
        raise NotImplementedError("agents in this bench learn from given transitions and never act")


def ours(env: Any, sparsity: float, width: int, batch_size: int, **changes: Any) -> SparseTD3:
    """Our agent, moving its connections (`set`) if it is sparse."""
    kind = dict(sparsity=sparsity, topology="set") if sparsity else dict(sparsity=0, topology="dense")
    chosen: dict[str, Any] = {
        **SETTINGS, **kind, "period": PERIOD, "total_updates": LONG_AGO, "backend": "auto", "device": "cpu",
        "batch_size": batch_size, "buffer_size": TRANSITIONS, "policy_kwargs": dict(net_arch=[width, width]),
    }  # fmt: skip
    return SparseTD3("MlpPolicy", env, **{**chosen, **changes})


def stable_baselines(env: Any, width: int, batch_size: int, **changes: Any) -> stable_baselines3.TD3:
    """Stable-Baselines3's own agent, unmodified."""
    chosen: dict[str, Any] = {
        **SETTINGS, "device": "cpu", "batch_size": batch_size, "buffer_size": TRANSITIONS,
        "policy_kwargs": dict(net_arch=[width, width]),
    }  # fmt: skip
    return stable_baselines3.TD3("MlpPolicy", env, **{**chosen, **changes})


def sbx_is_there() -> bool:
    """Whether SBX is installed: it brings JAX, so it is nobody's dependency."""
    return find_spec("sbx") is not None


def sbx(env: Any, width: int, batch_size: int, threads: int) -> OffPolicyAlgorithm:
    """SBX's own jitted agent, unmodified and on as many cores as the others."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with _cores(threads):
        import jax
        from sbx import TD3

        jax.devices()  # starts XLA's threads
    agent: OffPolicyAlgorithm = TD3(
        "MlpPolicy", env, **SETTINGS, batch_size=batch_size, buffer_size=TRANSITIONS,
        policy_kwargs=dict(net_arch=[width, width]),
    )  # fmt: skip
    return agent


@contextmanager
def _cores(count: int) -> Iterator[None]:
    """Threads that are started within this block stay on `count` cores: the only limit that XLA respects.

    Where an operating system has no such thing, XLA takes all cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@cache
def transitions() -> dict[str, np.ndarray[Any, Any]]:
    """Random transitions, the same for everybody."""
    generator = np.random.default_rng(0)
    return {
        "obs": generator.normal(size=(TRANSITIONS, 1, OBSERVATIONS)),
        "next_obs": generator.normal(size=(TRANSITIONS, 1, OBSERVATIONS)),
        "action": generator.uniform(-1, 1, size=(TRANSITIONS, 1, ACTIONS)).astype(np.float32),
        "reward": generator.normal(size=(TRANSITIONS, 1)),
        "done": np.zeros((TRANSITIONS, 1), bool),
    }


def fill(agent: OffPolicyAlgorithm, rows: int | None = None) -> None:
    """Give the agent its transitions (the first `rows` of them), and the logger that `learn` would have made."""
    agent.set_logger(configure(None, []))
    buffer = agent.replay_buffer
    assert buffer is not None
    data = transitions()
    for index in range(TRANSITIONS if rows is None else rows):
        buffer.add(**{name: column[index] for name, column in data.items()}, infos=[{}])


def wait_for(agent: Any) -> None:
    """Until SBX's last update is done: JAX computes in the background."""
    import jax

    jax.block_until_ready((agent.policy.actor_state, agent.policy.qf_state))


def updates(name: str, agent: OffPolicyAlgorithm, *, finish: Callable[[], object] = lambda: None) -> Contestant:
    """An agent as a contestant: one run is one gradient update, one sample whole periods between topology changes."""
    fill(agent)
    batch_size = agent.batch_size

    def run(count: int) -> None:
        for _ in range(count // GRADIENT_STEPS):
            agent.train(gradient_steps=GRADIENT_STEPS, batch_size=batch_size)
        finish()

    moves = isinstance(agent, SparseTD3) and agent.sparse_options.moves
    return Contestant(name, run, GRADIENT_STEPS, whole=PERIOD if moves else 1)


def weights(agent: SparseTD3) -> int:
    """Connections of actor and critics, targets not counted twice."""
    return nnz(agent.actor) + nnz(agent.critic)


def small_width(wanted: int, observations: int = OBSERVATIONS, actions: int = ACTIONS) -> int:
    """Width h of the dense agent (h-h actor, two h-h critics) whose number of weights is nearest to `wanted`."""
    return small_hidden([1, 1], wanted, observations, actions)[0]


def backend_of(agent: SparseTD3) -> str:
    """What multiplies in its sparse layers."""
    return "+".join(sorted({layer.backend for layer in sparse_layers(agent.policy).values()})) or "torch"
