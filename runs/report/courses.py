"""Numbers of each evaluation or change, averaged over runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from runs.report.loading import Run
from runs.report.statistics import Array

Course = tuple[Array, Array]
"""Steps and values, (n,) each."""


def mean_course(runs: Sequence[Run], field: str, value: Callable[[Sequence[Any]], float | None]) -> Course | None:
    """A number of each row of a result's `field` averaged over the runs that have it, as far as all of those go.

    Rows begin with their step; those without the number (None) are left out. None where no run has any.
    """
    rows = ([(row[0], value(row)) for row in run.result.get(field) or []] for run in runs)
    found = [np.array([pair for pair in each if pair[1] is not None], np.float64) for each in rows]
    found = [each for each in found if each.size and not np.isnan(each[:, 1]).all()]
    if not found:
        return None
    shortest = min(len(each) for each in found)
    values = np.array([each[:shortest] for each in found])
    return values[0, :, 0], values[:, :, 1].mean(axis=0)
