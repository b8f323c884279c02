"""Random draws: every one names its generator, and generators of topology live on the CPU."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor


def generators(seed: int | None, *names: str) -> dict[str, torch.Generator]:
    """One independent CPU generator per name; another name in the list moves none of the others.

    Without a seed, one is drawn from torch's global generator.
    """
    if seed is None:
        seed = int(torch.randint(2**63 - 1, ()))
    streams = {}
    for name in names:
        sequence = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()),))
        streams[name] = torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
    return streams


def whole(amount: float) -> int:
    """Rounded down; what lies below a whole number by no more than a rounding error is that number."""
    return int(amount + 1e-9)


def sample_distinct(population: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` distinct integers of 0 … population-1, uniform over all such sets, ascending (int64).

    Time and memory are O(count): collisions are redrawn, and more than half of a population is
    drawn as the complement of the rest.
    """
    if not 0 <= count <= population:
        raise ValueError(f"`count` must be in [0, {population}] to draw distinct integers, got {count}")
    if 2 * count > population:
        kept = torch.ones(population, dtype=torch.bool)
        kept[sample_distinct(population, population - count, generator)] = False
        return kept.nonzero().squeeze(1)
    drawn = np.empty(0, np.int64)  # NumPy's own sorts take a third of the time of torch's `unique`
    while drawn.size < count:
        more = torch.randint(population, (count - drawn.size,), generator=generator).numpy()
        more.sort()
        both = np.concatenate([drawn, more])
        both.sort(kind="stable")  # merges what is in order already
        first = np.ones(both.size, bool)
        np.not_equal(both[1:], both[:-1], out=first[1:])
        drawn = both[first]
    return torch.from_numpy(drawn)


def distinct_in_rows(counts: Tensor, populations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For every row r, `counts[r]` distinct integers of 0 … populations[r]-1, uniform over all such sets.

    Args:
        counts: how many of each row (rows,), int64.
        populations: out of how many (rows,), int64.
        generator: draws them; time and memory are O(Σ counts), as in `sample_distinct`.

    Returns:
        The row and the integer of each, (Σ counts,) int64, ordered by row, then by integer.
    """
    rows, width = torch.arange(len(counts)), max(1, int(populations.max()))
    absent = 2 * counts > populations  # draws those that are left out
    wanted = torch.where(absent, populations - counts, counts)
    drawn = torch.empty(0, dtype=torch.int64)
    while bool((missing := wanted - torch.bincount(drawn // width, minlength=len(counts))).any()):
        row = rows.repeat_interleave(missing)
        places = (torch.rand(len(row), generator=generator, dtype=torch.float64) * populations[row]).long()
        more = (row * width + places).unique()
        drawn = torch.cat([drawn, more[~among(more, drawn)]]).sort().values
    row = rows[absent].repeat_interleave(populations[absent])
    begun = (populations[absent].cumsum(0) - populations[absent]).repeat_interleave(populations[absent])
    others = row * width + torch.arange(len(row)) - begun
    kept = torch.cat([drawn[~absent[drawn // width]], others[~among(others, drawn)]]).sort().values
    return kept // width, kept % width


def among(wanted: Tensor, ascending: Tensor) -> Tensor:
    """Which of `wanted` are in `ascending`: as `torch.isin`, several times faster since one side is sorted."""
    if not ascending.numel():
        return torch.zeros_like(wanted, dtype=torch.bool)
    return ascending[torch.searchsorted(ascending, wanted).clamp_(max=ascending.numel() - 1)] == wanted


def sample_outside(population: int, count: int, taken: Tensor, generator: torch.Generator) -> Tensor:
    """`count` distinct integers of 0 … population-1 that are not in `taken` (sorted, unique), ascending.

    The r-th free integer is r + the number of taken ones below it, found by bisection: O(count log taken).
    """
    ranks = sample_distinct(population - taken.numel(), count, generator)
    gaps = taken - torch.arange(taken.numel())
    return ranks + torch.searchsorted(gaps, ranks, right=True)


def largest(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores, ascending; equal scores are taken from the lowest index on."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    threshold = scores.topk(count).values[-1]
    above = (scores > threshold).nonzero().squeeze(1)
    level = (scores == threshold).nonzero().squeeze(1)[: count - above.numel()]
    return torch.cat([above, level]).sort().values
