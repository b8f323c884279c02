"""GSE: gradients of a random sample of candidates, never of all (arXiv:2401.06898)."""

from __future__ import annotations

from torch import Tensor

from sparse_core.draws import whole
from sparse_core.grow import grow_rule
from sparse_core.presets import PRESETS, Preset
from sparse_core.view import LayerView


@grow_rule("sampled-gradient", needs_capture=True)
def steepest_of_a_sample(view: LayerView, count: int, *, candidates: float = 1.0) -> Tensor:
    """Grow the largest |gradient| among `candidates` · n vacant positions drawn at random, n the layer's connections.

    O(B · candidates · n), with nothing dense; there are at least `count` candidates.
    """
    if not count:
        return view.positions[:0]
    size = min(max(whole(candidates * view.count), count), view.vacant_count)
    sample = view.sample_vacant(size)
    return view.strongest_of(count, sample, view.seen.gradient_at(sample, view.shape[1]).abs())


PRESETS.add(
    "gse",
    Preset(
        "drop the weakest, grow the largest gradients of a random sample (GSE, arXiv:2401.06898)",
        drop="magnitude", grow="sampled-gradient", drop_fraction=0.3, schedule="cosine", stop=0.75, regrow="kept",
    ),
)  # fmt: skip
