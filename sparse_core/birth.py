"""What value a new connection starts with: functions of the layer and the places that grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_core.registry import Rules
from sparse_core.view import LayerView

Values = Callable[..., Tensor]
"""(view, grown (k,), **options) -> values (k,)."""


class Birth(NamedTuple):
    """How new connections get their values, and whether captured batches are needed for that."""

    choose: Values
    needs_capture: bool = False


BIRTHS: Rules[Birth] = Rules("birth", Birth)
birth = BIRTHS.rule


@birth("zero")
def zero(view: LayerView, grown: Tensor) -> Tensor:
    """Zero: the network computes what it did before (RigL, arXiv:1911.11134)."""
    return torch.zeros(grown.numel(), dtype=view.values.dtype)


@birth("normal")
def normal(view: LayerView, grown: Tensor, *, std: float = 0.1) -> Tensor:
    """From N(0, std²), as SET's reference code."""
    return torch.empty(grown.numel(), dtype=view.values.dtype).normal_(0, std, generator=view.generator)


@birth("gradient", needs_capture=True)
def against_the_gradient(view: LayerView, grown: Tensor, *, step: float = 1e-3) -> Tensor:
    """-step · gradient there over the captured batches: a small step of plain gradient descent from zero."""
    return view.seen.gradient_at(grown, view.shape[1]).to(view.values.dtype) * -step
