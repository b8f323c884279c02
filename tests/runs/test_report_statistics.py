"""The statistics of reports: with a pencil, against SciPy and rliable, and how often intervals hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rliable import library, metrics
from scipy import stats

from runs.report.statistics import (
    SeededBootstrap,
    bootstrap,
    expanded_levels,
    holm,
    iqm,
    mean,
    mean_curve,
    permutation,
    probability_of_improvement,
    profile,
    profile_band,
    seeds_needed,
    smallest_p,
    welch,
)

# Four runs of two tasks. Sorted: 0 1 2 3 4 5 7 100.
SCORES = np.array([[0.0, 5.0], [1.0, 4.0], [2.0, 100.0], [3.0, 7.0]])
OTHER = np.array([[1.0, 3.0], [1.0, 4.0], [0.0, 6.0], [5.0, 8.0]])


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tasks(scores: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return [scores[:, 0], scores[:, 1]]


# With a pencil


def test_interquartile_mean() -> None:
    # Without the lowest and highest quarter (0 1 | 7 100): (2 + 3 + 4 + 5) / 4.
    found = iqm(tasks(SCORES), random(), 500)
    assert found.value == metrics.aggregate_iqm(SCORES) == 3.5
    assert found.runs == 4
    assert found.low is not None
    assert found.high is not None
    assert found.low < 3.5 < found.high
    assert iqm([SCORES[:1, 0]], random(), 500).low is None


def test_probability_of_improvement() -> None:
    # Task 1: 0 1 2 3 against 1 1 0 5. Pairs won: 0: 0 + tie with 0; 1: beats 0, ties with 1, 1; 2: beats 1, 1, 0;
    # 3: beats 1, 1, 0. That is 0.5 + 2 + 3 + 3 = 8.5 of 16.
    # Task 2: 5 4 100 7 against 3 4 6 8. 5: 3, 4; 4: 3 + tie; 100: all four; 7: 3, 4, 6. 2 + 1.5 + 4 + 3 = 10.5 of 16.
    pairs = [*zip(tasks(SCORES), tasks(OTHER), strict=True)]
    found = probability_of_improvement(pairs, random(), 500)
    assert found.value == metrics.probability_of_improvement(SCORES, OTHER) == (8.5 / 16 + 10.5 / 16) / 2
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low < found.value < found.high <= 1


def test_probability_of_improvement_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [*zip(tasks(SCORES), tasks(OTHER), strict=True)]
    whole = probability_of_improvement(pairs, random(), 500)
    monkeypatch.setattr("runs.report.statistics._BLOCK", 7 * 16)
    assert probability_of_improvement(pairs, random(), 500) == whole


def test_complete_separation_has_no_interval() -> None:
    found = probability_of_improvement([(np.array([3.0, 4.0, 5.0]), np.array([0.0, 1.0, 2.0]))], random(), 200)
    assert (found.value, found.low, found.high) == (1.0, None, None)
    assert "all runs of one are above" in found.kind


def test_performance_profile() -> None:
    # Above 2.5: 3, 5, 4, 100, 7 of eight; above 7 (strictly): 100.
    assert profile(SCORES, np.array([-1.0, 2.5, 7.0, 100.0])).tolist() == [1.0, 5 / 8, 1 / 8, 0.0]


def test_mean_over_runs_with_students_interval() -> None:
    # 2, 4, 6: mean 4, deviation 2, error 2/√3; t at 97.5 % with two degrees of freedom is 4.3027.
    found = mean(np.array([2.0, 4.0, 6.0]))
    assert found.value == 4
    assert found.high == pytest.approx(4 + 4.302653 * 2 / math.sqrt(3), abs=1e-5)
    assert found.low == pytest.approx(4 - 4.302653 * 2 / math.sqrt(3), abs=1e-5)
    assert mean(np.array([3.0])).low is None


def test_holm() -> None:
    # Of three: 0.01 · 3 = 0.03; 0.02 · 2 = 0.04; 0.9 · 1. The fourth is not known and does not count.
    assert holm([0.9, 0.01, None, 0.02]) == [0.9, pytest.approx(0.03), None, pytest.approx(0.04)]
    # 0.03 · 2 = 0.06 is not less than the one before it: 0.02 · 3 = 0.06. And 0.031 · 1 takes over 0.06.
    assert holm([0.02, 0.03, 0.031]) == [pytest.approx(0.06)] * 3
    assert holm([]) == []


def test_permutation_tries_all_splits_where_they_are_few() -> None:
    # 2 against 2: six splits of 1 2 | 3 4 differ by 2, 1, 0, 0, 1, 2: two are as far apart as ours.
    assert permutation(np.array([1.0, 2.0]), np.array([3.0, 4.0]), random()) == 2 / 6
    # 3 against 3, separated: 2 of 20.
    assert permutation(np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]), random()) == 2 / 20
    assert permutation(np.array([1.0, 1.0]), np.array([1.0, 1.0]), random()) == 1
    assert permutation(np.array([1.0]), np.array([3.0, 4.0]), random()) is None


def test_permutation_by_draws_is_near_the_exact_one() -> None:
    draws = random(3)
    first, second = draws.normal(0.5, 1, 10), draws.normal(0, 1, 10)  # 184,756 splits
    exact = stats.permutation_test(
        (first, second), lambda x, y, axis: x.mean(axis) - y.mean(axis), n_resamples=np.inf, vectorized=True
    ).pvalue
    assert permutation(first, second, random(), draws=40_000) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("runs", [(2, 2), (3, 3), (2, 3), (5, 5)])
def test_smallest_p_is_that_of_separated_runs(runs: tuple[int, int]) -> None:
    first, second = np.arange(runs[0]) + 100.0, np.arange(runs[1]) * 1.0
    assert permutation(first, second, random()) == pytest.approx(smallest_p(runs))


def test_welch() -> None:
    first, second = np.array([3.0, 5.0, 4.0, 8.0]), np.array([1.0, 2.0, 2.5])
    found, theirs = welch(first, second), stats.ttest_ind(first, second, equal_var=False)
    assert found.value == pytest.approx(5 - 5.5 / 3)
    assert found.p == pytest.approx(theirs.pvalue)
    # Satterthwaite's degrees of freedom, by hand.
    parts = first.var(ddof=1) / 4, second.var(ddof=1) / 3
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 2)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    assert found.low == pytest.approx(found.value - half)
    assert found.high == pytest.approx(found.value + half)


def test_welch_without_spread_or_with_one_run() -> None:
    same, other = np.array([2.0, 2.0]), np.array([3.0, 3.0, 3.0])
    assert (welch(same, same).p, welch(same, other).p) == (1.0, None)
    assert (welch(other, same).low, welch(other, same).high) == (1.0, 1.0)
    assert welch(np.array([1.0]), other).p is None
    assert welch(np.array([1.0]), other).value == -2


def test_expanded_levels_with_five_runs() -> None:
    # √(5/4) · 2.7764 = 3.1042, and a normal variable is below -3.1042 with probability 0.00095.
    low, high = expanded_levels(5)
    assert low == pytest.approx(0.000954, abs=2e-6)
    assert high == 1 - low
    assert expanded_levels(10_000)[0] == pytest.approx(0.025, abs=1e-4)


# rliable's bootstrap with a generator


def test_bootstraps_draw_from_their_generator_alone() -> None:
    def replicates(seed: int) -> NDArray[np.float64]:
        found: NDArray[np.float64] = SeededBootstrap(SCORES, random(seed)).apply(np.mean, 20)
        return found

    before = np.random.get_state()[1].tobytes()  # noqa: NPY002 (it is what rliable would draw from)
    assert np.array_equal(replicates(1), replicates(1))
    assert not np.array_equal(replicates(1), replicates(2))
    assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002


def test_bootstrap_is_rliables_in_distribution() -> None:
    np.random.seed(0)  # noqa: NPY002
    _, theirs = library.get_interval_estimates({"a": SCORES[:, :1]}, lambda x: np.array([x.mean()]), reps=4000)
    replicates = SeededBootstrap(SCORES[:, :1], random()).apply(lambda x: np.array([x.mean()]), 4000)
    assert np.quantile(replicates, [0.025, 0.975]) == pytest.approx(theirs["a"][:, 0], abs=0.13)


@pytest.mark.parametrize("shape", [(4, 2), (5, 1), (3, 2, 7)])
def test_blocks_are_the_resamples_that_rliable_makes_one_by_one(shape: tuple[int, ...]) -> None:
    scores = random(8).normal(size=shape)
    one_by_one = [data[0] for data, _ in SeededBootstrap(scores, random(1)).bootstrap(2500)]
    blocks = np.concatenate([*SeededBootstrap(scores, random(1)).resamples(2500)])
    assert np.array_equal(blocks, np.stack(one_by_one))


def test_blocks_of_any_size_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate([*SeededBootstrap(SCORES, random(1)).resamples(50)])
    monkeypatch.setattr("runs.report.statistics._BLOCK", 3 * SCORES.size)
    assert np.array_equal(whole, np.concatenate([*SeededBootstrap(SCORES, random(1)).resamples(50)]))


def test_profile_has_a_band_around_it() -> None:
    thresholds = np.array([-1.0, 2.5, 200.0])
    band = profile_band(tasks(SCORES), thresholds, random(), 500)
    assert band is not None
    low, high = band
    assert (low[0], high[0], low[2], high[2]) == (1, 1, 0, 0)
    assert low[1] < 5 / 8 < high[1]
    assert profile_band([SCORES[:1, 0]], thresholds, random(), 500) is None


def test_runs_stay_whole_over_time() -> None:
    """Each run is a constant course: drawn step by step, a resample would be none."""
    courses = np.tile(np.arange(4.0)[:, None, None], (1, 1, 6))
    for (resample,), _ in SeededBootstrap(courses, random()).bootstrap(10):
        assert (np.ptp(resample, axis=2) == 0).all()


def test_curve_has_an_interval_at_each_time() -> None:
    generator = random(1)
    courses = np.linspace(0, 10, 8) + generator.normal(size=(5, 1, 8))
    found = bootstrap(courses, mean_curve, random(), 400)
    assert found is not None
    low, high = found
    assert low.shape == high.shape == (8,)
    assert (low < mean_curve(courses)).all()
    assert (mean_curve(courses) < high).all()
    assert bootstrap(courses[:1], mean_curve, random(), 400) is None


def test_intervals_are_read_at_the_expanded_levels() -> None:
    runs = np.array([1.0, 2, 4, 8, 16])[:, None, None]
    means = np.array([data[0].mean() for data, _ in SeededBootstrap(runs, random(1)).bootstrap(3000)])
    levels = stats.norm.cdf(math.sqrt(5 / 4) * stats.t.ppf([0.025, 0.975], 4))
    low, high = bootstrap(runs, mean_curve, random(1), 3000) or ([np.nan], [np.nan])
    assert [float(low[0]), float(high[0])] == pytest.approx(np.quantile(means, levels))
    assert low[0] < np.quantile(means, 0.025)


def test_the_task_with_fewest_runs_decides_how_wide() -> None:
    """With two runs the levels are so low that the interval goes from the lowest resample to the highest."""
    five, two = np.arange(5.0), np.arange(2.0)
    found = iqm([five, two], random(), 4000)
    assert found.runs == 2
    generator = random()
    drawn = [np.concatenate([*SeededBootstrap(each[:, None], generator).resamples(4000)]) for each in (five, two)]
    middle = np.sort(np.concatenate(drawn, axis=1)[:, :, 0], axis=1)[:, 1:-1].mean(axis=1)  # of seven, without one each
    assert (found.low, found.high) == pytest.approx((middle.min(), middle.max()))
    assert np.quantile(middle, expanded_levels(5)[0]) > middle.min()
    band = profile_band([five, two], np.array([2.5]), random(), 4000)
    assert band is not None
    assert (band[0][0], band[1][0]) == pytest.approx((0, 5 / 7))  # none above, and all of the five


def test_expanded_percentiles_cover_where_plain_ones_do_not() -> None:
    """Means of five normal runs, 400 studies: plain percentiles hold in about 83 % of them."""
    generator = random(5)
    plain = expanded = 0
    for _ in range(400):
        runs = generator.normal(size=5)
        means = runs[generator.integers(5, size=(2000, 5))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        plain += low <= 0 <= high
        low, high = np.quantile(means, expanded_levels(5))
        expanded += low <= 0 <= high
    assert plain / 400 < 0.88
    assert expanded / 400 > 0.92


# How many seeds


def test_seeds_needed_find_what_they_promise() -> None:
    """Difference 1, deviation 1, one test: textbooks say 17 an arm for 80 %; and a simulation agrees."""
    first, second = np.array([0.0, 1, 2]) + 1, np.array([0.0, 1, 2])
    needed = seeds_needed(first, second, margin=0.0, tests=1)
    assert needed == 17
    draws = random().normal(size=(2, 3000, needed))
    p = stats.ttest_ind(draws[0] + 1, draws[1], axis=1, equal_var=False).pvalue
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.03)


def test_more_tests_and_more_spread_need_more_seeds() -> None:
    first, second = np.array([0.0, 1, 2]) + 1, np.array([0.0, 1, 2])
    one, ten = (seeds_needed(first, second, 0.0, tests) for tests in (1, 10))
    wide = seeds_needed(2 * first - 1, 2 * second, 0.0, 1)
    assert one is not None
    assert ten is not None
    assert wide is not None
    assert one < ten
    assert one < wide


def test_equal_arms_need_seeds_until_the_interval_fits_the_margin() -> None:
    arm = np.array([9.0, 10, 11])
    # At n = 22 the error is √(2/22) = 0.302 and half an interval 2.018 · 0.302 = 0.608, which leaves 0.392 or 1.30
    # errors: 81 % of estimates. At n = 21 it leaves 1.22 errors, 78 %.
    assert seeds_needed(arm, arm, margin=1.0, tests=1) == 22
    assert seeds_needed(arm, arm, margin=0.01, tests=1) is None
    draws = random().normal(size=(2, 3000, 22))
    interval = stats.ttest_ind(draws[0], draws[1], axis=1, equal_var=False).confidence_interval(0.95)
    assert (np.maximum(-interval.low, interval.high) <= 1).mean() == pytest.approx(0.8, abs=0.03)


# Laws

values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6).map(np.array)


@given(values, values)
def test_differences_are_antisymmetric(first: NDArray[np.float64], second: NDArray[np.float64]) -> None:
    one, other = welch(first, second), welch(second, first)
    assert one.value == pytest.approx(-other.value)
    assert one.p == pytest.approx(other.p, nan_ok=True)
    assert one.low is not None
    assert one.high is not None
    assert one.low <= one.value + 1e-9
    assert one.value - 1e-9 <= one.high
    pairs = [(first, second)], [(second, first)]
    chances = [probability_of_improvement(pair, random(), 5).value for pair in pairs]
    assert sum(chances) == pytest.approx(1)
    assert permutation(first, second, random()) == pytest.approx(permutation(second, first, random()))


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_and_keeps_the_order(raw: list[float]) -> None:
    adjusted = holm(list(raw))
    assert all(a is not None and p <= a <= 1 for p, a in zip(raw, adjusted, strict=True))
    order = np.argsort(raw, kind="stable")
    assert np.all(np.diff(np.array(adjusted, float)[order]) >= 0)


@given(values, st.floats(-100, 100), st.floats(0.1, 10))
def test_intervals_move_with_their_scale(runs: NDArray[np.float64], shift: float, scale: float) -> None:
    assume(np.ptp(runs) > 1e-3)
    plain, moved = mean(runs), mean(scale * runs + shift)
    assert plain.low is not None
    assert moved.low is not None
    assert moved.low == pytest.approx(scale * plain.low + shift, abs=1e-6, rel=1e-6)
