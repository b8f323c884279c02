import copy
import dataclasses
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparse_core import Rewiring, Topology

masks = st.tuples(st.integers(1, 7), st.integers(1, 7), st.floats(0, 1), st.integers(0, 2**32))


def random_mask(rows: int, columns: int, density: float, seed: int) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density


def test_worked_example() -> None:
    #                     0  1  2  3   flat
    mask = torch.tensor([[0, 1, 0, 1],  # 1, 3
                         [0, 0, 0, 0],  #
                         [1, 1, 0, 0]])  # 8, 9   # fmt: skip
    topology = Topology.from_mask(mask)
    assert topology.shape == (3, 4)
    assert topology.nnz == 4
    assert topology.density == 4 / 12
    assert topology.positions.tolist() == [1, 3, 8, 9]
    assert topology.rows.tolist() == [0, 0, 2, 2]
    assert topology.columns.tolist() == [1, 3, 0, 1]
    assert topology.columns.dtype == torch.int32
    assert topology.row_pointer.tolist() == [0, 2, 2, 4]
    assert topology.fan_in.tolist() == [2, 0, 2]
    assert topology.fan_out.tolist() == [1, 2, 0, 1]
    # By input: input 0 feeds output 2; input 1 outputs 0 and 2; input 3 output 0.
    assert topology.transpose.permutation.tolist() == [2, 0, 3, 1]
    assert topology.transpose.row_pointer.tolist() == [0, 1, 3, 3, 4]
    assert topology.transpose.columns.tolist() == [2, 0, 2, 0]


