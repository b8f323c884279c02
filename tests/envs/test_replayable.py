"""A restored environment goes on as if nothing had happened."""

import json
import re
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

import envs
from envs.replayable import ROWS_AT_FIRST

ON = 300  # steps to compare after the restore

Step = tuple[bytes, float, bool, bool]


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """The state after a trip through a file: arrays as arrays, the rest as JSON."""
    arrays = {key: value for key, value in state.items() if isinstance(value, np.ndarray)}
    rest = json.loads(json.dumps({key: value for key, value in state.items() if key not in arrays}))
    return {**rest, **{key: value.copy() for key, value in arrays.items()}}


def walk(env: envs.Replayable, steps: int) -> Iterator[Step]:
    """Random actions, with resets where an episode ends."""
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        yield observation.tobytes(), float(reward), terminated, truncated
        if terminated or truncated:
            yield env.reset()[0].tobytes(), 0.0, False, False


@pytest.mark.end_to_end
@pytest.mark.parametrize("id", envs.names())
@pytest.mark.parametrize("before", [0, 1, 37, 130])
def test_goes_on_bit_for_bit(id: str, before: int) -> None:
    # 50 steps at most, so that all five meet ends of episodes, and 130 lies behind two.
    env = envs.make(id, seed=3, max_episode_steps=50)
    env.reset()
    for _ in walk(env, before):
        pass
    state = stored(env.state())
    straight = list(walk(env, ON))

    other = envs.make(id, seed=99, max_episode_steps=50)
    observation = other.restore(state)
    assert observation is not None
    assert observation.tobytes() == state["observation"].tobytes()
    assert list(walk(other, ON)) == straight
    assert any(step[3] or step[2] for step in straight)


@pytest.mark.parametrize("id", ["Ant-v5", "Humanoid-v5"])
def test_storing_twice_is_storing_once(id: str) -> None:
    env = envs.make(id, seed=3)
    env.reset()
    for _ in walk(env, 10):
        pass
    other = envs.make(id, seed=4)
    other.restore(stored(env.state()))
    for _ in (*walk(env, 20), *walk(other, 20)):
        pass
    third = envs.make(id, seed=5)
    third.restore(stored(other.state()))
    assert list(walk(third, 50)) == list(walk(env, 50))


def test_taking_the_state_disturbs_nothing() -> None:
    one, other = envs.make("Hopper-v5", seed=1), envs.make("Hopper-v5", seed=1)
    one.state()
    one.reset()
    other.reset()
    for _ in range(100):
        one.state()
        assert list(walk(one, 1)) == list(walk(other, 1))


def test_before_any_reset() -> None:
    env = envs.make("Pendulum-v1", seed=3)
    state = stored(env.state())
    other = envs.make("Pendulum-v1", seed=99)
    other.reset()
    assert other.restore(state) is None
    assert np.array_equal(other.reset()[0], env.reset()[0])
    assert list(walk(other, ON)) == list(walk(env, ON))


def test_before_any_reset_without_a_seed() -> None:
    env, other = envs.make("Pendulum-v1"), envs.make("Pendulum-v1")
    other.restore(stored(env.state()))
    assert np.array_equal(other.reset()[0], env.reset()[0])
    assert list(walk(other, ON)) == list(walk(env, ON))


def test_right_after_an_end() -> None:
    env = envs.make("Hopper-v5", seed=3, max_episode_steps=10)
    env.reset()
    for _ in range(10):
        env.step(env.action_space.sample())
    state = stored(env.state())
    assert state["done"]
    other = envs.make("Hopper-v5", max_episode_steps=10)
    other.restore(state)
    assert other.state()["done"]
    assert np.array_equal(other.reset()[0], env.reset()[0])
    assert list(walk(other, ON)) == list(walk(env, ON))


def test_an_episode_with_options_and_a_later_seed() -> None:
    env = envs.make("Pendulum-v1", seed=3)
    env.reset()
    env.reset(seed=8, options={"x_init": 0.1, "y_init": 0.2})
    for _ in walk(env, 20):
        pass
    other = envs.make("Pendulum-v1", seed=4)
    other.restore(stored(env.state()))
    assert list(walk(other, ON)) == list(walk(env, ON))


def test_going_back_in_the_same_environment() -> None:
    env = envs.make("HalfCheetah-v5", seed=3)
    env.reset()
    for _ in walk(env, 20):
        pass
    state = env.state()
    straight = list(walk(env, 50))
    env.restore(state)
    assert list(walk(env, 50)) == straight


