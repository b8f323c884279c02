"""MEST: weights judged by size and gradient, growth at random, in stages (Yuan et al. 2021, arXiv:2110.14032)."""

from __future__ import annotations

from torch import Tensor

from sparse_core.drop import drop_rule
from sparse_core.presets import PRESETS, Preset
from sparse_core.view import LayerView


@drop_rule("weight-and-gradient", needs_capture=True)
def least_weight_and_gradient(view: LayerView, count: int, *, gradient_weight: float = 0.01) -> Tensor:
    """Drop the smallest |w| + λ|g|, g the connection's gradient over the captured batches (MEST, arXiv:2110.14032)."""
    return view.least(view.values.abs() + gradient_weight * view.own_gradients().abs(), count)


PRESETS.add(
    "mest",
    Preset(
        "drop the smallest |w| + λ|g|, grow at random, in stages (MEST: Yuan et al. 2021, arXiv:2110.14032)",
        drop="weight-and-gradient", grow="random", drop_fraction=0.2, schedule="staged", stop=0.75, regrow="fresh",
    ),
)  # fmt: skip
PRESETS.add(
    "mest-soft",
    Preset(
        "as mest, from a density of 1.2 times the final one that comes down in stages (MEST's soft memory bound)",
        drop="weight-and-gradient", grow="random", drop_fraction=1 / 3, schedule="staged", stop=0.75, regrow="fresh",
        prune="weight-and-gradient", course="staged", overshoot=1.2,
    ),
)  # fmt: skip
