"""Environments by name: what `make` gives, and what it refuses."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Space

import envs

LINE = Box(-1.0, 1.0, (2,), np.float32)


class Stub(gymnasium.Env[Any, Any]):
    """Any spaces; remembers the ones that were closed."""

    closed: list["Stub"] = []  # noqa: RUF012

    def __init__(self, observations: Space[Any] = LINE, actions: Space[Any] = LINE) -> None:
        self.observation_space, self.action_space = observations, actions

    def close(self) -> None:
        Stub.closed.append(self)


@pytest.fixture(autouse=True)
def stub() -> Iterator[None]:
    gymnasium.register("Stub-v0", entry_point=Stub)
    Stub.closed.clear()
    yield
    del gymnasium.registry["Stub-v0"]


def trajectory(id: str, seed: int, steps: int = 40) -> list[np.ndarray]:
    env = envs.make(id, seed)
    seen = [env.reset()[0]]
    for _ in range(steps):
        action = env.action_space.sample()
        seen += [action, env.step(action)[0]]
    env.close()
    return seen


def test_the_benchmark() -> None:
    assert set(envs.names()) == {"HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"}


@pytest.mark.parametrize("id", envs.names())
def test_same_seed_same_run_two_seeds_differ(id: str) -> None:
    first, again, other = trajectory(id, 1), trajectory(id, 1), trajectory(id, 2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_seed_is_that_of_the_first_reset_only() -> None:
    env = envs.make("Pendulum-v1", seed=7)
    plain = gymnasium.make("Pendulum-v1")
    assert np.array_equal(env.reset()[0], plain.reset(seed=7)[0])
    assert np.array_equal(env.reset()[0], plain.reset()[0])
    assert np.array_equal(env.reset(seed=3)[0], plain.reset(seed=3)[0])


def test_a_reset_of_its_own_seed_uses_up_the_first_one() -> None:
    env = envs.make("Pendulum-v1", seed=7)
    plain = gymnasium.make("Pendulum-v1")
    assert np.array_equal(env.reset(seed=3)[0], plain.reset(seed=3)[0])
    assert np.array_equal(env.reset()[0], plain.reset()[0])


def test_the_action_space_is_seeded() -> None:
    space = envs.make("Hopper-v5", seed=5).action_space
    plain = gymnasium.make("Hopper-v5").action_space
    plain.seed(5)
    assert np.array_equal(space.sample(), plain.sample())
    assert not np.array_equal(space.sample(), envs.make("Hopper-v5", seed=6).action_space.sample())


def test_without_a_seed_runs_differ() -> None:
    one, other = envs.make("Pendulum-v1"), envs.make("Pendulum-v1")
    assert not np.array_equal(one.reset()[0], other.reset()[0])
    assert not np.array_equal(one.action_space.sample(), other.action_space.sample())


def test_the_time_limit_truncates_and_does_not_terminate() -> None:
    env = envs.make("HalfCheetah-v5", seed=0, max_episode_steps=5)
    env.reset()
    flags = [env.step(env.action_space.sample())[2:4] for _ in range(5)]
    assert flags == [(False, False)] * 4 + [(False, True)]


def test_a_fall_terminates_and_does_not_truncate() -> None:
    env = envs.make("Hopper-v5", seed=0)
    env.reset()
    flags = (False, False)
    for _ in range(200):
        flags = env.step(env.action_space.high)[2:4]
        if any(flags):
            break
    assert flags == (True, False)


def test_keywords_reach_the_environment() -> None:
    assert envs.make("Ant-v5", include_cfrc_ext_in_observation=False).observation_space.shape == (27,)
    env = envs.make("Pendulum-v1", render_mode="rgb_array")
    assert env.render_mode == "rgb_array"


def test_an_environment_that_does_not_know_render_mode() -> None:
    assert envs.make("Stub-v0").observation_space == LINE


def test_the_module_that_registers_it_may_be_named() -> None:
    assert envs.make("gymnasium.envs.classic_control:Pendulum-v1").spec is not None
    with pytest.raises(ValueError, match=r"asks for the module '\.\.', which cannot be imported"):
        envs.make("..:Foo-v0")
    with pytest.raises(ValueError, match=r"asks for the module 'no_such_module', which cannot be imported"):
        envs.make("no_such_module:Pendulum-v1")


def test_mujoco_leaves_no_log_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    envs.make("HalfCheetah-v5", seed=0)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("halfcheetah-v5", "HalfCheetah-v5"),
        ("HalfCheetah", "HalfCheetah-v5"),
        ("Hoper-v5", "Hopper-v5"),
        ("HumanoidStandup-v9", "HumanoidStandup-v5"),
        ("Pendlum-v1", "Pendulum-v1"),
    ],
)
def test_did_you_mean(wrong: str, meant: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"no environment called {wrong!r}; did you mean {meant!r}?")):
        envs.make(wrong)


def test_a_name_like_no_other() -> None:
    message = "no environment called 'xyzzy'; known: Ant-v5, HalfCheetah-v5, Hopper-v5, Humanoid-v5, Walker2d-v5"
    with pytest.raises(ValueError, match=message):
        envs.make("xyzzy")


def test_what_is_not_installed() -> None:
    def needs_more() -> None:
        raise gymnasium.error.DependencyNotInstalled("Box2D is not installed")

    gymnasium.register("Needs-v0", entry_point=needs_more)
    try:
        with pytest.raises(ValueError, match="'Needs-v0' cannot be made here: Box2D is not installed; install"):
            envs.make("Needs-v0")
    finally:
        del gymnasium.registry["Needs-v0"]


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        (
            {"actions": Discrete(2)},
            "the actions of 'Stub-v0' must be a Box of real numbers, got Discrete(2);",
        ),
        (
            {"actions": Box(0, 3, (1,), np.int64)},
            "the actions of 'Stub-v0' must be a Box of real numbers, got Box(0, 3, (1,), int64);",
        ),
        (
            {"actions": Box(-np.inf, 1, (1,))},
            "the actions of 'Stub-v0' must have finite bounds, got Box(-inf, 1.0, (1,), float32); bound them",
        ),
        (
            {"observations": Box(0, 255, (8, 8, 3), np.uint8)},
            "the observations of 'Stub-v0' must be one row or array of numbers, got images;",
        ),
        (
            {"observations": Box(0, 1, ())},
            "the observations of 'Stub-v0' must be one row or array of numbers, got a single number;",
        ),
        (
            {"observations": Dict(a=LINE)},
            "the observations of 'Stub-v0' must be one Box, got Dict; flatten them",
        ),
    ],
)
def test_spaces_we_cannot_learn_in(spaces: dict[str, Space[Any]], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        envs.make("Stub-v0", **spaces)
    assert len(Stub.closed) == 1


def test_an_action_space_that_environments_share_is_not_moved_by_others() -> None:
    """A class may keep one space for all its environments; another one made in between draws from it, too."""
    shared = Box(-1, 1, (2,))
    drawn = []
    for others in (0, 3):
        env = envs.make("Stub-v0", seed=5, actions=shared)
        for _ in range(others):
            envs.make("Stub-v0", actions=shared).action_space.sample()
        drawn.append([env.action_space.sample().tolist() for _ in range(3)])
    assert drawn[0] == drawn[1]


def test_who_cannot_draw_says_so() -> None:
    with pytest.raises(ValueError, match="environment 'Stub-v0' cannot draw itself: it knows no `render_mode`"):
        envs.make("Stub-v0", render_mode="rgb_array")


def test_cartpole_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("got Discrete(2); take another environment, such as Ant-v5")):
        envs.make("CartPole-v1")