def test_more_steps_than_rows() -> None:
    env = envs.make("Pendulum-v1", seed=3, max_episode_steps=-1)
    env.reset()
    for _ in walk(env, 2 * ROWS_AT_FIRST + 5):
        pass
    assert len(env.state()["actions"]) == 2 * ROWS_AT_FIRST + 5
    other = envs.make("Pendulum-v1", max_episode_steps=-1)
    other.restore(stored(env.state()))
    assert list(walk(other, 20)) == list(walk(env, 20))


def test_draws_between_steps_are_kept() -> None:
    env = envs.make("Pendulum-v1", seed=3)
    env.reset()
    env.unwrapped.np_random.random(5)
    other = envs.make("Pendulum-v1")
    other.restore(stored(env.state()))
    assert np.array_equal(other.reset()[0], env.reset()[0])


def test_the_environment_sees_the_type_of_its_space() -> None:
    env, plain = envs.make("HalfCheetah-v5", seed=3), gymnasium.make("HalfCheetah-v5")
    env.reset()
    plain.reset(seed=3)
    action = np.linspace(-0.3, 0.7, 6)  # float64
    assert np.array_equal(env.step(action)[0], plain.step(action.astype(np.float32))[0])
    assert env.state()["actions"].dtype == np.float32


def test_an_action_of_another_shape() -> None:
    env = envs.make("Pendulum-v1", seed=3)
    env.reset()
    with pytest.raises(ValueError, match=re.escape("`action` must have the shape (1,), got (1, 1); pass one")):
        env.step(np.zeros((1, 1), np.float32))


class Drift(gymnasium.Env[Any, Any]):
    """Counts its steps in `clock`, which no generator knows about."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float64)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, clock: float = 0.0, length: int = 100) -> None:
        self.clock, self.length, self.steps = clock, length, 0

    def observe(self) -> np.ndarray:
        return np.array([self.clock])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.clock += 1
        return self.observe(), 0.0, self.steps >= self.length, False, {}


class Other(Drift):
    action_space = Box(-1.0, 1.0, (2,), np.float32)


def drifted(steps: int = 3) -> dict[str, Any]:
    env = envs.Replayable(Drift(), seed=0)
    env.reset()
    for _ in range(steps):
        env.step(np.zeros(1, np.float32))
    return env.state()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Drift(clock=0.5), "the observation after 3 steps differs from the stored one in 1 of 1 numbers;"),
        (Drift(length=2), "the episode ended after 2 of 3 steps;"),
        (Drift(length=3), "after 3 steps the episode ended, when it was stored it went on;"),
        (Other(), "the stored actions have the shape (1,), those of"),
    ],
)
def test_a_replay_that_leads_elsewhere(env: Drift, message: str) -> None:
    with pytest.raises(envs.ReplayMismatch, match=re.escape(message)):
        envs.Replayable(env).restore(drifted())


def test_a_mismatch_says_what_to_do() -> None:
    with pytest.raises(envs.ReplayMismatch, match="not deterministic, or its version is not the one"):
        envs.Replayable(Drift(clock=1)).restore(drifted())


def test_minus_zero_is_another_number() -> None:
    with pytest.raises(envs.ReplayMismatch, match="in 1 of 1 numbers"):
        envs.Replayable(Drift(clock=-0.0)).restore(drifted(steps=0))


def test_another_type_of_observation() -> None:
    state = drifted()
    state["observation"] = state["observation"].astype(np.float32)
    with pytest.raises(envs.ReplayMismatch, match=re.escape("is float64(1,), stored was float32(1,)")):
        envs.Replayable(Drift()).restore(state)


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_other_generators(kind: type[np.random.BitGenerator]) -> None:
    env, other = envs.Replayable(Drift()), envs.Replayable(Drift())
    env.unwrapped.np_random = np.random.Generator(kind(5))
    other.unwrapped.np_random = np.random.Generator(kind(6))
    env.reset()
    other.restore(stored(env.state()))
    assert other.unwrapped.np_random.random() == env.unwrapped.np_random.random()


def test_another_kind_of_generator() -> None:
    env = envs.Replayable(Drift())
    env.unwrapped.np_random = np.random.Generator(np.random.Philox(5))
    env.reset()
    with pytest.raises(envs.ReplayMismatch, match="the stored generator is a Philox, the environment has a PCG64"):
        envs.Replayable(Drift()).restore(env.state())


def test_discrete_actions_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("the actions must be a Box, got Discrete(2)")):
        envs.Replayable(gymnasium.make("CartPole-v1"))  # type: ignore[arg-type]
