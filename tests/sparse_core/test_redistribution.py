"""In which layers connections grow, by hand."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_sparsifiers import seeded

from sparse_core import REDISTRIBUTIONS, LayerView
from sparse_core.redistribution import apportion
from sparse_core.signals import Capture


def layer(positions: list[int]) -> LayerView:
    """A layer of two outputs and four inputs; gradients are 10 20 0 10 | -1 -2 0 -1."""
    capture = Capture(1)
    capture.add(torch.tensor([[1.0, 2.0, 0.0, 1.0]]), torch.tensor([[10.0, -1.0]]))
    taken = torch.tensor(positions)
    return LayerView((2, 4), taken, torch.ones(taken.numel()), taken, seeded(), capture)


def test_every_redistribution_by_hand() -> None:
    views = {"a": layer([0, 2, 5, 7]), "b": layer([1, 4])}
    views["a"] = replace(views["a"], dropped=torch.tensor([5, 7]))  # gradients -2 and -1 go, 10 and 0 stay
    assert REDISTRIBUTIONS["active"](views) == {"a": 2, "b": 2}
    assert REDISTRIBUTIONS["vacant"](views) == {"a": 4, "b": 6}
    assert REDISTRIBUTIONS["gradient"](views) == {"a": 5, "b": (20 + 1) / 2}
    assert {"active", "vacant", "gradient", "momentum"} == {*REDISTRIBUTIONS}  # the last is in test_methods.py


@pytest.mark.parametrize(
    ("weights", "room", "total", "counts"),
    [
        ([3, 1], [9, 9], 4, [3, 1]),
        ([5, 3, 2], [9, 9, 9], 7, [4, 2, 1]),  # 3.5, 2.1, 1.4: the largest remainder gets the seventh
        ([1, 1, 1], [9, 9, 9], 4, [2, 1, 1]),  # of equal ones the first
        ([3, 1], [1, 9], 4, [1, 3]),  # what does not fit goes on
        ([0, 0], [1, 3], 2, [1, 1]),  # without weights by room: 0.5 and 1.5
        ([0, 1], [9, 2], 5, [3, 2]),  # one with a weight is full: the rest to the other
        ([1, 1], [1, 1], 9, [1, 1]),  # no more than there is room
    ],
)
def test_apportion_by_hand(weights: list[float], room: list[int], total: int, counts: list[int]) -> None:
    assert apportion(weights, room, total) == counts


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 50)), min_size=1, max_size=6), st.integers(0, 200))
def test_apportion_is_exact_and_near_to_the_proportion(layers: list[tuple[float, int]], total: int) -> None:
    weights, room = map(list, zip(*layers, strict=True))
    counts = apportion(weights, room, total)
    assert sum(counts) == min(total, sum(room))
    assert all(0 <= count <= most for count, most in zip(counts, room, strict=True))
    ideal = [total * weight / sum(weights) if sum(weights) else 0.0 for weight in weights]
    if sum(weights) and all(share <= most for share, most in zip(ideal, room, strict=True)):
        assert all(abs(count - share) < 1 + 1e-6 for count, share in zip(counts, ideal, strict=True))
