import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparse_core import (
    DROP_RULES,
    GROW_RULES,
    Constraint,
    LayerView,
    SparseLinear,
    Sparsifier,
    Topology,
    generators,
)
from sparse_core.draws import sample_distinct
from sparse_core.signals import Capture

WORKED = {"magnitude", "signed", "random", "gradient"}

# Eight weights of a 4×4 layer:     0     1    2    3     4    5     6    7
WEIGHTS = torch.tensor([0.5, -0.1, 0.9, 0.0, -0.4, 0.2, -0.8, 0.1])
TAKEN = torch.tensor([0, 1, 5, 6, 8, 11, 13, 14])  # their flat positions
VACANT = [2, 3, 4, 7, 9, 10, 12, 15]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def view(seed: int = 0, capture: Capture | None = None, constraint: Constraint | None = None) -> LayerView:
    return LayerView((4, 4), TAKEN, WEIGHTS, TAKEN, seeded(seed), capture, constraint or Constraint())


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def test_every_rule_has_a_worked_example() -> None:
    assert {*DROP_RULES, *GROW_RULES} == WORKED


@pytest.mark.parametrize(
    ("count", "dropped"),
    [
        (0, []),
        (1, [3]),  # 0.0
        (2, [1, 3]),  # -0.1 and 0.1 are equally weak: the lower index goes
        (3, [1, 3, 7]),
        (5, [1, 3, 4, 5, 7]),  # 0.2, -0.4
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_magnitude_drops_the_weakest(count: int, dropped: list[int]) -> None:
    assert DROP_RULES["magnitude"](view(), count).tolist() == dropped


@pytest.mark.parametrize(
    ("count", "dropped"),
    [
        (0, []),
        (1, [3]),  # 5 of 8 are positive (0.0 among them): 0.6 of one connection, so one positive
        (2, [1, 3]),  # 1.25 and 0.75: one of each sign
        (3, [1, 3, 7]),  # 1.9 and 1.1: positives 0.0 and 0.1, negative -0.1
        (4, [1, 3, 5, 7]),  # 2.5 and 1.5: the half goes to the positives, 0.0, 0.1 and 0.2
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_signed_drops_the_weakest_of_each_sign(count: int, dropped: list[int]) -> None:
    assert DROP_RULES["signed"](view(), count).tolist() == dropped


def test_signed_leaves_the_only_negative_when_few_are_dropped() -> None:
    values = torch.tensor([0.5, 0.6, 0.7, -0.9, 0.8, 0.4, 0.3, 0.2])
    alone = LayerView((4, 4), TAKEN, values, TAKEN, seeded())
    assert DROP_RULES["signed"](alone, 2).tolist() == [6, 7]


def test_random_drops_every_pair_alike() -> None:
    shared = view(3)
    tally = dict.fromkeys(combinations(range(8), 2), 0)
    for _ in range(2800):
        tally[tuple(DROP_RULES["random"](shared, 2).tolist())] += 1
    assert chi_square(list(tally.values())) < 60  # 27 degrees of freedom: the 0.0003 tail


def test_random_grows_every_vacant_position_alike() -> None:
    shared = view(4)
    tally = dict.fromkeys(VACANT, 0)
    for _ in range(1600):
        tally[int(GROW_RULES["random"].choose(shared, 1))] += 1
    assert chi_square(list(tally.values())) < 27  # 7 degrees of freedom: the 0.0003 tail
    assert GROW_RULES["random"].choose(shared, 8).tolist() == VACANT


def test_gradient_grows_where_the_dense_gradient_is_largest() -> None:
    capture = Capture(1)
    capture.add(torch.tensor([[1.0, 2.0, 0.0, -1.0]]), torch.tensor([[1.0, -3.0, 0.0, 2.0]]))
    # Its dense gradient, taken positions in brackets:
    #   [1]  [2]   0   -1        0 …  3
    #   -3  [-6]  [0]   3        4 …  7
    #   [0]   0    0   [0]       8 … 11
    #    2   [4]  [0]  -2       12 … 15
    choose = GROW_RULES["gradient"].choose
    assert choose(view(capture=capture), 2).tolist() == [4, 7]
    assert choose(view(capture=capture), 3).tolist() == [4, 7, 12]  # 2 and -2 tie: the lower position
    # Only outputs 0 and 3 may grow, only from inputs 2 and 3: -1 at 3, -2 at 15, 0 at 2.
    corner = Constraint(outputs=torch.tensor([3, 0]), inputs=torch.tensor([2, 3]))
    assert choose(view(capture=capture, constraint=corner), 2).tolist() == [3, 15]
    assert choose(view(capture=capture, constraint=corner), 3).tolist() == [2, 3, 15]


def random_view(rows: int, columns: int, share: float, seed: int, constrained: bool) -> LayerView:
    generator = seeded(seed)
    topology = Topology.random((rows, columns), round(share * rows * columns), generator)
    movable = topology.positions[torch.rand(topology.nnz, generator=generator) < 0.7]  # the rest is frozen
    capture = Capture(1)
    capture.add(torch.randn(3, columns, generator=generator), torch.randn(3, rows, generator=generator))
    constraint = Constraint()
    if constrained:
        constraint = Constraint(
            sample_distinct(rows, rows // 2, generator), sample_distinct(columns, columns // 2, generator)
        )
    values = torch.randint(-3, 4, (movable.numel(),), generator=generator) / 4  # with ties and zeros
    return LayerView(topology.shape, movable, values, topology.positions, generator, capture, constraint)


views = st.tuples(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**32), st.booleans())


@pytest.mark.parametrize("name", DROP_RULES)
@given(case=views, part=st.floats(0, 1))
def test_drop_rules_choose_exactly_and_repeatably(
    name: str, case: tuple[int, int, float, int, bool], part: float
) -> None:
    layer, twin = random_view(*case), random_view(*case)
    count = round(part * layer.count)
    dropped = DROP_RULES[name](layer, count)
    assert dropped.tolist() == sorted(set(dropped.tolist()))
    assert dropped.numel() == count
    assert all(0 <= index < layer.count for index in dropped.tolist())
    assert torch.equal(dropped, DROP_RULES[name](twin, count))


@pytest.mark.parametrize("name", GROW_RULES)
@given(case=views, part=st.floats(0, 1))
def test_grow_rules_choose_vacant_allowed_positions_exactly_and_repeatably(
    name: str, case: tuple[int, int, float, int, bool], part: float
) -> None:
    layer, twin = random_view(*case), random_view(*case)
    count = round(part * layer.vacant_count)
    grown = GROW_RULES[name].choose(layer, count)
    assert grown.tolist() == sorted(set(grown.tolist()))
    assert grown.numel() == count
    assert not torch.isin(grown, layer.blocked).any()
    for chosen, allowed in ((grown // case[1], layer.constraint.outputs), (grown % case[1], layer.constraint.inputs)):
        assert allowed is None or torch.isin(chosen, allowed).all()
    assert ((grown >= 0) & (grown < case[0] * case[1])).all()
    assert torch.equal(grown, GROW_RULES[name].choose(twin, count))


# A second implementation, on a dense mask in NumPy, of the two methods as released: a dropped connection may
# grow again in the same change and then keeps its value.


def numpy_set(weight: np.ndarray, mask: np.ndarray, count: int, generator: torch.Generator) -> None:
    present = np.flatnonzero(mask)
    values = weight.flat[present]
    of_positive = math.floor(count * (values >= 0).sum() / present.size + 0.5)
    positive = present[values >= 0][np.argsort(values[values >= 0], kind="stable")]
    negative = present[values < 0][np.argsort(-values[values < 0], kind="stable")]
    dropped = np.concatenate([positive[:of_positive], negative[: count - of_positive]])
    mask.flat[dropped] = False
    free = np.flatnonzero(~mask)
    mask.flat[free[sample_distinct(free.size, count, generator).numpy()]] = True
    weight[~mask] = 0


def numpy_rigl(weight: np.ndarray, mask: np.ndarray, count: int, gradient: np.ndarray) -> None:
    present = np.flatnonzero(mask)
    dropped = present[np.argsort(np.abs(weight.flat[present]), kind="stable")[:count]]
    mask.flat[dropped] = False
    free = np.flatnonzero(~mask)
    mask.flat[free[np.argsort(-np.abs(gradient.flat[free]), kind="stable")[:count]]] = True
    weight[~mask] = 0


def changed(name: str, seed: int) -> tuple[SparseLinear, np.ndarray, np.ndarray, Tensor, Tensor]:
    """A random layer after one change by a preset, and before it: weight, mask, the batch and its gradient."""
    generator = seeded(seed)
    rows, columns = (int(torch.randint(2, 14, (), generator=generator)) for _ in range(2))
    layer = SparseLinear(columns, rows, sparsity=0.4, dtype=torch.float64, generator=generator)
    weight, mask = layer.to_dense().weight.detach().numpy().copy(), layer.topology.to_mask().numpy().copy()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    sparsifier = Sparsifier.preset(name, layer, optimizer, period=1, total_steps=100, seed=seed)
    inputs = torch.randn(5, columns, dtype=torch.float64, generator=generator)
    upstream = torch.randn(5, rows, dtype=torch.float64, generator=generator)
    layer(inputs).backward(upstream)
    assert list(sparsifier.step()) == [""]
    return layer, weight, mask, inputs, upstream


@pytest.mark.parametrize("seed", range(15))
def test_set_agrees_with_a_dense_mask(seed: int) -> None:
    layer, weight, mask, _, _ = changed("set", seed)
    numpy_set(weight, mask, int(0.3 * mask.sum()), generators(seed, "")[""])
    assert np.array_equal(layer.topology.to_mask().numpy(), mask)
    assert np.array_equal(layer.to_dense().weight.detach().numpy(), weight)


@pytest.mark.parametrize("seed", range(15))
def test_rigl_agrees_with_a_dense_mask(seed: int) -> None:
    layer, weight, mask, inputs, upstream = changed("rigl", seed)
    fraction = 0.3 / 2 * (1 + math.cos(math.pi * 1 / 75))  # step 1 of 75: the topology stops at 3/4 of 100
    numpy_rigl(weight, mask, int(fraction * mask.sum()), (upstream.T @ inputs).numpy())
    assert np.array_equal(layer.topology.to_mask().numpy(), mask)
    assert np.array_equal(layer.to_dense().weight.detach().numpy(), weight)
