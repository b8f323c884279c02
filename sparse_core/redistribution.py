"""In which layers connections grow: functions of all layers after the drop -> a weight for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from sparse_core.registry import Registry
from sparse_core.view import LayerView

Weights = Callable[[Mapping[str, LayerView]], Mapping[str, float]]
"""Views of all layers after the drop -> a weight for each layer; growth is shared out in proportion."""

REDISTRIBUTIONS: Registry[Weights] = Registry("redistribution")
redistribution = REDISTRIBUTIONS.register


@redistribution("active")
def by_connections(views: Mapping[str, LayerView]) -> dict[str, float]:
    """In proportion to the connections that a layer has left (DSR, arXiv:1902.05967)."""
    return {name: float(view.remaining.numel()) for name, view in views.items()}


@redistribution("vacant")
def by_room(views: Mapping[str, LayerView]) -> dict[str, float]:
    """In proportion to the positions where a layer could grow: uniform over the whole network."""
    return {name: float(view.vacant_count) for name, view in views.items()}


@redistribution("gradient")
def by_gradient(views: Mapping[str, LayerView]) -> dict[str, float]:
    """In proportion to the mean |gradient| of the connections that a layer has left, over the captured batches."""
    means = {}
    for name, view in views.items():
        sizes = view.seen.gradient_at(view.remaining, view.shape[1]).abs()
        means[name] = float(sizes.mean()) if sizes.numel() else 0.0
    return means


def apportion(weights: Sequence[float], room: Sequence[int], total: int) -> list[int]:
    """`total` split in proportion to the weights, none above its room: largest remainders first, exact.

    Where the room of layers with a weight is not enough, the others take the rest in proportion to theirs.
    """
    counts = [0] * len(room)
    while (left := min(total, sum(room)) - sum(counts)) > 0:
        open_ = [index for index in range(len(room)) if counts[index] < room[index]]
        weight = {index: weights[index] for index in open_}
        if not sum(weight.values()) > 0:
            weight = {index: float(room[index] - counts[index]) for index in open_}
        scale = left / sum(weight.values())
        ideal = {index: min(scale * weight[index], room[index] - counts[index]) for index in open_}
        for index in open_:
            counts[index] += math.floor(ideal[index])
        order = sorted(open_, key=lambda index: (math.floor(ideal[index]) - ideal[index], index))
        for index in order[: left - sum(math.floor(share) for share in ideal.values())]:
            counts[index] += counts[index] < room[index] and ideal[index] > 0
    return counts
