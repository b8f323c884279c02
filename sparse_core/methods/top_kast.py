"""Top-KAST: the largest weights multiply, somewhat more of them learn (Jayakumar et al. 2020, arXiv:2106.03517)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_core.draws import whole
from sparse_core.maskings import Masking, masking
from sparse_core.presets import PRESETS, Preset


@masking("top-kast")
class TopKast(Masking):
    """Multiply the K largest weights of a layer (A), and give gradients to those and the next largest (B ⊃ A).

    Their own loss, λ/2 (‖θ_A‖² + ‖θ_{B∖A}‖² / D) with D the density of A, shrinks weights that do not multiply
    faster, so that the layer explores. Weights outside B stay as they are. Equal weights go by index.

    Args:
        layer: see `Masking`.
        count: K.
        backward: size of B as a multiple of K; at most every weight.
        exploration: λ.
    """

    trained: Tensor

    def __init__(self, layer: Any, count: int, *, backward: float = 2.0, exploration: float = 1e-4) -> None:
        super().__init__(layer, count)
        if not backward >= 1:
            raise ValueError(f"`backward` must be at least 1: what multiplies learns; got {backward!r}")
        if not exploration >= 0:
            raise ValueError(f"`exploration` must not be negative, got {exploration!r}")
        self.backward, self.exploration = backward, exploration
        self.trained = self.kept.clone()
        self.refresh(layer.values.detach())

    def refresh(self, values: Tensor) -> None:
        """A and B by the sizes of the values as they are."""
        order = values.abs().sort(descending=True, stable=True).indices
        for chosen, count in ((self.kept, self.count), (self.trained, whole(self.backward * self.count))):
            chosen.fill_(False).index_fill_(0, order[:count], True)

    def add_gradients(self, values: Tensor, gradient: Tensor, wide: Tensor) -> None:
        """λ θ on A, λ θ / D on the rest of B."""
        density = self.count / values.numel()
        pull = torch.where(self.kept, values, values / density)
        gradient.addcmul_(pull, self.trained, value=self.exploration)


PRESETS.add(
    "top-kast",
    Preset(
        "multiply the largest weights, train twice as many, keep them all (Top-KAST, arXiv:2106.03517)",
        masking="top-kast", begin=0.0, dense_by_nature="keeps every weight",
    ),
)  # fmt: skip
