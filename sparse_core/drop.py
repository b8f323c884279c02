"""Which connections go: pure functions (view, count) -> indices of movable connections, ascending."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_core.draws import sample_distinct
from sparse_core.registry import Rules
from sparse_core.view import LayerView


class DropRule(NamedTuple):
    """A drop rule, what it needs, and what it decides besides which connections go."""

    choose: Callable[..., Any]
    """(view, count, **options) -> indices of `count` movable connections."""
    needs_importance: bool = False
    needs_capture: bool = False
    network: bool = False
    """It sees all layers at once: (views by name, count over all of them) -> indices by name."""
    own_count: bool = False
    """It drops as many as it finds right, whatever `count` says."""
    plans: bool = False
    """It decides growth, too: (view, count) -> indices to drop, flat positions to grow, as many."""
    needs_closure: bool = False
    """It wants `view.flow_shares`, and so a closure that works out the loss anew."""


DROP_RULES: Rules[DropRule] = Rules("drop rule", DropRule)
drop_rule = DROP_RULES.rule


@drop_rule("magnitude")
def weakest(view: LayerView, count: int) -> Tensor:
    """Drop the `count` smallest |value| (RigL, arXiv:1911.11134)."""
    return view.least(view.values.abs(), count)


@drop_rule("signed")
def weakest_of_each_sign(view: LayerView, count: int) -> Tensor:
    """Drop the positive and the negative values closest to zero, each sign its share (SET, arXiv:1707.04780).

    A value of exactly zero counts as positive, so it goes first among them.
    """
    return least_of_each_sign(view, count, view.values.abs())


def least_of_each_sign(view: LayerView, count: int, scores: Tensor) -> Tensor:
    """Indices of the lowest scores (n,) among positive and among negative values, each sign its share of `count`."""
    negative = (view.values < 0).nonzero().squeeze(1)
    positive = (view.values >= 0).nonzero().squeeze(1)
    # To the nearest whole connection: rounding down would take the odd one from the negatives every time.
    of_positive = (2 * count * positive.numel() + view.count) // max(2 * view.count, 1)
    chosen_positive = positive[view.least(scores[positive], of_positive)]
    chosen_negative = negative[view.least(scores[negative], count - of_positive)]
    return torch.cat([chosen_positive, chosen_negative]).sort().values


@drop_rule("random")
def any_connections(view: LayerView, count: int) -> Tensor:
    """Drop uniformly at random: the control that every other rule must beat."""
    return sample_distinct(view.count, count, view.generator)


@drop_rule("importance", needs_importance=True)
def least_important(view: LayerView, count: int) -> Tensor:
    """Drop the connections that have lowered the loss least since the last change (SpaceNet, arXiv:2007.07617)."""
    return view.least(view.importance.connections, count)


@drop_rule("global-magnitude", network=True)
def weakest_of_all(views: Mapping[str, LayerView], count: int) -> dict[str, Tensor]:
    """Drop the `count` smallest |value| of the whole network, whatever their layers (as GraNet, arXiv:2106.10404)."""
    return least_of_all(views, count, {name: view.values.abs() for name, view in views.items()})


def least_of_all(views: Mapping[str, LayerView], count: int, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Indices of the `count` lowest scores over all layers, less the best one of each: a cut network is dead.

    Equal scores go from the first layer and the lowest index on.
    """
    shown = {}
    for name, each in scores.items():
        shown[name] = each.double().clone()
        if each.numel():
            shown[name][each.argmax()] = torch.inf
    sizes = [each.numel() for each in shown.values()]
    some = next(iter(views.values()))
    whole = torch.cat(list(shown.values()))
    free = (whole < torch.inf).nonzero().squeeze(1)
    # Chance must not take the best ones either.
    chosen = free[some.least(whole[free], count)] if count <= free.numel() else some.least(whole, count)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = zip(views, ends, sizes, strict=True)
    return {name: chosen[(chosen >= end - size) & (chosen < end)] - (end - size) for name, end, size in parts}
