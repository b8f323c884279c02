"""Means, intervals, tests and sample sizes over seeds: pure functions of arrays.

Aggregates and bootstraps are rliable's (Agarwal et al. 2021, arXiv:2108.13264), whose bootstraps draw from NumPy's
global generator; here they draw from one that is named.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rliable import library, metrics
from scipy import stats

Array = NDArray[np.float64]
CONFIDENCE = 0.95
EXPANDED = "expanded percentile bootstrap"
_BLOCK = 4_000_000  # numbers that are resampled at once
_EXACT = 20_000  # splits up to which a permutation test tries them all
MOST_SEEDS = 1_000  # beyond which a number of seeds says nothing


def generator_for(*names: str) -> np.random.Generator:
    """A generator of its own for each thing that is estimated, so that a further arm does not move the others."""
    digest = hashlib.sha256("\n".join(names).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


class SeededBootstrap(library.StratifiedBootstrap):  # type: ignore[misc]
    """rliable's stratified bootstrap of scores (runs, tasks, …) with a generator of its own; a run stays whole."""

    def __init__(self, scores: Array, generator: np.random.Generator) -> None:
        super().__init__(scores)
        self._draws = generator

    def update_indices(self) -> tuple[NDArray[Any], ...]:
        """Runs drawn for each task; further axes, such as time, follow their run."""
        shape = self._args_shape[:2] + (1,) * (len(self._args_shape) - 2)
        return (self._draws.integers(self._num_items, size=shape), *self._strata_indices)

    def resamples(self, count: int) -> Iterator[Array]:
        """In blocks (resamples, runs, tasks, …) the very resamples that `bootstrap(count)` gives one by one, slowly."""
        scores, ones = self.pos_data[0], (1,) * (len(self._args_shape) - 2)
        block = max(1, _BLOCK // scores.size)
        for begin in range(0, count, block):
            shape = (min(block, count - begin), *self._args_shape[:2], *ones)
            yield scores[
                (self._draws.integers(self._num_items, size=shape), *(each[None] for each in self._strata_indices))
            ]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; the interval is missing where one run is all there is."""

    value: float
    low: float | None
    high: float | None
    runs: int
    kind: str


def expanded_levels(runs: int) -> tuple[float, float]:
    """Levels at which to read bootstrap percentiles so that they cover 95 % with few runs.

    Percentiles of a bootstrap are too narrow by √((n-1)/n), and by normal instead of Student quantiles; the expanded
    percentile interval makes up for both (Hesterberg 2015, arXiv:1411.5279, section 3.4).
    """
    quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, runs - 1)
    low = float(stats.norm.cdf(-math.sqrt(runs / (runs - 1)) * quantile))
    return low, 1 - low


def bootstrap(
    scores: Array, statistic: Callable[[Array], Array], generator: np.random.Generator, resamples: int
) -> tuple[Array, Array] | None:
    """Expanded 95 % interval of a statistic of scores (runs, tasks, …): low and high; None for a single run.

    The statistic takes many resamples (resamples, runs, tasks, …) at once.
    """
    if len(scores) < 2:
        return None
    blocks = SeededBootstrap(scores, generator).resamples(resamples)
    return _between(np.concatenate([statistic(block) for block in blocks]), len(scores))


def _between(replicates: Array, runs: int) -> tuple[Array, Array]:
    low, high = np.quantile(replicates, expanded_levels(runs), axis=0)
    return low, high


def mean_curve(scores: Array) -> Array:
    """Mean over runs and tasks at each time; scores (…, runs, tasks, times)."""
    return np.asarray(scores.mean(axis=(-3, -2)), np.float64)


def iqm(tasks: Sequence[Array], generator: np.random.Generator, resamples: int) -> Interval:
    """Interquartile mean over all runs of all tasks; each task may have another number of runs."""
    value = float(metrics.aggregate_iqm(np.concatenate(tasks)[:, None]))
    fewest = min(len(each) for each in tasks)
    if fewest < 2:
        return Interval(value, None, None, fewest, "none: one run")
    drawn = np.concatenate([_drawn(each, generator, resamples) for each in tasks], axis=1)
    low, high = _between(stats.trim_mean(drawn, 0.25, axis=1), fewest)
    return Interval(value, float(low), float(high), fewest, EXPANDED)


def _drawn(runs: Array, generator: np.random.Generator, resamples: int) -> Array:
    """Resamples of the runs of one task, (resamples, runs)."""
    return np.concatenate([*SeededBootstrap(runs[:, None], generator).resamples(resamples)])[:, :, 0]


def probability_of_improvement(
    pairs: Sequence[tuple[Array, Array]], generator: np.random.Generator, resamples: int
) -> Interval:
    """Probability that a run of the first beats one of the second, ties half, averaged over tasks (Mann-Whitney)."""
    value = float(np.mean([metrics.probability_of_improvement(x[:, None], y[:, None]) for x, y in pairs]))
    fewest = min(min(len(x), len(y)) for x, y in pairs)
    if fewest < 2:
        return Interval(value, None, None, fewest, "none: one run")
    replicates = np.zeros(resamples)
    for x, y in pairs:
        first, second = _drawn(x, generator, resamples), _drawn(y, generator, resamples)
        replicates += np.concatenate([*_shares_above(first, second)]) / len(pairs)
    if value in (0.0, 1.0):  # every resample says the same, which is no certainty
        return Interval(value, None, None, fewest, "none: all runs of one are above those of the other")
    low, high = _between(replicates, fewest)
    return Interval(value, float(low), float(high), fewest, EXPANDED)


def _shares_above(first: Array, second: Array) -> Iterator[Array]:
    """For each resample the share of pairs of runs where the first is above, ties half; in blocks that fit memory."""
    block = max(1, _BLOCK // (first.shape[1] * second.shape[1]))
    for begin in range(0, len(first), block):
        one, other = first[begin : begin + block, :, None], second[begin : begin + block, None, :]
        yield ((one > other) + 0.5 * (one == other)).mean(axis=(1, 2))


def mean(values: Array) -> Interval:
    """Mean over runs with Student's t interval."""
    runs, value = len(values), float(np.mean(values))
    if runs < 2:
        return Interval(value, None, None, runs, "none: one run")
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, runs - 1) * np.std(values, ddof=1) / math.sqrt(runs))
    return Interval(value, value - half, value + half, runs, "Student's t")


