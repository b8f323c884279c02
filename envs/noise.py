"""Observations with features that say nothing, and whose places may change: the extremely noisy environment."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

Array = NDArray[Any]
MOST = 1_000_000
"""Features in all: more would be a slip of the pen, and no memory would hold their replay."""


@dataclass(frozen=True)
class Noise:
    """What `NoisyFeatures` is to do.

    Attributes:
        share: share of an observation's features that are noise, in [0, 1).
        seed: of the permutations.
        permute_every: steps after which all features are permuted anew; None: never.
    """

    share: float
    seed: int = 0
    permute_every: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not 0 <= self.share < 1:
            raise ValueError(f"the share of noise features must be in [0, 1), got {self.share!r}")
        if self.permute_every is not None and self.permute_every < 1:
            raise ValueError(f"features change places after at least 1 step, got {self.permute_every!r}")

    def features(self, real: int) -> int:
        """Features in all where `real` are real: ⌈real / (1 - share)⌉, as in the ANF release."""
        # Rounded first: 1 - 0.9 is a little less than a tenth.
        return math.ceil(round(real / (1 - self.share), 9))


class NoisyFeatures(gymnasium.Wrapper[Array, Array, Array, Array]):
    """Appends features drawn from N(0, 1) at every step, and may permute all features while training goes on.

    (Grooten et al. 2023, arXiv:2302.06548.) The noise of an episode follows from where the environment's generator
    stands after the reset, without moving it: the environment itself does what it would without noise, and a
    replayed episode has the same noise. (An environment whose resets draw nothing has the same noise in every
    episode.) The first `permute_every` steps show the real features first, then the noise; from then on every
    stretch of `permute_every` steps has a permutation of its own, counted over all episodes.

    Args:
        env: with one-dimensional Box observations.
        noise: how much noise, and whether places change.
    """

    def __init__(self, env: gymnasium.Env[Array, Array], noise: Noise) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
            raise ValueError(
                f"noise features are appended to one row of real numbers, got {space}; flatten the observations first"
            )
        self.noise = noise
        self.real = space.shape[0]
        """Features of the environment itself."""
        self._count = noise.features(self.real)
        if self._count > MOST:
            raise ValueError(f"{noise.share} of noise makes {self._count:,} features of {self.real}; at most {MOST:,}")
        added = self._count - self.real
        # Where places change any feature may have any value that one of them has.
        low = np.concatenate([space.low, np.full(added, -np.inf)])
        high = np.concatenate([space.high, np.full(added, np.inf)])
        if noise.permute_every is not None:
            low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
        self.observation_space = Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype.type)
        self._generator = np.random.default_rng(0)
        self.steps = 0
        """Steps so far, over all episodes: which permutation holds."""
        self._until: int | None = None
        self._held: tuple[int, Array] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        position = json.dumps(self.unwrapped.np_random.bit_generator.state, sort_keys=True, default=_plain)
        self._generator = np.random.default_rng(int.from_bytes(hashlib.sha256(position.encode()).digest()[:16], "big"))
        return self._noisy(observation), info

    def step(self, action: Array) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        """Take `action`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        return self._noisy(observation), reward, terminated, truncated, info

    def hold(self, steps: int) -> None:
        """Keep the places that hold after so many steps, whatever is stepped from now on: for evaluations."""
        self._until = steps

    def places(self, steps: int | None = None) -> Array:
        """Where the features come from after so many steps (now, by default): feature i shows `places[i]`.

        Numbers below the environment's own count are real features, the others noise.
        """
        every = self.noise.permute_every
        now = self.steps if self._until is None else self._until
        stretch = 0 if every is None else (now if steps is None else steps) // every
        if self._held is None or self._held[0] != stretch:
            draws = np.random.default_rng(np.random.SeedSequence(self.noise.seed, spawn_key=(0x414E46, stretch)))
            self._held = stretch, draws.permutation(self._count) if stretch else np.arange(self._count)
        return self._held[1]

    def _noisy(self, observation: Array) -> Array:
        noise = self._generator.standard_normal(self._count - self.real)
        return np.concatenate([observation, noise.astype(observation.dtype)])[self.places()]


def _plain(value: Any) -> Any:
    return value.tolist()


def noisy_features(env: gymnasium.Env[Any, Any]) -> NoisyFeatures | None:
    """The wrapper of this kind around an environment, if there is one."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, NoisyFeatures):
            return env
        env = env.env
    return None
