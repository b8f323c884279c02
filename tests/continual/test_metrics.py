import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from continual import metrics

R = np.array([[0.9, 0.0, 0.1], [0.7, 0.8, 0.2], [0.6, 0.5, 1.0]])
BY_HAND = {
    "acc": (0.6 + 0.5 + 1.0) / 3,
    "bwt": ((0.6 - 0.9) + (0.5 - 0.8)) / 2,
    "forgetting": ((0.9 - 0.6) + (0.8 - 0.5)) / 2,
    "learning_accuracy": (0.9 + 0.8 + 1.0) / 3,
    "average_incremental": (0.9 + (0.7 + 0.8) / 2 + (0.6 + 0.5 + 1.0) / 3) / 3,
}

matrices = st.integers(1, 5).flatmap(lambda tasks: arrays.arrays(np.float64, (tasks, tasks), elements=st.floats(0, 1)))


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    assert getattr(metrics, name)(R) == pytest.approx(BY_HAND[name])


def test_fwt_by_hand() -> None:
    # After task 1, task 2 is at 0.0; after task 2, task 3 is at 0.2; both were at 0.1 and 0.3 before.
    assert metrics.fwt(R, [0.2, 0.1, 0.3]) == pytest.approx(((0.0 - 0.1) + (0.2 - 0.3)) / 2)
    assert metrics.fwt(R, None) is None


def test_intransigence_by_hand() -> None:
    assert metrics.intransigence(R, [0.9, 0.9, 0.9]) == pytest.approx(((0.9 - 0.9) + (0.9 - 0.8) + (0.9 - 1.0)) / 3)


def test_forgetting_starts_from_the_best_even_where_that_came_later() -> None:
    later = [[0.5, 0.0, 0.0], [0.9, 0.5, 0.0], [0.4, 0.5, 0.5]]
    assert metrics.forgetting(later) == pytest.approx(((0.9 - 0.4) + 0.0) / 2)
    assert metrics.bwt(later) == pytest.approx(((0.4 - 0.5) + 0.0) / 2)


def test_scores_are_the_functions() -> None:
    scores = metrics.scores(R, initial=[0.2, 0.1, 0.3], joint=[0.9, 0.9, 0.9])
    for name, value in BY_HAND.items():
        assert getattr(scores, name) == pytest.approx(value)
    assert scores.fwt == metrics.fwt(R, [0.2, 0.1, 0.3])
    assert scores.intransigence == metrics.intransigence(R, [0.9, 0.9, 0.9])
    assert metrics.scores(R).fwt is None
    assert metrics.scores(R).intransigence is None


def test_one_task_has_no_transfer() -> None:
    scores = metrics.scores([[0.75]], initial=[0.5])
    assert (scores.acc, scores.learning_accuracy, scores.average_incremental) == (0.75, 0.75, 0.75)
    assert (scores.bwt, scores.fwt, scores.forgetting) == (None, None, None)


@given(r=matrices)
def test_laws(r: NDArray[np.float64]) -> None:
    before = r.copy()
    scores = metrics.scores(r, initial=r[0])
    tasks = len(r)
    transfer = 0.0 if scores.bwt is None else scores.bwt
    assert scores.acc == pytest.approx(scores.learning_accuracy + (tasks - 1) / tasks * transfer)
    if tasks > 1:
        assert scores.forgetting is not None
        assert scores.forgetting >= -transfer - 1e-12
        assert -1 <= transfer <= 1
    np.testing.assert_array_equal(r, before)


@given(r=matrices)
def test_what_never_changes_forgets_nothing(r: NDArray[np.float64]) -> None:
    scores = metrics.scores(np.broadcast_to(r[0], r.shape))
    assert scores.acc == scores.learning_accuracy
    assert scores.bwt in (None, 0)
    assert scores.forgetting in (None, 0)


@pytest.mark.parametrize(
    ("r", "why"),
    [
        ([[0.5, math.nan], [0.5, 0.5]], r"NaN, first at \(1, 2\)"),
        ([[0.5, 0.5]], "T × T"),
        ([0.5, 0.5], "T × T"),
        (np.empty((0, 0)), "T × T"),
        ([[97.0, 0.0], [50.0, 98.0]], r"fractions in \[0, 1\], got 0 to 98"),
        ([[-0.1]], "fractions"),
    ],
)
def test_what_is_no_matrix_is_said(r: list[list[float]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        metrics.scores(r)


@pytest.mark.parametrize("row", [[0.1, 0.2], [0.1, 0.2, math.nan], [0.1, 0.2, 30]])
def test_what_is_no_row_is_said(row: list[float]) -> None:
    with pytest.raises(ValueError, match="initial row"):
        metrics.fwt(R, row)
