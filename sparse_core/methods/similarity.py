"""Growth by similarity search between inputs and output gradients (Palaj 2023, a thesis at Comenius University)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_core.draws import largest
from sparse_core.grow import grow_rule
from sparse_core.presets import PRESETS, Preset
from sparse_core.signals import row_blocks
from sparse_core.view import LayerView

METRICS, SEARCHES = ("abs", "ip", "l2"), ("exact", "faiss")


@grow_rule("similarity", needs_capture=True, dense_gradient=True)
def most_similar(
    view: LayerView,
    count: int,
    *,
    metric: str = "abs",
    search: str = "exact",
    k_similar: float = 0.15,
    lsh_bits: int = 0,
) -> Tensor:
    """Grow where an input, as a vector over the captured samples, is most similar to an output's gradients.

    The inner product of both is the dense gradient, so `abs` with an exact search is RigL's growth. Metrics: `abs`
    (|inner product|), `ip` (inner product, largest positive first), `l2` (distance, smallest first).

    Args:
        view: the layer.
        count: how many.
        metric: see above.
        search: `exact` streams all pairs; `faiss` looks up each output's `k_similar` · inputs nearest in an index of
            the inputs (faiss-cpu), and fills up at random where those are not enough.
        k_similar: share of the inputs that are looked up for each output.
        lsh_bits: hash inputs to so many bits (faiss's LSH) instead of comparing them; 0 compares.

    Raises:
        ValueError: for a metric or a search that is not known, or a temperature, which needs scores of one sign.
        ImportError: where `faiss` is asked for and not installed.
    """
    if metric not in METRICS or search not in SEARCHES:
        raise ValueError(
            f"`metric` must be one of {', '.join(METRICS)} and `search` one of {', '.join(SEARCHES)}, "
            f"got {metric!r} and {search!r}"
        )
    if view.choosing.temperature is not None and metric != "abs":
        raise ValueError(f"a `grow_temperature` needs scores of one sign; take `metric=abs`, got {metric!r}")
    if search == "faiss":
        return _looked_up(view, count, metric, k_similar, lsh_bits)
    shown = view.of_allowed(view.seen)
    if metric == "abs":
        return view.strongest_gradients(count)
    if metric == "ip":
        return view.strongest(count, shown.gradient_rows)
    inputs, outputs = _squares(view)
    outputs = outputs[view.allowed_outputs]

    def closeness(start: int, stop: int) -> Tensor:
        products = shown.gradient_rows(start, stop)
        return 2 * products - inputs.to(products) - outputs[start:stop, None].to(products)

    return view.strongest(count, closeness)


def _squares(view: LayerView) -> tuple[Tensor, Tensor]:
    """Squared lengths of inputs (in,) and of output gradients (out,) as vectors over the captured samples."""
    pairs = view.seen.pairs
    ones = [(inputs.square(), torch.ones_like(given[:, :1])) for inputs, given in pairs]
    inputs = view.seen.with_pairs(ones).gradient_rows(0, 1)[0]
    outputs = torch.stack([given.transpose(0, 1).flatten(1).square().sum(1) for _, given in pairs]).sum(0)
    return inputs, outputs


def _looked_up(view: LayerView, count: int, metric: str, k_similar: float, lsh_bits: int) -> Tensor:
    """Positions with the best scores among each output's nearest inputs; the best so far are kept, block by block."""
    pairs = view.seen.pairs
    if any(inputs.dim() > 2 for inputs, _ in pairs):
        raise ValueError("a faiss search needs linear layers: a convolution's inputs are patches; take `search=exact`")
    inputs, given = (torch.cat([pair[side] for pair in pairs]).T.float().contiguous().cpu() for side in (0, 1))
    index = _index(inputs, metric, lsh_bits)
    asked = min(max(1, round(k_similar * inputs.shape[0])), inputs.shape[0])
    best, scores = torch.empty(0, dtype=torch.int64), torch.empty(0)
    outputs = view.allowed_outputs
    for start, stop in row_blocks((outputs.numel(), 2 * asked)):
        rows = outputs[start:stop]
        found = _nearest(index, given[rows], asked, both_signs=metric == "abs")
        positions = (rows[:, None] * view.shape[1] + found).flatten()[found.flatten() >= 0].unique()
        positions = positions[view.is_vacant(positions)]
        best = torch.cat([best, positions])
        scores = torch.cat([scores, _scores(inputs, given, positions, metric)])
        top = largest(scores, min(count, scores.numel()))
        best, scores = best[top], scores[top]
    return view.strongest_of(count, best, scores)


def _index(inputs: Tensor, metric: str, lsh_bits: int) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "a faiss search needs faiss-cpu; `pip install sparse-agents[faiss]`, or `search=exact`"
        ) from error
    features = inputs.shape[1]
    index: Any
    if lsh_bits:
        index = faiss.IndexLSH(features, lsh_bits)
    else:
        index = faiss.IndexFlatL2(features) if metric == "l2" else faiss.IndexFlatIP(features)
    index.add(inputs.numpy())
    return index


def _nearest(index: Any, queries: Tensor, count: int, both_signs: bool) -> Tensor:
    """Indices (queries, count or twice as many) of what is nearest; -1 where the index found fewer."""
    asked = [queries, -queries] if both_signs else [queries]
    return torch.cat([torch.from_numpy(index.search(each.contiguous().numpy(), count)[1]) for each in asked], dim=1)


def _scores(inputs: Tensor, given: Tensor, positions: Tensor, metric: str) -> Tensor:
    x, delta = inputs[positions % inputs.shape[0]], given[positions // inputs.shape[0]]
    if metric == "l2":
        return -(x - delta).square().sum(1)
    products = (x * delta).sum(1)
    return products.abs() if metric == "abs" else products


PRESETS.add(
    "similarity",
    Preset(
        "drop the weakest, grow the most similar pairs of inputs and output gradients (Palaj 2023, a thesis)",
        drop="magnitude", grow="similarity", drop_fraction=0.05, regrow="kept",
    ),
)  # fmt: skip
