"""Where connections come: pure functions (view, count) -> flat positions that are vacant, ascending."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sparse_core.registry import Registry
from sparse_core.view import LayerView


class GrowRule(NamedTuple):
    """A grow rule, and whether it needs captured inputs and output gradients."""

    choose: Callable[[LayerView, int], Tensor]
    needs_capture: bool


GROW_RULES: Registry[GrowRule] = Registry("grow rule")


def grow_rule(
    name: str, *, needs_capture: bool = False
) -> Callable[[Callable[[LayerView, int], Tensor]], Callable[[LayerView, int], Tensor]]:
    """Decorator: the function is the grow rule `name` from now on."""

    def register(choose: Callable[[LayerView, int], Tensor]) -> Callable[[LayerView, int], Tensor]:
        GROW_RULES.add(name, GrowRule(choose, needs_capture))
        return choose

    return register


@grow_rule("random")
def anywhere(view: LayerView, count: int) -> Tensor:
    """Grow uniformly at random among vacant positions, in O(count) (SET, arXiv:1707.04780)."""
    return view.sample_vacant(count)


@grow_rule("gradient", needs_capture=True)
def steepest(view: LayerView, count: int) -> Tensor:
    """Grow where the dense gradient would be largest in size (RigL, arXiv:1911.11134), streamed and exact."""
    return view.strongest_gradients(count)
