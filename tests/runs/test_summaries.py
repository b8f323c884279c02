"""Scores over seeds."""

import math

import pytest

from runs.continual.summaries import summarise


def test_summary_by_hand() -> None:
    # Standard deviation 0.1 over three seeds; Student's t with two degrees of freedom is 4.3027.
    summary = summarise([0.6, 0.7, 0.8])
    assert summary["mean"] == pytest.approx(0.7)
    assert summary["ci95"] == pytest.approx(4.302653 * 0.1 / math.sqrt(3))
    assert summary["per_seed"] == [0.6, 0.7, 0.8]


def test_summary_of_one_seed_has_no_interval() -> None:
    assert summarise([0.6]) == {"mean": 0.6, "ci95": None, "per_seed": [0.6]}


def test_summary_of_what_has_no_meaning() -> None:
    assert summarise([None, None]) == {"mean": None, "ci95": None, "per_seed": [None, None]}


@pytest.mark.parametrize("values", [[], [0.5, None], [0.5, math.nan], [math.inf]])
def test_what_cannot_be_summarised_is_said(values: list[float | None]) -> None:
    with pytest.raises(ValueError, match="`values`"):
        summarise(values)
