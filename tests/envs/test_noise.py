"""Noise features and places that change, in environments whose state can be stored."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from hypothesis import given
from hypothesis import strategies as st

import envs
from envs import Noise, NoisyFeatures, Replayable


class Counting(gymnasium.Env):
    """Shows the step's number, ten times it, and a draw of its own."""

    observation_space = Box(-1.0, 1000.0, (3,), np.float64)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.count = 0
        return self._shown(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.count += 1
        return self._shown(), 0.0, self.count == 5, False, {}

    def _shown(self) -> np.ndarray:
        return np.array([self.count, 10 * self.count, self.np_random.random()])


ACTION = np.zeros(1, np.float32)


def played(env: gymnasium.Env, steps: int, seed: int | None = 3) -> np.ndarray:
    rows, over = [env.reset(seed=seed)[0]], False
    for _ in range(steps):
        if over:
            rows.append(env.reset()[0])
        observation, _, over, _, _ = env.step(ACTION)
        rows.append(observation)
    return np.array(rows)


@pytest.mark.parametrize(
    ("real", "share", "count"),
    [(17, 0.9, 170), (17, 0.0, 17), (3, 0.5, 6), (17, 0.95, 340), (3, 0.6, 8), (11, 0.98, 550)],
)
def test_count_by_hand(real: int, share: float, count: int) -> None:
    assert Noise(share).features(real) == count  # 3 / 0.4 = 7.5: up


@given(real=st.integers(1, 400), share=st.floats(0, 0.99))
def test_share_of_noise_is_met_and_no_feature_more(real: int, share: float) -> None:
    count = Noise(share).features(real)
    assert 1 - real / count >= share - 1e-6
    assert count == real or 1 - real / (count - 1) < share


def test_real_features_come_first_and_the_environment_does_what_it_would() -> None:
    plain, noisy = played(Counting(), 20), played(NoisyFeatures(Counting(), Noise(0.9)), 20)
    assert noisy.shape == (plain.shape[0], 30)
    assert np.array_equal(noisy[:, :3], plain)
    rest = noisy[:, 3:]
    assert abs(rest.mean()) < 0.15
    assert abs(rest.std() - 1) < 0.1
    assert len(np.unique(rest)) == rest.size  # drawn anew at every step
    assert np.array_equal(played(NoisyFeatures(Counting(), Noise(0.9)), 20), noisy)
    assert not np.array_equal(played(NoisyFeatures(Counting(), Noise(0.9)), 20, seed=4)[:, 3:], rest)


def test_places_change_when_they_are_due_and_hold_between() -> None:
    env = NoisyFeatures(Counting(), Noise(0.5, seed=1, permute_every=7))
    seen = []
    env.reset(seed=0)
    for _ in range(21):
        observation, _, over, _, _ = env.step(ACTION)
        places = env.places().tolist()
        seen.append(places)
        assert sorted(places) == [0, 1, 2, 3, 4, 5]
        real = observation[places.index(1)]
        assert real == 10 * env.unwrapped.count  # ten times the step's number, wherever it is shown
        if over:
            env.reset()
    assert all(places == [0, 1, 2, 3, 4, 5] for places in seen[:6])
    assert len({tuple(places) for places in seen}) == 4  # steps 1–6, 7–13, 14–20, 21
    assert all(places == seen[7] for places in seen[6:13])
    assert env.observation_space.contains(observation)
    env.hold(0)
    assert env.places().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("steps", [0, 3, 8, 17])
def test_state_is_stored_and_restored_with_noise_and_places(steps: int) -> None:
    def fresh() -> Replayable:
        return Replayable(NoisyFeatures(Counting(), Noise(0.8, seed=2, permute_every=4)), seed=9)

    def walk(env: Replayable, count: int, over: bool) -> list[np.ndarray]:
        rows = []
        for _ in range(count):
            if over:
                rows.append(env.reset()[0])
            observation, _, over, _, _ = env.step(ACTION)
            rows.append(observation)
        return rows

    env = fresh()
    env.reset()
    walk(env, steps, False)
    state = env.state()
    other = fresh()
    other.restore(state)
    rest, again = walk(env, 13, state["done"]), walk(other, 13, state["done"])
    assert all(np.array_equal(one, two) for one, two in zip(rest, again, strict=True))


def test_made_by_name_with_noise() -> None:
    pytest.importorskip("mujoco")
    env = envs.make("HalfCheetah-v5", seed=0, noise=Noise(0.9))
    try:
        assert env.observation_space.shape == (170,)
        assert env.reset()[0].shape == (170,)
    finally:
        env.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise(1.0), r"the share of noise features must be in \[0, 1\), got 1.0"),
        (lambda: Noise(-0.1), "got -0.1"),
        (lambda: Noise(0.5, permute_every=0), "features change places after at least 1 step, got 0"),
        (lambda: NoisyFeatures(gymnasium.make("Pendulum-v1"), Noise(1 - 1e-9)), "at most 1,000,000"),
        (lambda: NoisyFeatures(gymnasium.make("FrozenLake-v1"), Noise(0.5)), "flatten the observations first"),
    ],
)
def test_what_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
