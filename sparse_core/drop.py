"""Which connections go: pure functions (view, count) -> indices of movable connections, ascending."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_core.draws import largest, sample_distinct
from sparse_core.registry import Registry
from sparse_core.view import LayerView

Choice = Callable[[LayerView, int], Tensor]


class DropRule(NamedTuple):
    """A drop rule, and whether it needs the importance of connections."""

    choose: Choice
    needs_importance: bool


DROP_RULES: Registry[DropRule] = Registry("drop rule")


def drop_rule(name: str, *, needs_importance: bool = False) -> Callable[[Choice], Choice]:
    """Decorator: the function is the drop rule `name` from now on."""

    def register(choose: Choice) -> Choice:
        DROP_RULES.add(name, DropRule(choose, needs_importance))
        return choose

    return register


@drop_rule("magnitude")
def weakest(view: LayerView, count: int) -> Tensor:
    """Drop the `count` smallest |value| (RigL, arXiv:1911.11134)."""
    return largest(-view.values.abs(), count)


@drop_rule("signed")
def weakest_of_each_sign(view: LayerView, count: int) -> Tensor:
    """Drop the positive and the negative values closest to zero, each sign its share (SET, arXiv:1707.04780).

    A value of exactly zero counts as positive, so it goes first among them.
    """
    negative = (view.values < 0).nonzero().squeeze(1)
    positive = (view.values >= 0).nonzero().squeeze(1)
    # To the nearest whole connection: rounding down would take the odd one from the negatives every time.
    of_positive = (2 * count * positive.numel() + view.count) // max(2 * view.count, 1)
    chosen_positive = positive[largest(-view.values[positive], of_positive)]
    chosen_negative = negative[largest(view.values[negative], count - of_positive)]
    return torch.cat([chosen_positive, chosen_negative]).sort().values


@drop_rule("random")
def any_connections(view: LayerView, count: int) -> Tensor:
    """Drop uniformly at random: the control that every other rule must beat."""
    return sample_distinct(view.count, count, view.generator)


@drop_rule("importance", needs_importance=True)
def least_important(view: LayerView, count: int) -> Tensor:
    """Drop the connections that have lowered the loss least since the last change (SpaceNet, arXiv:2007.07617)."""
    return largest(-view.importance.connections, count)
