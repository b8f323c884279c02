"""Where a layer's connections are before training: pure functions (shape, count, generator) -> flat positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_core.draws import among, distinct_in_rows, sample_distinct, sample_outside
from sparse_core.registry import Rules
from sparse_core.topology import Topology
from sparse_core.weighted_draws import first_drawn

Shape = tuple[int, int]
Placing = Callable[..., Tensor]
"""(shape (out, in), count, generator, **options) -> `count` flat positions, int64, ascending."""


class InitialTopology(NamedTuple):
    """How connections are placed at the start."""

    choose: Placing
    reads_inputs: bool = False
    """It wants the data that the network will see, so it cannot be given by its name alone."""


INITIAL_TOPOLOGIES: Rules[InitialTopology] = Rules("initial topology", InitialTopology)
initial_topology = INITIAL_TOPOLOGIES.rule


def placing(initial: str | Placing) -> Placing:
    """The function behind a name with options, tried on a small layer; a `ValueError` for what cannot be."""
    if not isinstance(initial, str):
        return initial
    rule = INITIAL_TOPOLOGIES[initial]
    if rule.reads_inputs:
        raise ValueError(
            f"initial topology {initial!r} reads inputs, which are not known here; give `sparsify` or `SparseMLP` "
            "`initial_topology=Correlated(inputs)`, or take one that reads none, as 'random' or 'brf'"
        )
    rule.choose((3, 4), 5, torch.Generator().manual_seed(0))
    return rule.choose


def draw(initial: str | Placing, shape: Shape, count: int, generator: torch.Generator) -> Topology:
    """A topology of exactly `count` connections; an error where a placing of one's own gives something else."""
    if count == shape[0] * shape[1]:
        return Topology.full(shape)
    positions = placing(initial)(shape, count, generator)
    if positions.shape != (count,):
        raise RuntimeError(
            f"initial topology {initial!r} must return {count} positions, got shape {tuple(positions.shape)}"
        )
    return Topology.from_positions(shape, positions)


@initial_topology("random")
def uniform(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Uniform over all topologies with so many connections."""
    return sample_distinct(shape[0] * shape[1], count, generator)


@initial_topology("constant-fan-in")
def constant_fan_in(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Every output with as many random inputs, but for one where they do not go up (as SRigL, arXiv:2305.02299)."""
    rows, width = shape
    fan_in = torch.full((rows,), count // rows)
    fan_in[sample_distinct(rows, count % rows, generator)] += 1
    row, column = distinct_in_rows(fan_in, torch.full((rows,), width), generator)
    return row * width + column


@initial_topology("small-world")
def small_world(shape: Shape, count: int, generator: torch.Generator, *, beta: float = 0.1) -> Tensor:
    """A bipartite ring lattice, every connection's input drawn anew with probability β (Watts & Strogatz 1998)."""
    _check_share(beta, "beta", "small-world")
    rows, width = shape
    lattice = _lattice(shape, count)
    row = lattice // width
    moves = torch.rand(count, generator=generator) < beta
    fan_in = torch.bincount(row, minlength=rows)
    vacant = width - fan_in
    # A row that is nearly full has no room for all of its moves.
    before = moves.cumsum(0) - moves.long()
    begun = torch.cat([before, before.new_zeros(1)])[fan_in.cumsum(0) - fan_in]
    moves &= before - begun[row] < vacant[row]
    outputs, places = distinct_in_rows(torch.bincount(row[moves], minlength=rows), vacant, generator)
    # The r-th vacant place of a row, counted over all rows, lies behind as many connections as are before it.
    ranks = places + outputs * width - (fan_in.cumsum(0) - fan_in)[outputs]
    gaps = lattice - torch.arange(count)
    return torch.cat([lattice[~moves], ranks + torch.searchsorted(gaps, ranks, right=True)]).sort().values


@initial_topology("brf")
def receptive_fields(shape: Shape, count: int, generator: torch.Generator, *, r: float = 0.3) -> Tensor:
    """Receptive fields: odds (1 + distance)^(-(1-r)/r) on a ring; r = 0 the nearest, 1 random (CHTs, NeurIPS 2025)."""
    _check_share(r, "r", "brf")
    if r == 0:
        return _lattice(shape, count)
    rows, width = shape
    steps = torch.arange(width)
    odds = (1 - r) / r * torch.minimum(steps, width - steps).add(1).double().log()
    row, step = first_drawn(-odds, even_counts(rows, count), generator)
    return (row * width + (_centres(shape)[row] + step) % width).sort().values


@initial_topology("scale-free")
def scale_free(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Preferential attachment: neurons come in turn and connect to others by their degrees (Barabási & Albert 1999)."""
    rows, width = shape
    order = torch.randperm(width + rows, generator=generator)  # inputs first in number, then outputs
    first_input, first_output = (order[side][:1] for side in (order < width, order >= width))
    brought_by = torch.cat([first_input, order.repeat_interleave(even_counts(width + rows, count - 1))])
    # A connection takes the other end of an earlier one: a neuron with k connections comes k times as often.
    ages = torch.arange(count)
    copied = (torch.rand(count, generator=generator, dtype=torch.float64) * ages).long()
    of_input = brought_by < width
    inputs = _end(brought_by, copied, of_input)
    of_output = ~of_input
    of_output[0], brought_by[0] = True, first_output[0]
    outputs = _end(brought_by, copied, of_output) - width
    return _completed(shape, (outputs * width + inputs).unique(), count, generator)


def _end(brought_by: Tensor, copied: Tensor, own: Tensor) -> Tensor:
    """The neuron at one end of every connection: who brought it where the end is its `own`, else that of `copied`."""
    at = torch.where(own, torch.arange(len(copied)), copied)
    while not bool(own[at].all()):
        at = at[at]
    return brought_by[at]


def _completed(shape: Shape, positions: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """As many positions as wanted: further ones between neurons drawn by their degrees, at last uniform ones."""
    width = shape[1]
    while (missing := count - len(positions)) > 0:
        ends = positions[torch.randint(len(positions), (2, missing), generator=generator)]
        more = (ends[0] // width * width + ends[1] % width).unique()
        more = more[~among(more, positions)]
        if 10 * len(more) < missing:  # whoever has many has nearly all
            more = sample_outside(shape[0] * width, missing, positions, generator)
        positions = torch.cat([positions, more]).sort().values
    return positions


def even_counts(parts: int, count: int) -> Tensor:
    """`count` shared out over `parts` (parts,), differing by at most one, the larger ones spread evenly."""
    return (torch.arange(parts + 1) * count // parts).diff()


def _centres(shape: Shape) -> Tensor:
    """The input at which each output stands when both sides go round one ring, (out,)."""
    rows, width = shape
    return ((2 * torch.arange(rows) + 1) * width) // (2 * rows)


def _lattice(shape: Shape, count: int) -> Tensor:
    """Every output with its nearest inputs on the ring, as many each, ascending."""
    rows, width = shape
    fan_in = even_counts(rows, count)
    row = torch.repeat_interleave(torch.arange(rows), fan_in)
    number = torch.arange(count) - (fan_in.cumsum(0) - fan_in)[row]
    column = (_centres(shape)[row] - (fan_in[row] - 1) // 2 + number) % width
    return (row * width + column).sort().values


def _check_share(value: float, option: str, name: str) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"option {option!r} of initial topology {name!r} must be in [0, 1], got {value:g}")
