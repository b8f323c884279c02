"""The collection loop for one plain environment: SB3's own results at a fraction of its time per step."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq
from stable_baselines3.common.utils import should_collect_more_steps
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.td3.policies import Actor, TD3Policy

from agents.nstep_replay import NStepReplay
from agents.replay import Float32ReplayBuffer

Array = NDArray[Any]


def is_plain(agent: TD3, env: VecEnv, train_freq: TrainFreq, replay_buffer: ReplayBuffer) -> bool:
    """Whether `collect` can stand in for SB3's loop.

    Asked at every rollout and nothing is kept, so that an agent can be given another environment,
    buffer or noise at any time.
    """
    return (
        isinstance(env, DummyVecEnv)
        and env.num_envs == 1
        and type(replay_buffer) in (Float32ReplayBuffer, NStepReplay)
        and train_freq.frequency > 0
        and not agent.use_sde
        and _is_vector(agent.observation_space)
        and _is_vector(agent.action_space)
        and _keeps(agent, TD3, ("_sample_action", "_store_transition", "predict"))
        and _keeps(agent.policy, TD3Policy, ("_predict", "predict", "obs_to_tensor", "scale_action", "unscale_action"))
        and _keeps(env, DummyVecEnv, ("step", "step_async", "step_wait", "_save_obs", "_obs_from_buf"))
    )


def _is_vector(space: spaces.Space[Any]) -> bool:
    return type(space) is spaces.Box and len(space.shape) == 1 and space.dtype in (np.float32, np.float64)


def _keeps(owner: Any, original: type, names: tuple[str, ...]) -> bool:
    """Whether no subclass, and nobody on this very object, has replaced what `collect` does in words of its own."""
    for name in names:  # noqa: SIM110 (a generator takes twice as long)
        if getattr(getattr(owner, name), "__func__", None) is not getattr(original, name):
            return False
    return True


def collect(
    agent: Any,
    env: Any,
    callback: BaseCallback,
    train_freq: TrainFreq,
    replay_buffer: Float32ReplayBuffer,
    action_noise: ActionNoise | None = None,
    learning_starts: int = 0,
    log_interval: int | None = None,
) -> RolloutReturn:
    """What `OffPolicyAlgorithm.collect_rollouts` does where `is_plain` holds, to the bit but for what `_act` rounds."""
    _stop_training(agent)
    steps = episodes = 0
    seen: dict[str, Any] = {  # under the names of SB3's local variables, which callbacks read
        "self": agent, "env": env, "callback": callback, "train_freq": train_freq, "replay_buffer": replay_buffer,
        "action_noise": action_noise, "learning_starts": learning_starts, "log_interval": log_interval,
        "num_collected_episodes": 0, "continue_training": True,
    }  # fmt: skip
    callback.on_rollout_start()
    while should_collect_more_steps(train_freq, steps, episodes):
        actions, buffer_actions = choose_actions(agent, action_noise, learning_starts)
        new_obs, rewards, dones, infos = step(env, actions)
        agent.num_timesteps += 1
        steps += 1
        seen.update(
            num_collected_steps=steps, actions=actions, buffer_actions=buffer_actions,
            new_obs=new_obs, rewards=rewards, dones=dones, infos=infos,
        )  # fmt: skip
        callback.update_locals(seen)
        if not callback.on_step():
            return RolloutReturn(steps, episodes, continue_training=False)
        # From here on as the callback has left the arrays: some write into them.
        agent._update_info_buffer(infos, dones)
        _store(agent, replay_buffer, buffer_actions, new_obs, rewards, dones, infos)
        agent._update_current_progress_remaining(agent.num_timesteps, agent._total_timesteps)
        agent._on_step()
        seen.update(idx=0, done=dones[0])
        if dones[0]:
            episodes += 1
            seen["num_collected_episodes"] = episodes
            _end_episode(agent, action_noise, log_interval)
    callback.on_rollout_end()
    return RolloutReturn(steps, episodes, continue_training=True)


def _stop_training(agent: Any) -> None:
    """Put the networks in evaluation mode; SB3 goes through all their modules twice a step, in it or not."""
    if agent.policy.training or agent.actor.training or agent.critic.training:
        agent.policy.set_training_mode(False)


_ONE = np.ones((), np.float32)  # numpy takes twice as long with a Python number, and to broadcast


def choose_actions(agent: Any, action_noise: ActionNoise | None, learning_starts: int) -> tuple[Array, Array]:
    """The next action as the environment takes it, and scaled to [-1, 1] as the buffer does; both (1, actions)."""
    space = agent.action_space
    low, high = space.low[np.newaxis], space.high[np.newaxis]
    half = (high - low) * 0.5  # which is exact, so SB3's formulas with the whole give the same bits
    if agent.num_timesteps < learning_starts:
        unscaled = space.sample()[np.newaxis]
    else:
        _stop_training(agent)  # a callback may have begun
        unscaled = low + (agent._act(agent._last_obs) + _ONE) * half
    scaled = (unscaled - low) / half - _ONE  # not what the actor answered: the way there and back rounds
    if action_noise is not None:
        scaled = np.minimum(np.maximum(scaled + action_noise(), -_ONE), _ONE)
    return low + (scaled + _ONE) * half, scaled


class PlainActor:
    """The actor through its own modules, whatever they are."""

    def __init__(self, agent: TD3) -> None:
        self._agent = agent

    def is_current(self) -> bool:
        """Nothing is remembered from one action to the next."""
        return True

    def act(self, observation: Array) -> Array:
        """What the actor answers to an observation (1, features): (1, actions) float32 in [-1, 1]."""
        actor = self._agent.actor
        inputs = torch.from_numpy(observation.astype(np.float32))
        # Flattening a row changes nothing; other extractors, and actors of other kinds, have their say.
        network = actor.mu if type(actor) is Actor and type(actor.features_extractor) is FlattenExtractor else actor
        with torch.no_grad():
            answer: Array = network(inputs.to(actor.device)).cpu().numpy()
        return answer


def step(env: DummyVecEnv, actions: Array) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
    """As `env.step(actions)`, and leaves `env` as that does; every array is new."""
    env.actions = actions
    observation, reward, terminated, truncated, info = env.envs[0].step(actions[0])
    env.buf_rews[0], env.buf_infos[0] = reward, info
    env.buf_dones[0] = done = terminated or truncated
    info["TimeLimit.truncated"] = truncated and not terminated
    if done:
        info["terminal_observation"] = observation
        observation, env.reset_infos[0] = env.envs[0].reset()
    shown = env.buf_obs[None]  # type: ignore[index]
    shown[0] = observation
    return shown.copy(), env.buf_rews.copy(), env.buf_dones.copy(), [copy_info(info)]


_IMMUTABLE = frozenset({bool, int, float, str, bytes, type(None), np.bool_, np.float32, np.float64, np.int32, np.int64})


def copy_info(info: dict[str, Any]) -> dict[str, Any]:
    """As `deepcopy(info)`; an environment may write into what it handed out."""
    if type(info) is not dict:
        return deepcopy(info)
    copied: dict[str, Any] = {}
    memo: dict[int, Any] = {id(info): copied}
    for key, value in info.items():
        copied[key] = value if type(value) in _IMMUTABLE else deepcopy(value, memo)
    return copied


def _store(
    agent: Any,
    replay_buffer: Float32ReplayBuffer,
    buffer_actions: Array,
    new_obs: Array,
    rewards: Array,
    dones: Array,
    infos: list[dict[str, Any]],
) -> None:
    agent._last_original_obs = agent._last_obs
    next_obs = new_obs
    if dones[0] and infos[0].get("terminal_observation") is not None:  # `new_obs` begins the next episode
        next_obs = new_obs.copy()
        next_obs[0] = infos[0]["terminal_observation"]
    replay_buffer.add(agent._last_obs, next_obs, buffer_actions, rewards, dones, infos)
    agent._last_obs = new_obs


def _end_episode(agent: Any, action_noise: ActionNoise | None, log_interval: int | None) -> None:
    agent._episode_num += 1
    if action_noise is not None:
        action_noise.reset()
    if log_interval is not None and agent._episode_num % log_interval == 0:
        agent.dump_logs()
