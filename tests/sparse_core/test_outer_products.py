import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparse_core import Constraint, LayerView, Topology
from sparse_core.choosing import Choosing
from sparse_core.outer_products import largest_products

NONE = torch.empty(0, dtype=torch.int64)


def in_order(a: Tensor, b: Tensor, count: int, blocked: list[int]) -> list[int]:
    """All products, sorted; the first of equal ones first."""
    products = torch.outer(a, b).flatten().tolist()
    free = [place for place in range(len(products)) if place not in set(blocked)]
    return sorted(sorted(free, key=lambda place: -products[place])[:count])


def test_the_largest_of_twelve() -> None:
    #            1    5    2    0
    # 3          3   15    6    0
    # 1          1    5    2    0
    # 2          2   10    4    0
    a, b = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 5.0, 2.0, 0.0])
    found = largest_products(a, b, 3, NONE)
    assert found is not None
    assert found.tolist() == [1, 2, 9]  # 15, 6, 10
    found = largest_products(a, b, 3, torch.tensor([1, 9]))
    assert found is not None
    assert found.tolist() == [2, 5, 10]  # 6, 5, 4


def test_equal_products_are_taken_from_the_lowest_position_on() -> None:
    found = largest_products(torch.ones(4), torch.tensor([1.0, 2.0, 1.0, 1.0]), 6, torch.tensor([0]))
    assert found is not None
    assert found.tolist() == [1, 2, 3, 5, 9, 13]


numbers = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), st.floats(1e-12, 1e12))


@given(
    st.lists(numbers, min_size=1, max_size=9),
    st.lists(numbers, min_size=1, max_size=9),
    st.data(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_any_two_vectors(left: list[float], right: list[float], data: st.DataObject, dtype: torch.dtype) -> None:
    a, b = torch.tensor(left, dtype=dtype), torch.tensor(right, dtype=dtype)
    cells, positive = len(left) * len(right), int((a > 0).sum()) * int((b > 0).sum())
    blocked = sorted(data.draw(st.sets(st.integers(0, cells - 1), max_size=cells // 2)))
    count = data.draw(st.integers(0, cells - len(blocked)))
    found = largest_products(a, b, count, torch.tensor(blocked, dtype=torch.int64))
    if count and 2 * (count + len(blocked)) <= cells and count + len(blocked) <= positive:
        assert found is not None
    if found is not None:
        assert found.tolist() == in_order(a, b, count, blocked)


@pytest.mark.parametrize("odd", [-1.0, torch.nan, torch.inf, 1e-40])
def test_others_are_left_to_a_look_at_all_of_them(odd: float) -> None:
    assert largest_products(torch.full((8,), odd), torch.ones(8), 3, NONE) is None


@pytest.mark.parametrize("choosing", [Choosing(), Choosing(mix=0.5), Choosing(temperature=2.0)])
def test_a_view_grows_the_same_either_way(choosing: Choosing) -> None:
    drawn = torch.Generator().manual_seed(0)
    topology = Topology.random((30, 40), 200, drawn)
    outputs, inputs = torch.rand(30, generator=drawn), torch.rand(40, generator=drawn)
    constraint = Constraint(torch.arange(3, 29, 2), torch.arange(1, 40, 3))

    def view() -> LayerView:
        blocked = topology.positions
        return LayerView(
            (30, 40), blocked, torch.ones(200), blocked, torch.Generator().manual_seed(1), constraint=constraint,
            choosing=choosing,
        )  # fmt: skip

    rows = outputs[view().allowed_outputs]
    looked_at = view().strongest(25, lambda start, stop: rows[start:stop, None] * inputs)
    assert view().strongest_pairs(25, outputs, inputs).tolist() == looked_at.tolist()
