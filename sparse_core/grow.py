"""Where connections come: pure functions (view, count) -> flat positions that are vacant, ascending."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sparse_core.registry import Rules
from sparse_core.signals import Capture
from sparse_core.view import LayerView

Choice = Callable[..., Tensor]
"""(view, count, **options) -> `count` vacant flat positions."""


Observer = Callable[[dict[str, Tensor], Capture, tuple[int, int]], None]


class GrowRule(NamedTuple):
    """A grow rule, and what it needs."""

    choose: Choice
    needs_capture: bool = False
    needs_importance: bool = False
    in_place: bool = False
    """It grows what was just dropped, and so wants `regrow="fresh"`."""
    dense_gradient: bool = False
    """It looks at the dense gradient of every layer, 2·B·N operations a change."""
    observe: Observer | None = None
    """What it does with every step's captured batch: (the layer's memory, capture, shape) -> None."""


GROW_RULES: Rules[GrowRule] = Rules("grow rule", GrowRule)
grow_rule = GROW_RULES.rule


@grow_rule("random")
def anywhere(view: LayerView, count: int) -> Tensor:
    """Grow uniformly at random among vacant positions, in O(count) (SET, arXiv:1707.04780)."""
    return view.sample_vacant(count)


@grow_rule("gradient", needs_capture=True, dense_gradient=True)
def steepest(view: LayerView, count: int) -> Tensor:
    """Grow where the dense gradient would be largest in size (RigL, arXiv:1911.11134), streamed and exact."""
    return view.strongest_gradients(count)


@grow_rule("importance", needs_importance=True)
def between_important_neurons(view: LayerView, count: int) -> Tensor:
    """Grow between the most important neurons, by the product of both ends (SpaceNet, arXiv:2007.07617)."""
    return view.strongest_pairs(count, view.importance.outputs, view.importance.inputs)


@grow_rule("in-place", in_place=True)
def where_it_was(view: LayerView, count: int) -> Tensor:
    """Grow what was just dropped, anew: weights are refreshed, the topology stays. The control for every other rule."""
    if view.dropped is None or view.dropped.numel() != count:
        raise RuntimeError("growth in place needs what this change has dropped; let a `Sparsifier` run the rule")
    return view.dropped
