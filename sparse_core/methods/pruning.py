"""Dense at the start, pruned along the way: GMP, LAMP, AC/DC, SNIP and GraSP."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparse_core.drop import drop_rule, least_of_all
from sparse_core.presets import PRESETS, Preset
from sparse_core.view import LayerView

_FROM_DENSE = "begins with every connection"


@drop_rule("lamp", network=True)
def lowest_lamp(views: Mapping[str, LayerView], count: int) -> dict[str, Tensor]:
    """Drop the lowest w² / Σ v², over those of the layer that are at least as strong (LAMP, arXiv:2010.07611)."""
    return least_of_all(views, count, {name: lamp_scores(view.values) for name, view in views.items()})


def lamp_scores(values: Tensor) -> Tensor:
    """LAMP scores (n,) of one layer's weights: the strongest has 1."""
    squares = values.double().square()
    ascending, order = squares.sort(stable=True)
    rest = ascending.flip(0).cumsum(0).flip(0)
    return torch.empty_like(squares).index_copy_(0, order, ascending / rest.clamp(min=torch.finfo(torch.float64).tiny))


@drop_rule("sensitivity", network=True, needs_capture=True)
def least_sensitive(views: Mapping[str, LayerView], count: int) -> dict[str, Tensor]:
    """Drop the smallest |w · gradient| of the whole network over the captured batches (SNIP, arXiv:1810.02340)."""
    scores = {name: (view.values * view.own_gradients().to(view.values)).abs() for name, view in views.items()}
    return least_of_all(views, count, scores)


@drop_rule("gradient-flow", network=True, needs_closure=True)
def least_for_gradient_flow(views: Mapping[str, LayerView], count: int) -> dict[str, Tensor]:
    """Drop the smallest θ ⊙ Hg of the network: without those the gradient is largest (GraSP, arXiv:2002.07376)."""
    shares: dict[str, Tensor] = {}
    for name, view in views.items():
        if view.flow_shares is None:
            raise RuntimeError("this rule needs a closure; let a `Sparsifier` run it and give `step` one")
        shares[name] = view.flow_shares
    return least_of_all(views, count, shares)


PRESETS.add(
    "gmp",
    Preset(
        "from dense, prune the weakest of each layer along a cube (Zhu & Gupta 2017, arXiv:1710.01878)",
        prune="magnitude", course="cubic", begin=0.0, stop=0.75, dense_by_nature=_FROM_DENSE,
    ),
)  # fmt: skip
PRESETS.add(
    "lamp",
    Preset(
        "from dense, prune by layer-adaptive magnitude along a cube (LAMP: Lee et al. 2021, arXiv:2010.07611)",
        prune="lamp", course="cubic", begin=0.0, stop=0.75, dense_by_nature=_FROM_DENSE,
    ),
)  # fmt: skip
PRESETS.add(
    "acdc",
    Preset(
        "dense and sparse phases in turn, sparse at the end (AC/DC: Peste et al. 2021, arXiv:2106.12379)",
        prune="global-magnitude", course="phases", begin=0.0, dense_by_nature="is dense in every second phase",
    ),
)  # fmt: skip
PRESETS.add(
    "snip",
    Preset(
        "from dense, prune once by |weight · gradient|, at the first change (SNIP: Lee et al. 2019, arXiv:1810.02340)",
        prune="sensitivity", course="at-once", begin=0.0, once=True,
        dense_by_nature="is dense until its only change",
    ),
)  # fmt: skip
PRESETS.add(
    "grasp",
    Preset(
        "from dense, prune once what the gradient's norm owes least to (GraSP: Wang et al. 2020, arXiv:2002.07376)",
        prune="gradient-flow", course="at-once", begin=0.0, once=True,
        dense_by_nature="is dense until its only change",
    ),
)  # fmt: skip