@dataclass(frozen=True)
class Difference:
    """First minus second, both over runs: Welch's interval and test. Without spread, or with one run, p is None."""

    value: float
    low: float | None
    high: float | None
    p: float | None
    runs: tuple[int, int]


def welch(first: Array, second: Array) -> Difference:
    """Difference of two means whose spreads may differ (Welch 1947)."""
    value, runs = float(np.mean(first) - np.mean(second)), (len(first), len(second))
    if min(runs) < 2:
        return Difference(value, None, None, None, runs)
    if np.ptp(first) == np.ptp(second) == 0:  # no spread to judge a difference by
        return Difference(value, value, value, 1.0 if value == 0 else None, runs)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that one arm is without spread is no news
        test = stats.ttest_ind(first, second, equal_var=False)
    interval = test.confidence_interval(CONFIDENCE)
    return Difference(value, float(interval.low), float(interval.high), float(test.pvalue), runs)


def permutation(first: Array, second: Array, generator: np.random.Generator, draws: int = 10_000) -> float | None:
    """Two-sided p of the difference of means under exchange of runs: all splits where they are few, else drawn ones."""
    count, total = len(first), len(first) + len(second)
    if min(count, total - count) < 2:
        return None
    values = np.concatenate([first, second])
    seen = abs(float(np.mean(first) - np.mean(second)))
    if math.comb(total, count) <= _EXACT:
        chosen = np.array(list(combinations(range(total), count)))
    else:
        chosen = generator.permuted(np.tile(np.arange(total), (draws, 1)), axis=1)[:, :count]
    sums = values[chosen].sum(axis=1)
    found = np.abs(sums / count - (values.sum() - sums) / (total - count))
    extreme = int((found >= seen - 1e-9 * max(1.0, seen)).sum())
    exact = math.comb(total, count) <= _EXACT
    return extreme / len(chosen) if exact else (extreme + 1) / (len(chosen) + 1)


def smallest_p(runs: tuple[int, int]) -> float:
    """The smallest two-sided p that a permutation test of so many runs can give."""
    return min(1.0, (2 if runs[0] == runs[1] else 1) / math.comb(sum(runs), runs[0]))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p by Holm's step-down method (1979), over those that there are."""
    known = sorted((p, index) for index, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = highest
    return adjusted


def seeds_needed(first: Array, second: Array, margin: float, tests: int) -> int | None:
    """Runs of each arm that would settle the question, if mean and spread stayed as they are; None: too many.

    The smaller of two numbers: runs with which 80 % of studies find a difference like this one, at level
    0.05 / `tests`; and runs with which the 95 % interval of 80 % of them lies within ± `margin`.
    """
    spread = math.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2)
    seen = abs(float(np.mean(first) - np.mean(second)))
    if spread == 0:
        return 2
    runs = np.arange(2, MOST_SEEDS + 1)
    freedom, error = 2 * runs - 2, spread * np.sqrt(2 / runs)
    found = stats.nct.sf(stats.t.ppf(1 - 0.025 / tests, freedom), freedom, seen / error) >= 0.8
    room = margin - stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) * error  # for the estimate, either way
    within = stats.norm.cdf((room - seen) / error) - stats.norm.cdf((-room - seen) / error)
    settled = (found & (seen > 0)) | ((room >= 0) & (within >= 0.8))
    return int(runs[settled.argmax()]) if settled.any() else None


def profile(scores: Array, thresholds: Array) -> Array:
    """Share of runs above each threshold; scores (runs, tasks)."""
    return np.asarray(library.score_distributions(scores, thresholds), np.float64)


def profile_band(
    tasks: Sequence[Array], thresholds: Array, generator: np.random.Generator, resamples: int
) -> tuple[Array, Array] | None:
    """Expanded 95 % interval of the profile of all runs of all tasks; None where a task has one run."""
    fewest = min(len(each) for each in tasks)
    if fewest < 2:
        return None
    drawn = np.concatenate([_drawn(each, generator, resamples) for each in tasks], axis=1)
    shares = [np.mean(drawn > threshold, axis=1) for threshold in thresholds]
    return _between(np.stack(shares, axis=1), fewest)
