"""SNFS: sparse networks from scratch, by momentum (Dettmers & Zettlemoyer 2019, arXiv:1907.04840)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparse_core.grow import grow_rule
from sparse_core.presets import PRESETS, Preset
from sparse_core.redistribution import redistribution
from sparse_core.signals import Capture
from sparse_core.view import LayerView

MOMENTUM = 0.9


def gather(memory: dict[str, Tensor], capture: Capture, shape: tuple[int, int]) -> None:
    """M ← 0.9 M + the dense gradient of one step, (out, in): momentum of absent weights, too."""
    gradient = capture.gradient_rows(0, shape[0])
    known = memory.get("momentum")
    memory["momentum"] = gradient if known is None else known.to(gradient).mul(MOMENTUM).add_(gradient)


@grow_rule("momentum", needs_capture=True, dense_gradient=True, observe=gather)
def most_momentum(view: LayerView, count: int) -> Tensor:
    """Grow where the momentum of absent weights is largest in size."""
    momentum = _momentum(view).abs()[view.allowed_outputs]
    return view.strongest(count, lambda start, stop: momentum[start:stop])


@redistribution("momentum")
def by_momentum(views: Mapping[str, LayerView]) -> dict[str, float]:
    """In proportion to the mean |momentum| of the connections that a layer has left."""
    means = {}
    for name, view in views.items():
        sizes = _momentum(view).abs().flatten()[view.remaining]
        means[name] = float(sizes.mean()) if sizes.numel() else 0.0
    return means


def _momentum(view: LayerView) -> Tensor:
    if "momentum" not in view.memory:
        raise RuntimeError(
            "the momentum of absent weights was never gathered: take `grow='momentum'`, and run the model forward and "
            "backward before every step"
        )
    return view.memory["momentum"].cpu()


PRESETS.add(
    "snfs",
    Preset(
        "drop the weakest, grow by momentum in the layers that have most of it (SNFS, arXiv:1907.04840)",
        drop="magnitude", grow="momentum", drop_fraction=0.5, schedule="cosine", distribution="uniform",
        redistribute="momentum", regrow="fresh", dense_by_nature="keeps a dense momentum of absent weights",
    ),
)  # fmt: skip
