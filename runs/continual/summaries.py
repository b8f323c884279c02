"""A score over seeds: its mean and how surely it is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from scipy import stats


def summarise(values: Sequence[float | None]) -> dict[str, Any]:
    """One score over seeds: `mean`, `ci95` (half-width of Student's t interval) and `per_seed`, the values.

    `ci95` is None for one seed. A score that has no meaning, None for all seeds, has None for all three but `per_seed`.

    Raises:
        ValueError: for no values, NaN or infinity, and None for only some seeds.
    """
    if not values:
        raise ValueError("`values` must hold one score for each seed, got none")
    numbers = [float(value) for value in values if value is not None]
    if not numbers:
        return {"mean": None, "ci95": None, "per_seed": list(values)}
    if len(numbers) < len(values) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"`values` must be finite numbers, or None for all seeds alike, got {list(values)}")
    count = len(numbers)
    mean = math.fsum(numbers) / count
    if count == 1:
        return {"mean": mean, "ci95": None, "per_seed": numbers}
    deviation = math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (count - 1))
    width = float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return {"mean": mean, "ci95": width, "per_seed": numbers}
