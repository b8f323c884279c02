"""A replay buffer in float32, whose rows can be stored and put back one range at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer

Array = NDArray[Any]

_FIELDS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class Float32ReplayBuffer(ReplayBuffer):
    """SB3's replay buffer with float64 observations kept as float32, as networks see what nothing scales before.

    Rows are counted from the first ever added: row i lies at place i % `capacity` of the ring.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if isinstance(observation_space, spaces.Box) and observation_space.dtype == np.float64:
            low, high = (bound.astype(np.float32) for bound in (observation_space.low, observation_space.high))
            observation_space = spaces.Box(low, high, dtype=np.float32)
        super().__init__(buffer_size, observation_space, action_space, *args, **kwargs)
        self.added = 0

    @property
    def capacity(self) -> int:
        """Places in the ring."""
        return self.buffer_size

    def add(
        self, obs: Array, next_obs: Array, action: Array, reward: Array, done: Array, infos: list[dict[str, Any]]
    ) -> None:
        """As SB3's, counting rows."""
        if self.optimize_memory_usage or not isinstance(self.observation_space, spaces.Box):
            super().add(obs, next_obs, action, reward, done, infos)
        else:
            self._add(obs, next_obs, action, reward, done, infos)
        self.added += 1

    def _add(
        self, obs: Array, next_obs: Array, action: Array, reward: Array, done: Array, infos: list[dict[str, Any]]
    ) -> None:
        """SB3's rows without its copies on the way: assigning copies anyway."""
        pos = self.pos
        self.observations[pos] = obs
        self.next_observations[pos] = next_obs
        self.actions[pos] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[pos] = reward
        self.dones[pos] = done
        if self.handle_timeout_termination:
            self.timeouts[pos] = [info.get("TimeLimit.truncated", False) for info in infos]
        self.pos = pos + 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def reset(self) -> None:
        """Empty the buffer."""
        super().reset()
        self.added = 0

    def draw(self, batch_size: int) -> tuple[Array, Array]:
        """Places and environments of a batch, drawn as `sample` draws them."""
        places = np.random.randint(0, self.size(), size=batch_size)  # noqa: NPY002 (SB3 seeds NumPy's global one)
        return places, np.random.randint(0, high=self.n_envs, size=batch_size)  # noqa: NPY002

    def rings(self) -> tuple[Array, ...]:
        """Observations, next ones and actions (places, environments, features), rewards, dones and timeouts without."""
        shape = (self.buffer_size, self.n_envs, -1)
        wide = (ring.reshape(shape) for ring in (self.observations, self.next_observations, self.actions))
        return (*wide, self.rewards, self.dones, self.timeouts)

    def rows(self, start: int, stop: int) -> dict[str, Array]:
        """Copies of the rows from `start` up to `stop`, all of which the ring still holds."""
        places = np.arange(start, stop) % self.buffer_size
        return {name: getattr(self, name)[places] for name in _FIELDS}

    def restore(self, start: int, rows: Mapping[str, Array]) -> None:
        """Put rows in their places, the first being row `start`."""
        places = np.arange(start, start + len(rows["rewards"])) % self.buffer_size
        for name in _FIELDS:
            getattr(self, name)[places] = rows[name]

    def finish_restore(self, added: int) -> None:
        """Take `added` over; all rows are in their places."""
        self.added = added
        self.pos, self.full = added % self.buffer_size, added >= self.buffer_size
