"""Episodes without exploration noise: how good a policy is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

import envs

EVALUATION_SEED = 100  # added to a run's seed, as in the DS-TD3 and TD3 releases
FRESH_SEED = 10_000  # of episodes that no training has seen
TOGETHER = 10  # environments stepped with one forward pass


@dataclass(frozen=True)
class Score:
    """Undiscounted returns of whole episodes."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns over episodes."""
        return float(np.std(self.returns))

    def as_dict(self) -> dict[str, Any]:
        """What `result.json` holds."""
        return {"mean_return": self.mean, "std_return": self.std, "episodes": len(self.returns)}


class Scorer:
    """Plays the same episodes at every call: the environments are seeded anew each time."""

    def __init__(self, env: str, episodes: int, seed: int, noise: envs.Noise | None = None) -> None:
        if episodes < 1:
            raise ValueError(f"`episodes` must be at least 1, got {episodes}")
        self.episodes, self.seed = episodes, seed
        together = min(episodes, TOGETHER)
        self._envs = DummyVecEnv([lambda: Monitor(envs.make(env, noise=noise)) for _ in range(together)])

    def score(self, model: BaseAlgorithm | None, step: int = 0) -> Score:
        """Returns of `episodes` episodes of the model's deterministic policy; None acts at random.

        Features that change places are where the last of `step` training steps saw them, and stay there.
        """
        environments = self._envs
        for each in environments.envs:
            hold_places(each, step)
        environments.seed(self.seed)
        generator = np.random.default_rng(self.seed)
        space = environments.action_space
        assert isinstance(space, Box)
        observations: Any = environments.reset()
        count = environments.num_envs
        # Each environment plays its share, so that short episodes are not preferred.
        share = [(self.episodes + index) // count for index in range(count)][::-1]
        played: list[list[tuple[float, int]]] = [[] for _ in range(count)]
        while any(len(done) < wanted for done, wanted in zip(played, share, strict=True)):
            if model is None:
                actions = generator.uniform(space.low, space.high, (count, *space.shape)).astype(space.dtype)
            else:
                actions, _ = model.predict(observations, deterministic=True)
            observations, _, dones, infos = environments.step(actions)
            for index in np.flatnonzero(dones):
                if len(played[index]) < share[index]:
                    episode = infos[index]["episode"]
                    played[index].append((float(episode["r"]), int(episode["l"])))
        flat = [episode for done in played for episode in done]
        return Score(tuple(score for score, _ in flat), tuple(length for _, length in flat))

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()


def shown_at(step: int) -> int:
    """After how many steps the observation was shown that the last of `step` training steps answered.

    Where features change places at `step` itself, the agent has never trained on the new ones.
    """
    return max(step - 1, 0)


def hold_places(env: Any, step: int) -> None:
    """Let features of an environment with noise be where the last of `step` training steps saw them, and stay there."""
    noisy = envs.noisy_features(env)
    if noisy is not None:
        noisy.hold(shown_at(step))
