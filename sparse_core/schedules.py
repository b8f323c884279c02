"""How much changes and when: pure functions of the step, without a counter to store."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sparse_core.registry import Registry

Schedule = Callable[[int], float]

SCHEDULES: Registry[Callable[[float, int], Schedule]] = Registry("schedule")


@dataclass(frozen=True)
class _Decay:
    start: float
    over: int

    def remaining(self, step: int) -> float:
        """Share of the way still ahead, 1 at step 0, 0 from step `over` on."""
        return 1 - min(step / self.over, 1) if self.over else 0.0


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(_Decay):
    """`start` at every step."""

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return self.start


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class Linear(_Decay):
    """From `start` to zero over `over` steps, along a line."""

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return self.start * self.remaining(step)


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(_Decay):
    """From `start` to zero over `over` steps, along a half cosine (RigL, arXiv:1911.11134)."""

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return self.start / 2 * (1 - math.cos(math.pi * self.remaining(step)))


@SCHEDULES.register("cubic")
@dataclass(frozen=True)
class Cubic(_Decay):
    """From `start` to zero over `over` steps, along a cube (Zhu & Gupta 2017, arXiv:1710.01878)."""

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return self.start * self.remaining(step) ** 3


@SCHEDULES.register("staged")
@dataclass(frozen=True)
class Staged(_Decay):
    """`start` for three quarters of `over` steps, half of it for the last, then zero (MEST, arXiv:2110.14032)."""

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        left = self.remaining(step)
        return self.start if left > 0.25 else self.start / 2 if left > 0 else 0.0


@dataclass(frozen=True)
class Every:
    """Due every `period` steps, first at step `period`, last not after step `until` (None: without end)."""

    period: int
    until: int | None = None

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"`period` must be at least 1 step between two topology changes, got {self.period!r}")

    def due(self, step: int) -> bool:
        """Whether the topology changes at `step`."""
        return step > 0 and step % self.period == 0 and (self.until is None or step <= self.until)

    def next_due(self, step: int) -> int | None:
        """The first due step after `step`, or None when there is none."""
        following = (step // self.period + 1) * self.period
        return following if self.until is None or following <= self.until else None
