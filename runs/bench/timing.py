"""Contestants measured in turn: every sample long enough to be timed, compilation and warm-up left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True)
class Contestant:
    """Work that can be repeated: `run(count)` does it `count` times."""

    name: str
    run: Callable[[int], object]
    unit: int = 1
    """Counts are multiples of it."""
    whole: int = 1
    """A sample is a multiple of it, so that what happens once in so many times is in every sample alike."""
    warm_up: int = 1
    """How often it runs before anything is timed; at least once whole unit."""
    settle: int = 0
    """How often it runs, untimed, before each sample: the others have had the caches meanwhile."""


@dataclass(frozen=True)
class Effort:
    """How long and how often is measured."""

    sample_seconds: float
    """A sample takes at least about this long."""
    seconds: float
    """To be spent on each contestant's samples, within `least` and `most` of them."""
    least: int
    most: int
    longest: float = math.inf
    """A sample that would take longer gives up being `whole`."""


@dataclass(frozen=True)
class Samples:
    """What one contestant did: rates per second, in the order they were measured."""

    rates: tuple[float, ...]
    count: int
    """How often it ran in each sample."""
    whole: bool
    """Whether each sample held whole multiples of what the contestant asked for."""


@dataclass(frozen=True)
class _Plan:
    contestant: Contestant
    count: int
    samples: int


def measure(
    contestants: Sequence[Contestant],
    effort: Effort,
    *,
    clock: Callable[[], float] = perf_counter,
    advance: Callable[[float], None] = lambda share: None,
) -> dict[str, Samples]:
    """Samples of each contestant by name, taken in turn (A B C A B C …).

    Slow ones get fewer samples, spread evenly over the rounds. `advance` hears of every piece of work done;
    its numbers add up to the number of contestants.
    """
    plans = []
    for contestant in contestants:
        plans.append(_calibrate(contestant, effort, clock))
        advance(0.25)
    rates: dict[str, list[float]] = {plan.contestant.name: [] for plan in plans}
    if len(rates) < len(plans):
        raise ValueError("contestants must have names of their own")
    for plan in _in_turn(plans):
        contestant = plan.contestant
        if contestant.settle:
            contestant.run(contestant.settle)
        started = clock()
        contestant.run(plan.count)
        rates[contestant.name].append(plan.count / (clock() - started))
        advance(0.75 / plan.samples)
    return {
        plan.contestant.name: Samples(
            tuple(rates[plan.contestant.name]), plan.count, plan.count % plan.contestant.whole == 0
        )
        for plan in plans
    }


def _calibrate(contestant: Contestant, effort: Effort, clock: Callable[[], float]) -> _Plan:
    """How often it runs in a sample, and how many samples there will be."""

    def timed(count: int) -> float:
        started = clock()
        contestant.run(count)
        return max(clock() - started, 1e-9)

    contestant.run(_multiple(contestant.warm_up, contestant.unit))
    count = contestant.unit
    while (elapsed := timed(count)) < effort.sample_seconds / 2:
        # At most tenfold: one first run may have been slow for reasons of its own.
        count = _multiple(count * min(10, effort.sample_seconds / elapsed), contestant.unit)
    each = elapsed / count
    tried = count
    count = _multiple(effort.sample_seconds / each, contestant.unit)
    whole = _multiple(count, math.lcm(contestant.unit, contestant.whole))
    if whole > count and whole * each > effort.longest:  # not for a moment in which the machine was busy
        each = min(each, timed(tried) / tried, timed(tried) / tried)
    if whole * each <= effort.longest:
        count = whole
    samples = int(effort.seconds / (count * each))
    return _Plan(contestant, count, max(effort.least, min(effort.most, samples)))


def _multiple(wanted: float, unit: int) -> int:
    """The smallest multiple of `unit` that is at least `wanted`, and one at least."""
    return max(1, math.ceil(wanted / unit)) * unit


def _in_turn(plans: Sequence[_Plan]) -> Iterator[_Plan]:
    """Who is measured next: rounds in one fixed order, in which those with fewer samples sit some out."""
    rounds = max((plan.samples for plan in plans), default=0)
    for number in range(rounds):
        for plan in plans:
            if (number + 1) * plan.samples // rounds > number * plan.samples // rounds:
                yield plan
