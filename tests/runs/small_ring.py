"""A replay buffer as small as it gets, for the tests of the checkpoints."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class Ring:
    """Rows that tell their number and the line of time they were added in."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.added = 0
        self.read = 0  # rows given out so far
        self.arrays: dict[str, np.ndarray[Any, Any]] = {
            "observation": np.zeros((capacity, 3), np.float32),
            "number": np.zeros(capacity, np.int64),
            "done": np.zeros((capacity, 1), bool),
        }

    def add(self, count: int, line: int = 0) -> None:
        for number in range(self.added, self.added + count):
            place = number % self.capacity
            self.arrays["observation"][place] = (number, line, number / 7)
            self.arrays["number"][place] = number
            self.arrays["done"][place] = (number + line) % 3 == 0
        self.added += count

    def bits(self) -> tuple[int, bytes]:
        return self.added, b"".join(array.tobytes() for array in self.arrays.values())

    def rows(self, start: int, stop: int) -> dict[str, np.ndarray[Any, Any]]:
        assert max(0, self.added - self.capacity) <= start < stop <= self.added
        self.read += stop - start
        places = np.arange(start, stop) % self.capacity
        return {name: array[places] for name, array in self.arrays.items()}

    def restore(self, start: int, rows: Mapping[str, np.ndarray[Any, Any]]) -> None:
        assert rows.keys() == self.arrays.keys()
        for name, array in rows.items():
            assert len(array)
            self.arrays[name][np.arange(start, start + len(array)) % self.capacity] = array
        self.added = start + len(rows["number"])

    def finish_restore(self, added: int) -> None:
        assert added == 0 or added == self.added
        self.added = added
