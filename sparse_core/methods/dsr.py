"""DSR: dynamic sparse reparameterization (Mostafa & Wang 2019, arXiv:1902.05967)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparse_core.drop import drop_rule
from sparse_core.presets import PRESETS, Preset
from sparse_core.view import LayerView


@drop_rule("adaptive-threshold", network=True, own_count=True)
def below_threshold(
    views: Mapping[str, LayerView], count: int, *, threshold: float = 1e-3, tolerance: float = 0.1
) -> dict[str, Tensor]:
    """Drop every |value| below one threshold for all layers, which is doubled or halved to drop about `count`.

    A threshold that dropped more than (1 + tolerance) · count is halved for the next change, one that dropped fewer
    than (1 - tolerance) · count doubled. Every layer keeps its strongest connection. `threshold` is the first one.
    """
    memory = next(iter(views.values())).memory
    now = float(memory["threshold"]) if "threshold" in memory else threshold
    chosen = {}
    for name, view in views.items():
        sizes = view.values.abs().clone()
        if sizes.numel():
            sizes[sizes.argmax()] = torch.inf
        chosen[name] = (sizes < now).nonzero().squeeze(1)
    dropped = sum(indices.numel() for indices in chosen.values())
    factor = 0.5 if dropped > (1 + tolerance) * count else 2.0 if dropped < (1 - tolerance) * count else 1.0
    memory["threshold"] = torch.tensor(now * factor, dtype=torch.float64)
    return chosen


PRESETS.add(
    "dsr",
    Preset(
        "drop below one adaptive threshold, grow at random in proportion to what layers have left (arXiv:1902.05967)",
        drop="adaptive-threshold", grow="random", drop_fraction=0.1, redistribute="active",
    ),
)  # fmt: skip
