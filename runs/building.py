"""From settings to an agent in its environment, and the whole of its state as a value."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.vec_env import DummyVecEnv

import envs
from agents import NStepReplay, SparseAgent
from runs import algos
from runs.global_draws import generator_states, restore_generators
from runs.settings import Settings
from sparse_core import Topology


def build(
    settings: Settings, backends: Mapping[str, str] | None = None, topologies: Mapping[str, Topology] | None = None
) -> SparseAgent:
    """A new agent in its environment; whatever cannot be is a `ValueError` before anything is written.

    `backends` is what a run settled on when it started; without it, `settings.backend` says. `topologies` are those
    that a run with `settings.topology_from` begins with.
    """
    torch.set_num_threads(settings.threads)
    environment = envs.make(settings.env, seed=settings.seed, noise=settings.noise)
    try:
        return _build(settings, environment, settings.backend if backends is None else backends, topologies)
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or isinstance(error, torch.OutOfMemoryError):
            raise MemoryError("the networks do not fit") from error
        raise
    except BaseException:
        environment.close()
        raise


def _build(
    settings: Settings,
    environment: envs.Replayable,
    backend: str | Mapping[str, str],
    topologies: Mapping[str, Topology] | None,
) -> SparseAgent:
    shape = environment.action_space.shape
    assert shape is not None
    chosen = algos.find(settings.algo)
    noise = NormalActionNoise(np.zeros(shape), np.full(shape, settings.action_noise))
    return chosen.agent(
        "MlpPolicy",
        DummyVecEnv([lambda: Monitor(environment)]),
        learning_rate=settings.learning_rate,
        buffer_size=settings.buffer_size,
        learning_starts=settings.learning_starts,
        batch_size=settings.batch_size,
        tau=settings.tau,
        gamma=settings.gamma,
        action_noise=noise if settings.action_noise or settings.algo == "td3" else None,
        policy_kwargs=dict(
            net_arch=list(settings.hidden), optimizer_kwargs=dict(weight_decay=settings.weight_decay)
        ),
        seed=settings.seed,
        device=settings.device,
        topology=settings.topology,
        actor_sparsity=settings.actor_sparsity,
        critic_sparsity=settings.critic_sparsity,
        distribution=settings.distribution,
        dense=settings.dense,
        input_sparsity=settings.input_sparsity,
        init=settings.init,
        initial_topology=settings.initial_topology,
        norm=settings.norm,
        drop_fraction=settings.drop_fraction,
        period=settings.period,
        schedule=settings.schedule,
        stop=settings.stop,
        capture_batches=settings.capture_batches,
        topologies=topologies,
        backend=backend,
        replay_buffer_class=NStepReplay if settings.n_steps > 1 else None,  # whose rows can be stored
        n_steps=settings.n_steps,
        n_step_onset=settings.n_step_onset,
        buffer_min=settings.buffer_min,
        buffer_every=settings.buffer_every,
        buffer_distance=settings.buffer_distance,
        **chosen.options(settings),
    )  # fmt: skip


_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_total_timesteps", "_current_progress_remaining")
_MONITOR = ("rewards", "needs_reset", "episode_returns", "episode_lengths", "episode_times", "total_steps")


def network_state(model: SparseAgent) -> dict[str, Any]:
    """Networks and targets with their topologies: enough to act."""
    return {"policy": model.policy.state_dict()}


def agent_state(model: SparseAgent) -> dict[str, Any]:
    """Everything that changes while training, the replay buffer apart."""
    monitor = _monitor(model)
    return {
        **network_state(model),
        "actor_optimizer": model.actor.optimizer.state_dict(),
        "critic_optimizer": model.critic.optimizer.state_dict(),
        "adaptation": model.adaptation_state(),
        **_further_state(model),
        "counters": {name: getattr(model, name) for name in _COUNTERS},
        "last_observation": model._last_obs,
        "last_episode_starts": model._last_episode_starts,
        "episode_infos": [dict(info) for info in model.ep_info_buffer or ()],
        "episode_successes": [float(success) for success in model.ep_success_buffer or ()],
        "monitor": {name: getattr(monitor, name) for name in _MONITOR} | {"age": time.time() - monitor.t_start},
        "environment": _replayable(model).state(),
        "generators": generator_states(),
    }


def restore_networks(model: SparseAgent, state: dict[str, Any]) -> None:
    """Put networks back; `state` is what `network_state` or `agent_state` gave. With the latter SAC's entropy, too."""
    model.policy.load_state_dict(state["policy"])
    for name in _further(model)[1]:
        if name in state:
            recursive_getattr(model, name).data.copy_(state[name])


def restore_agent(model: SparseAgent, state: dict[str, Any]) -> None:
    """Put back what `agent_state` gave; training then goes on as if it had never stopped."""
    restore_networks(model, state)
    model.actor.optimizer.load_state_dict(state["actor_optimizer"])
    model.critic.optimizer.load_state_dict(state["critic_optimizer"])
    model.load_adaptation_state(state["adaptation"])
    _restore_further(model, state)
    for name, value in state["counters"].items():
        setattr(model, name, value)
    model._last_obs = state["last_observation"]
    model._last_episode_starts = state["last_episode_starts"]
    assert model.ep_info_buffer is not None
    assert model.ep_success_buffer is not None
    model.ep_info_buffer.extend(state["episode_infos"])
    model.ep_success_buffer.extend(state.get("episode_successes", ()))  # not in checkpoints of before
    monitor = _monitor(model)
    for name in _MONITOR:
        setattr(monitor, name, state["monitor"][name])
    monitor.t_start = time.time() - state["monitor"]["age"]
    _replayable(model).restore(state["environment"])
    # Last of all: building and restoring may have drawn.
    restore_generators(state["generators"])


def _further_state(model: SparseAgent) -> dict[str, Any]:
    """What not every agent has: SAC's entropy coefficient, under SB3's names, and the oldest row not forgotten."""
    parts, variables = _further(model)
    replay = model.replay_buffer
    return {
        **{name: recursive_getattr(model, name).state_dict() for name in parts},
        **{name: recursive_getattr(model, name).detach() for name in variables},
        **({"first_row": replay.first} if isinstance(replay, NStepReplay) else {}),
    }


def _restore_further(model: SparseAgent, state: dict[str, Any]) -> None:
    parts, _ = _further(model)
    if isinstance(model.replay_buffer, NStepReplay):
        model.replay_buffer.first = state["first_row"]
    for name in parts:
        recursive_getattr(model, name).load_state_dict(state[name])


def _further(model: SparseAgent) -> tuple[list[str], list[str]]:
    parts, variables = model._get_torch_save_params()
    known = ("policy", "actor.optimizer", "critic.optimizer")
    return [name for name in parts if name not in known], variables


def start_learning(model: SparseAgent, logger: Logger) -> None:
    """What SB3's `learn` does before its first step, done early so that a state can be put in its place."""
    model.set_logger(logger)
    model.ep_info_buffer = deque(maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)


def _monitor(model: SparseAgent) -> Monitor:
    environment = model.get_env()
    assert isinstance(environment, DummyVecEnv)
    monitor = environment.envs[0]
    assert isinstance(monitor, Monitor)
    return monitor


def _replayable(model: SparseAgent) -> envs.Replayable:
    wrapped = _monitor(model).env
    assert isinstance(wrapped, envs.Replayable)
    return wrapped
