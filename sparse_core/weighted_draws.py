"""Draws without replacement by odds, the same odds in every row: a race whose first arrivals are drawn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparse_core.draws import distinct_in_rows
from sparse_core.signals import row_blocks

Pairs = tuple[Tensor, Tensor]
"""Row and place of each that is drawn, int64."""


def first_drawn(log_odds: Tensor, counts: Tensor, generator: torch.Generator) -> Pairs:
    """In every row `counts[r]` distinct places, one after the other with odds among those that are left.

    Who arrives at rate odds and comes first has just these odds of being drawn next. Where few places are drawn, only
    arrivals up to a moment are looked at, by which nearly every row has enough: O(Σ counts + places) time and memory.

    Args:
        log_odds: of each place (places,), up to a constant; the largest is 0.
        counts: how many in each row (rows,), int64.
        generator: draws them.
    """
    places, most = len(log_odds), int(counts.max())
    wanted = most + 5 * math.sqrt(most) + 10
    if 4 * wanted > places:
        return _raced(log_odds, counts, generator)
    rates = log_odds.double().exp()
    moment = _moment(rates, wanted)
    inside = -torch.expm1(-rates * moment)  # the odds that a place has arrived by then
    number = torch.binomial(torch.full_like(inside, len(counts)), inside, generator=generator).long()
    place, row = distinct_in_rows(number, torch.full_like(number, len(counts)), generator)
    uniform = torch.rand(len(row), generator=generator, dtype=torch.float64)
    order = (-torch.log1p(-uniform * inside[place]) / rates[place]).argsort()
    order = order[row[order].argsort(stable=True)]
    row, place = row[order], place[order]
    early = torch.arange(len(row)) - torch.searchsorted(row, row) < counts[row]
    row, place = row[early], place[early]
    # Those that are still missing arrive later, at the same rates: nothing is known of them yet.
    short = (torch.bincount(row, minlength=len(counts)) < counts).nonzero().squeeze(1)
    if len(short):
        of_short = torch.isin(row, short)
        arrived = torch.searchsorted(short, row[of_short]), place[of_short]
        late = _raced(log_odds, counts[short], generator, arrived)
        row, place = torch.cat([row[~of_short], short[late[0]]]), torch.cat([place[~of_short], late[1]])
    return row, place


def _moment(rates: Tensor, wanted: float) -> float:
    """By when so many have arrived in the mean, or the last that can be told."""
    low, high = -50.0, 700.0  # logarithms
    for _ in range(60):
        middle = (low + high) / 2
        if float(-torch.expm1(-rates * math.exp(middle)).sum()) < wanted:
            low = middle
        else:
            high = middle
    return math.exp(high)


def _raced(log_odds: Tensor, counts: Tensor, generator: torch.Generator, arrived: Pairs | None = None) -> Pairs:
    """The same with every arrival drawn, a block of rows at a time; `arrived` have come before all others."""
    most, rows, places = int(counts.max()), [], []
    for start, stop in row_blocks((len(counts), len(log_odds))):
        times = torch.empty(stop - start, len(log_odds)).exponential_(generator=generator).log_() - log_odds.float()
        if arrived is not None:
            here = (arrived[0] >= start) & (arrived[0] < stop)
            times[arrived[0][here] - start, arrived[1][here]] = -torch.inf
        first = times.topk(most, largest=False, sorted=True).indices
        chosen = torch.arange(most) < counts[start:stop, None]
        rows.append(torch.arange(start, stop).repeat_interleave(counts[start:stop]))
        places.append(first[chosen])
    return torch.cat(rows), torch.cat(places)
