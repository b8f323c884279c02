"""CTRE: connections between neurons that answer alike (Atashgahi et al. 2022, arXiv:1903.07138)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_core.draws import among
from sparse_core.grow import grow_rule
from sparse_core.presets import PRESETS, Preset
from sparse_core.view import LayerView


@grow_rule("cosine", needs_capture=True, dense_gradient=True)
def most_alike(view: LayerView, count: int, *, random_after: float = 1.0) -> Tensor:
    """Grow where |cosine| of a neuron's and an input's activations over the captured batches is largest, streamed.

    Once `random_after` of the way is covered, or `Sparsifier.reached_plateau` was called, growth is random.
    """
    if _is_over(view, random_after):
        return view.sample_vacant(count)
    return _most_alike(view, count)


@grow_rule("cosine-or-random", needs_capture=True, dense_gradient=True)
def most_alike_but_what_just_went(view: LayerView, count: int, *, random_after: float = 1.0) -> Tensor:
    """As `cosine`, but a random position in the place of each that this change has just dropped (CTRE-sim)."""
    if _is_over(view, random_after):
        return view.sample_vacant(count)
    return random_for_dropped(view, _most_alike(view, count))


def random_for_dropped(view: LayerView, chosen: Tensor) -> Tensor:
    """The same positions, with random others, as far as there are any, for those that this change has just dropped."""
    if view.dropped is None:
        return chosen
    again = among(chosen, view.dropped)
    kept, back = chosen[~again], chosen[again]
    besides = torch.cat([kept, view.dropped[view.is_vacant(view.dropped)]]).sort().values
    room = view.vacant_count - besides.numel()
    new = view.sample_vacant(min(back.numel(), room), besides)
    return torch.cat([kept, new, back[: back.numel() - new.numel()]]).sort().values


def _is_over(view: LayerView, random_after: float) -> bool:
    return "plateau" in view.memory or (random_after < 1 and view.progress >= random_after)


def _most_alike(view: LayerView, count: int) -> Tensor:
    """Positions with the largest |cosine|: inputs and activations, each of length 1 over all samples, multiplied."""
    assert view.activity is not None
    pairs = [(inputs, view.activity(inputs)) for inputs, _ in view.seen.pairs]
    capture = view.seen.with_pairs(pairs)
    # The sum of x² over samples is a gradient, too: that of inputs squared and an output that is one everywhere.
    squares = view.seen.with_pairs([(inputs.square(), torch.ones_like(answers[:, :1])) for inputs, answers in pairs])
    lengths = squares.gradient_rows(0, 1).clamp_(min=1e-24).sqrt_()
    total = torch.stack([answers.transpose(0, 1).flatten(1).square().sum(1) for _, answers in pairs]).sum(0)
    sizes = total.clamp_(min=1e-24).sqrt_()[view.allowed_outputs.to(total.device)]
    shown = view.of_allowed(capture)

    def cosines(start: int, stop: int) -> Tensor:
        return shown.gradient_rows(start, stop).abs().div_(sizes[start:stop, None]).div_(lengths)

    return view.strongest(count, cosines)


for _name, _grow, _how in (
    ("ctre-seq", "cosine", "after a plateau at random"),
    ("ctre-sim", "cosine-or-random", "at random for what just went"),
):
    PRESETS.add(
        _name,
        Preset(
            f"drop the weakest, grow between neurons that answer alike, {_how} (CTRE, arXiv:1903.07138)",
            drop="magnitude", grow=_grow, drop_fraction=0.2, distribution="er", regrow="fresh",
        ),
    )  # fmt: skip
