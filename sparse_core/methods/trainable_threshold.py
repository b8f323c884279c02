"""Dynamic Sparse Training: every output learns the threshold of its weights (Liu et al. 2020, arXiv:2005.06870)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_core.maskings import Masking, masking
from sparse_core.presets import PRESETS, Preset

EMPTIEST = 0.01  # share of a layer's weights below which its thresholds begin again


def long_tailed(x: Tensor) -> Tensor:
    """In the place of the step's derivative: 2 - 4 |x| up to 0.4, 0.4 up to 1, 0 beyond."""
    size = x.abs()
    return torch.where(size <= 0.4, 2 - 4 * size, (size <= 1).to(x) * 0.4)


class Thresholded(torch.autograd.Function):
    """Weights that are kept, zeros elsewhere; the step from one to the other has the long-tailed derivative."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, thresholds: Tensor, kept: Tensor) -> Tensor:
        """(outputs, inputs), (outputs,), (outputs, inputs) to (outputs, inputs)."""
        ctx.save_for_backward(weights, thresholds, kept)
        return weights * kept

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of weights: what multiplies and what the step adds; of thresholds: the step's alone, summed over inputs."""
        weights, thresholds, kept = ctx.saved_tensors
        size = weights.abs()
        slope = long_tailed(size - thresholds[:, None])
        return gradient * (kept + size * slope), -(gradient * weights * slope).sum(1), None


@masking("trainable-threshold", exact=False)
class TrainableThreshold(Masking):
    """Multiply the weights that are at least as large as their output's threshold, a parameter that starts at 0.

    Every threshold t has α exp(-t) added to the loss as long as the network multiplies more weights than its
    sparsity asks for. A layer that is left with 1 % of its weights begins again with thresholds of 0.

    Args:
        layer: see `Masking`.
        count: the layer's part of what the sparsity asks for; a goal of the whole network, not of the layer.
        alpha: α.
    """

    def __init__(self, layer: Any, count: int, *, alpha: float = 0.01) -> None:
        super().__init__(layer, count)
        if not alpha >= 0:
            raise ValueError(f"`alpha` must not be negative, got {alpha!r}")
        self.alpha = alpha
        self.thresholds = nn.Parameter(layer.values.new_zeros(self.shape[0]), layer.values.requires_grad)

    def forward(self, values: Tensor) -> Tensor:
        """As `Masking`; gradients reach thresholds, and weights that do not multiply, too."""
        masked: Tensor = Thresholded.apply(values.view(self.shape), self.thresholds, self.kept.view(self.shape))
        return masked.flatten()

    @torch.no_grad()
    def refresh(self, values: Tensor) -> None:
        """Weights at or above their output's threshold."""
        sizes = values.view(self.shape).abs()
        kept = sizes >= self.thresholds[:, None]
        enough = kept.sum() > EMPTIEST * kept.numel()
        self.thresholds.mul_(enough)
        self.kept.copy_((kept | ~enough).flatten())

    def add_gradients(self, values: Tensor, gradient: Tensor, wide: Tensor) -> None:
        """-α exp(-t), which makes thresholds rise."""
        if self.thresholds.grad is not None:
            self.thresholds.grad.sub_(self.alpha * (-self.thresholds.detach()).exp() * wide)


PRESETS.add(
    "trainable-threshold",
    Preset(
        "multiply what is above each output's threshold, and train the thresholds (DST, arXiv:2005.06870)",
        masking="trainable-threshold", begin=0.0, period=1, own_period=True,
        dense_by_nature="begins with every weight, and keeps them all",
    ),
)  # fmt: skip
