"""Replay of returns over several steps, from the newest rows alone where old ones say too little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from agents.replay import Array, Float32ReplayBuffer

LOOKED_AT = 2048  # of the oldest rows, whether the policy still does what they show
FORGOTTEN = 0.1  # of the rows, where it does not


@dataclass(frozen=True)
class ReplayOptions:
    """When returns become long, and when old experience goes (RLx2: Tan et al. 2023, arXiv:2205.15043).

    Attributes:
        onset: updates whose returns are over one step; from then on they are over the agent's `n_steps`.
        minimum: rows that the buffer keeps in any case; None: it forgets nothing before it is full.
        every: updates after which the oldest rows are looked at.
        distance: half the mean squared distance between their actions and the policy's from which on they go.
    """

    onset: int = 0
    minimum: int | None = None
    every: int = 10_000
    distance: float = 0.2

    def __post_init__(self) -> None:
        for name, argument, least in (
            ("onset", "n_step_onset", 0), ("minimum", "buffer_min", 1), ("every", "buffer_every", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if name == "minimum" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"`{argument}` must be a whole number of at least {least}, got {value!r}")
        if not self.distance >= 0:
            raise ValueError(f"`buffer_distance` must not be negative, got {self.distance!r}")


class NStepReplay(Float32ReplayBuffer):
    """Draws rows from `first` on, with rewards summed over up to `n_steps` steps.

    A sum ends with its episode, whether that ended or was cut off, and with the newest row. A sample has the discounted
    sum, the observation after it, and the discount γ^k of the k steps that are in it.
    """

    n_steps = 1
    gamma = 0.99

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.first = 0
        """The oldest row that is not forgotten; rows are counted from the first ever added."""

    @property
    def oldest(self) -> int:
        """The oldest row that is there and not forgotten."""
        return max(self.first, self.added - self.buffer_size)

    def forget(self, rows: int) -> None:
        """Forget that many of the oldest rows."""
        self.first = min(self.oldest + rows, self.added)

    def cut_off(self) -> None:
        """Episodes that run end here, as if they had come to a time limit: what is added next is of others."""
        if self.size():
            newest = (self.pos - 1) % self.buffer_size
            self.timeouts[newest] = np.where(self.dones[newest], self.timeouts[newest], 1)

    def reset(self) -> None:
        """Empty the buffer."""
        super().reset()
        self.first = 0

    def draw(self, batch_size: int) -> tuple[Array, Array]:
        """Places and environments of a batch; drawn as SB3 does where nothing was forgotten."""
        # In a ring that is whole each place is as good as any, and SB3 counts them from the first one.
        start = self.first if self.first > self.added - self.buffer_size else 0
        rows = np.random.randint(0, self.added - self.oldest, size=batch_size)  # noqa: NPY002 (SB3 seeds it)
        environments = np.random.randint(0, high=self.n_envs, size=batch_size)  # noqa: NPY002
        return (start + rows) % self.buffer_size, environments

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """A batch of transitions over several steps."""
        places, environments = self.draw(batch_size)
        last, rewards, discounts = self.returns(places, environments, env)
        at = last, environments
        arrays: tuple[Any, ...] = (
            self._normalize_obs(self.observations[places, environments], env),
            self.actions[places, environments],
            self._normalize_obs(self.next_observations[at], env),
            self.dones[at] * (1 - self.timeouts[at]),
            rewards,
            discounts,
        )
        shaped = (each[:, np.newaxis] if each.ndim == 1 else each for each in arrays)
        return ReplayBufferSamples(*[self.to_torch(each) for each in shaped])

    def returns(self, places: Array, environments: Array, env: VecNormalize | None = None) -> tuple[Array, ...]:
        """From these rows on, (B,) each: the place of the last row, the discounted sum of rewards, and γ^k."""
        last, going = places.copy(), ~self._ends(places, environments)
        total = self._normalize_reward(self.rewards[places, environments], env).copy()
        discounts = np.full(len(places), self.gamma, np.float32)
        for _ in range(1, self.n_steps):
            last = np.where(going, (last + 1) % self.buffer_size, last)
            total += going * discounts * self._normalize_reward(self.rewards[last, environments], env)
            discounts = np.where(going, discounts * np.float32(self.gamma), discounts)
            going &= ~self._ends(last, environments)
        return last, total, discounts

    def _ends(self, places: Array, environments: Array) -> Array:
        """Whether no row follows in the same episode."""
        over = (self.dones[places, environments] != 0) | (self.timeouts[places, environments] != 0)
        ends: Array = over | (places == (self.added - 1) % self.buffer_size)
        return ends

    def shrink(self, options: ReplayOptions, policy: Any) -> bool:
        """Forget a tenth of the rows, the oldest, if `policy` (observations to actions) is far from what they show."""
        minimum, held = options.minimum, self.added - self.oldest
        if minimum is None or held <= minimum:
            return False
        places = np.arange(self.oldest, self.oldest + min(LOOKED_AT, held)) % self.buffer_size
        shape = self.actions.shape[-1]
        shown = self.actions[places].reshape(-1, shape)
        answered = policy(self.observations[places].reshape(-1, *self.obs_shape)).reshape(-1, shape)
        if 0.5 * float(np.square(answered - shown).mean()) <= options.distance:
            return False
        self.forget(min(max(1, int(FORGOTTEN * held)), held - minimum))
        return True