@given(masks)
def test_mask_round_trip_and_transpose(case: tuple[int, int, float, int]) -> None:
    mask = random_mask(*case)
    topology = Topology.from_mask(mask)
    assert torch.equal(topology.to_mask(), mask)
    assert torch.equal(topology.fan_in, mask.sum(1))
    assert torch.equal(topology.fan_out, mask.sum(0))
    mirrored = Topology.from_mask(mask.T)
    assert torch.equal(topology.transpose.row_pointer, mirrored.row_pointer)
    assert torch.equal(topology.transpose.columns, mirrored.columns)
    assert torch.equal(topology.columns[topology.transpose.permutation], mirrored.rows)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_random_has_the_exact_count_and_follows_its_generator(rows: int, columns: int, share: float, seed: int) -> None:
    nnz = round(share * rows * columns)
    first, second = (Topology.random((rows, columns), nnz, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert first.nnz == nnz
    assert first == second


def test_random_builds_no_dense_array() -> None:
    # A mask of this layer would take 1 TiB; its indices take 8 MiB of row pointers and 40 kB of columns.
    topology = Topology.random((2**20, 2**20), 10_000, torch.Generator().manual_seed(0))
    assert topology.nnz == 10_000
    assert topology.positions.unique().numel() == 10_000
    # 10,000 uniform columns: a mean off the middle by more than 1 % of the range is 3.5 standard errors.
    assert abs(topology.columns.double().mean() / 2**20 - 0.5) < 0.01
    assert abs(topology.rows.double().mean() / 2**20 - 0.5) < 0.01


def test_full_has_every_connection() -> None:
    assert Topology.full((3, 5)).to_mask().all()


def test_a_topology_is_a_value() -> None:
    topology = Topology.from_positions((2, 3), torch.tensor([0, 4]))
    assert topology == Topology.from_mask(torch.tensor([[1, 0, 0], [0, 1, 0]]))
    assert topology != Topology.from_positions((2, 3), torch.tensor([0, 5]))
    assert topology != Topology.from_positions((3, 2), torch.tensor([0, 4]))
    assert topology != "a topology"
    assert copy.deepcopy(topology) is topology
    assert pickle.loads(pickle.dumps(topology)) == topology
    with pytest.raises(dataclasses.FrozenInstanceError):
        topology.shape = (3, 2)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("shape", "pointer", "columns", "message"),
    [
        ((0, 3), [0], [], "at least one output and one input, got shape (0, 3)"),
        ((2, 3), [0, 1], [0], "does not describe 1 connections in 2 rows"),
        ((2, 3), [1, 1, 1], [0], "`row_pointer`"),
        ((2, 3), [0, 1, 2], [0], "`row_pointer`"),
        ((2, 3), [0, 2, 1], [0], "`row_pointer`"),
        ((2, 3), [0, 1, 1], [3], "`columns` must lie in [0, 3)"),
        ((2, 3), [0, 1, 1], [-1], "`columns` must lie in [0, 3)"),
        ((2, 3), [0, 2, 2], [1, 1], "sorted and unique"),
        ((2, 3), [0, 2, 2], [2, 0], "sorted and unique"),
    ],
)
def test_damaged_indices_are_refused(
    shape: tuple[int, int], pointer: list[int], columns: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Topology(shape, torch.tensor(pointer), torch.tensor(columns, dtype=torch.int32))


@pytest.mark.parametrize("positions", [[-1, 2], [2, 8]])
def test_positions_outside_the_layer_are_refused(positions: list[int]) -> None:
    with pytest.raises(ValueError, match=re.escape("positions must lie in [0, 8) for shape (2, 4)")):
        Topology.from_positions((2, 4), torch.tensor(positions))


@pytest.mark.parametrize("positions", [[5, 2], [3, 3]])
def test_positions_out_of_order_are_refused(positions: list[int]) -> None:
    with pytest.raises(ValueError, match="ascending and unique"):
        Topology.from_positions((2, 4), torch.tensor(positions))


# Rewiring: positions 1 3 5 8 of a 3×4 layer; drop indices 1 and 2 (positions 3 and 5), grow 0 and 9.
BEFORE = torch.tensor([1, 3, 5, 8])


def test_rewiring_worked_example() -> None:
    change = Rewiring.of((3, 4), BEFORE, drop=torch.tensor([1, 2]), grow=torch.tensor([0, 9]))
    assert change.after.tolist() == [0, 1, 8, 9]
    assert change.source.tolist() == [-1, 0, 3, -1]
    assert change.dropped.tolist() == [3, 5]
    assert change.grown.tolist() == [0, 9]
    assert change.carry(torch.tensor([0.1, 0.2, 0.3, 0.4])).tolist() == pytest.approx([0, 0.1, 0.4, 0])
    assert change.carry(torch.tensor([7, 8, 9, 10]), fill=-1).tolist() == [-1, 7, 10, -1]
    assert change.carry(torch.arange(8).view(4, 2)).tolist() == [[0, 0], [0, 1], [6, 7], [0, 0]]


def test_regrown_connections() -> None:
    # Position 3 is dropped and grown in one change, 9 is new.
    drop, grow = torch.tensor([1, 2]), torch.tensor([3, 9])
    with pytest.raises(ValueError, match="dropped and grown in one change; allow it with `regrow`"):
        Rewiring.of((3, 4), BEFORE, drop, grow)

    kept = Rewiring.of((3, 4), BEFORE, drop, grow, regrow="kept")
    assert kept.after.tolist() == [1, 3, 8, 9]
    assert kept.source.tolist() == [0, 1, 3, -1]  # as if 3 had never been dropped
    assert (kept.dropped.tolist(), kept.grown.tolist()) == ([5], [9])

    fresh = Rewiring.of((3, 4), BEFORE, drop, grow, regrow="fresh")
    assert fresh.after.tolist() == [1, 3, 8, 9]
    assert fresh.source.tolist() == [0, -1, 3, -1]  # 3 is back, without its value
    assert (fresh.dropped.tolist(), fresh.grown.tolist()) == ([3, 5], [3, 9])


def test_a_layer_without_connections_can_grow() -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    change = Rewiring.of((2, 2), nothing, drop=nothing, grow=torch.tensor([1, 2]))
    assert change.carry(torch.empty(0), fill=0.5).tolist() == [0.5, 0.5]


@given(masks, st.integers(0, 2**32), st.sampled_from(["no", "fresh"]))
def test_carry_moves_data_as_a_dense_array_would(case: tuple[int, int, float, int], seed: int, regrow: str) -> None:
    mask = random_mask(*case)
    generator = torch.Generator().manual_seed(seed)
    before = Topology.from_mask(mask).positions
    drop = (torch.rand(before.numel(), generator=generator) < 0.5).nonzero().squeeze(1)
    free = ~mask.flatten()
    if regrow == "fresh":
        free[before[drop]] = True
    grow = (free & (torch.rand(free.shape, generator=generator) < 0.3)).nonzero().squeeze(1)
    change = Rewiring.of(tuple(mask.shape), before, drop, grow, regrow)

    data = torch.rand(before.numel(), generator=generator)
    dense = torch.full((mask.numel(),), torch.nan)
    dense[before] = data
    dense[before[drop]] = torch.nan
    dense[grow] = -1.0
    expected = dense.isnan().logical_not().nonzero().squeeze(1)
    assert torch.equal(change.after, expected)
    assert torch.equal(change.carry(data, fill=-1.0), dense[expected])
