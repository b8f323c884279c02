"""A replay buffer in float32, whose rows can be stored and put back one range at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

_FIELDS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class Float32ReplayBuffer(ReplayBuffer):
    """SB3's replay buffer with float64 observations kept as float32, which is what the networks see anyway.

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

    def add(self, *args: Any, **kwargs: Any) -> None:
        """As SB3's, counting rows."""
        super().add(*args, **kwargs)
        self.added += 1

    def reset(self) -> None:
        """Empty the buffer."""
        super().reset()
        self.added = 0

    def rows(self, start: int, stop: int) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of the rows from `start` up to `stop`, all of which the ring still holds."""
        places = np.arange(start, stop) % self.buffer_size
        return {name: getattr(self, name)[places] for name in _FIELDS}

    def restore(self, start: int, rows: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Put rows in their places, the first being row `start`."""
        places = np.arange(start, start + len(rows["rewards"])) % self.buffer_size
        for name in _FIELDS:
            getattr(self, name)[places] = rows[name]

    def finish_restore(self, added: int) -> None:
        """Take `added` over; all rows are in their places."""
        self.added = added
        self.pos, self.full = added % self.buffer_size, added >= self.buffer_size
