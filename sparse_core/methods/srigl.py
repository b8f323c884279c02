"""SRigL: constant fan-in, and neurons that are given up (Lasby et al., ICLR 2024, arXiv:2305.02299)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_core.draws import among, largest
from sparse_core.drop import drop_rule
from sparse_core.presets import PRESETS, Preset
from sparse_core.signals import row_blocks
from sparse_core.view import LayerView


@drop_rule("constant-fan-in", needs_capture=True, plans=True)
def constant_fan_in(view: LayerView, count: int, *, ablate_below: float = 0.3) -> tuple[Tensor, Tensor]:
    """Keep the strongest, and give every neuron the same number of connections, by gradient; poor neurons are given up.

    Salient are the layer's strongest n - count connections and the `count` places with the largest |gradient|. A neuron
    with fewer than `ablate_below` · fan-in salient ones loses all its connections; the others share the layer's n out,
    those with most salient ones getting one more, as far as they have room. Of each neuron's own kept connections the
    strongest stay, and the places with the largest |gradient| come, until it has its share. Connections where none may
    grow stay and do not count.
    """
    width, neurons, every = view.shape[1], view.allowed_outputs, view.shape[0]
    rows = view.positions // width
    ours = among(rows, neurons) & among(view.positions % width, view.allowed_inputs)
    total = int(ours.sum())
    if not total:
        return view.positions[:0], view.positions[:0]
    sizes = view.values.abs().masked_fill(~ours, torch.inf)
    kept = torch.ones(view.count, dtype=torch.bool)
    kept[view.least(sizes, min(count, total))] = False
    kept |= ~ours
    gone = (~kept).nonzero().squeeze(1)
    steepest = view.freed(gone).strongest_gradients(gone.numel())
    salient = _by_row(rows[kept & ours], every) + _by_row(steepest // width, every)
    active = neurons[_by_row(rows[ours], every)[neurons] + salient[neurons] > 0]
    good = neurons[salient[neurons] >= max(ablate_below * total / active.numel(), 1)]
    if not good.numel():
        good = neurons[largest(salient[neurons], 1)]
    theirs = view.blocked[~among(view.blocked, view.positions)]
    room = _room(view, theirs)
    good = _with_room(room, total, good, neurons, salient)
    share = torch.zeros(every, dtype=torch.int64)
    share[good] = _shares(total, salient[good], room[good])
    stay = ~ours | (kept & (_rank_in_row(rows, sizes.masked_fill(~ours, -1)) < share[rows]))
    missing = share - _by_row(rows[stay & ours], every)
    grown = _steepest_by_row(view, good, missing, torch.cat([view.positions[stay], theirs]))
    return _settled(view, (~stay).nonzero().squeeze(1), grown)


def _by_row(rows: Tensor, every: int) -> Tensor:
    """How often each row is among `rows`."""
    return torch.bincount(rows, minlength=every)


def _room(view: LayerView, theirs: Tensor) -> Tensor:
    """Places of each row where this layer's own connections may be; `theirs` are taken for good."""
    width = view.shape[1]
    inside = theirs[among(theirs % width, view.allowed_inputs)]
    return len(view.allowed_inputs) - _by_row(inside // width, view.shape[0])


def _rank_in_row(rows: Tensor, sizes: Tensor) -> Tensor:
    """Place of each connection (0, 1, …) among those of its row, the largest first; equal ones by index."""
    order = sizes.sort(descending=True, stable=True).indices
    order = order[rows[order].sort(stable=True).indices]
    first = torch.searchsorted(rows[order], rows[order])
    return torch.empty_like(order).index_copy_(0, order, torch.arange(order.numel()) - first)


def _with_room(room: Tensor, total: int, good: Tensor, neurons: Tensor, salient: Tensor) -> Tensor:
    """`good`, and as many of the best others as the layer's connections need to find a place."""
    while int(room[good].sum()) < total and good.numel() < neurons.numel():
        others = neurons[~among(neurons, good)]
        good = torch.cat([good, others[largest(salient[others], 1)]]).sort().values
    return good


def _shares(total: int, salient: Tensor, room: Tensor) -> Tensor:
    """`total` in equal parts; the odd ones go to the neurons with most salient connections, what does not fit on."""
    share = torch.zeros_like(room)
    while (left := total - int(share.sum())) > 0:
        open_ = (share < room).nonzero().squeeze(1)
        each, odd = divmod(left, open_.numel())
        share[open_] += each
        share[open_[largest(salient[open_], odd)]] += 1
        share = torch.minimum(share, room)
    return share


def _steepest_by_row(view: LayerView, good: Tensor, missing: Tensor, shut: Tensor) -> Tensor:
    """Positions with the largest |gradient|, `missing` of each row, besides those that are `shut`."""
    width = view.shape[1]
    # One place for all that is found: small pieces kept between large temporaries would pin the heap.
    found, count = torch.empty(int(missing[good].sum()), dtype=torch.int64), 0
    shut = shut.sort().values
    barred = torch.ones(width, dtype=torch.bool)
    barred[view.allowed_inputs] = False
    shown = view.seen.of_outputs(good)
    for start, stop in row_blocks((good.numel(), width)):
        rows = good[start:stop]
        if not missing[rows].any():
            continue
        scores = shown.gradient_rows(start, stop).abs().cpu()
        inside = shut[torch.isin(shut // width, rows)]
        scores[torch.searchsorted(rows, inside // width), inside % width] = -torch.inf
        scores[:, barred] = -torch.inf
        row, column = _largest_of_rows(scores, missing[rows])
        found[count : count + row.numel()] = rows[row] * width + column
        count += row.numel()
    return found.sort().values


def _largest_of_rows(scores: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the `wanted` (one number a row) largest scores of each row; of equal ones the first."""
    best = scores.topk(int(wanted.max()), dim=1).values
    last = best.gather(1, (wanted - 1).clamp(min=0)[:, None])
    above = (scores > last) & (wanted > 0)[:, None]
    row, column = (scores == last).nonzero(as_tuple=True)
    place = torch.arange(row.numel()) - torch.searchsorted(row, row)
    ties = place < (wanted - above.sum(1))[row]
    more_rows, more_columns = above.nonzero(as_tuple=True)
    return torch.cat([more_rows, row[ties]]), torch.cat([more_columns, column[ties]])


def _settled(view: LayerView, dropped: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
    """The same change without what goes and comes in one: it stays as it is."""
    both = among(grown, view.positions[dropped].sort().values)
    back = torch.isin(view.positions[dropped], grown[both])
    return dropped[~back], grown[~both]


PRESETS.add(
    "srigl",
    Preset(
        "as rigl, every neuron with the same number of connections, poor neurons given up (SRigL, arXiv:2305.02299)",
        drop="constant-fan-in", drop_fraction=0.3, schedule="cosine", stop=0.75,
    ),
)  # fmt: skip
