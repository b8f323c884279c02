"""The heads, by hand."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from continual.heads import HEADS, Targets, places

BIAS = torch.tensor([0.5, -1.0, 2.0, 0.0])


def batch(local: list[int]) -> Targets:
    """Two samples; units 1 and 3 of four are the task's."""
    logits = torch.tensor([[9.0, 1.0, -7.0, 2.0], [3.0, 0.0, 4.0, -1.0]], requires_grad=True)
    return Targets(logits, torch.tensor([1, 3]), torch.tensor(local), BIAS)


def entropy(logits: list[float], right: int) -> float:
    return math.log(sum(map(math.exp, logits))) - logits[right]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("current", (entropy([1.0, 2.0], 1) + entropy([0.0, -1.0], 0)) / 2),
        ("full", (entropy([9.0, 1.0, -7.0, 2.0], 3) + entropy([3.0, 0.0, 4.0, -1.0], 1)) / 2),
        # Units 0 and 2 answer with their biases alone.
        ("zeroed", (entropy([0.5, 1.0, 2.0, 2.0], 3) + entropy([0.5, 0.0, 2.0, -1.0], 1)) / 2),
    ],
)
def test_cross_entropies(head: str, expected: float) -> None:
    assert float(HEADS[head](batch([1, 0]), cross_entropy).detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("head", "units"), [("current", [1, 3]), ("full", [0, 1, 2, 3]), ("zeroed", [1, 3])])
def test_which_units_are_trained(head: str, units: list[int]) -> None:
    targets = batch([1, 0])
    HEADS[head](targets, cross_entropy).backward()
    assert targets.logits.grad is not None
    assert targets.logits.grad.any(0).nonzero().flatten().tolist() == units


def test_a_label_that_is_not_of_the_task_is_refused() -> None:
    units = torch.tensor([1, 3])
    assert places(units, torch.tensor([3, -1, 1]), "").tolist() == [1, -1, 0]
    for stray in (0, 2, 7):
        with pytest.raises(ValueError, match=rf"a sample for output {stray}, .*current task \(\[1, 3\]\); do this"):
            places(units, torch.tensor([3, stray]), "do this")


def rest(logit: float) -> float:
    """Loss of saying that it is of another class."""
    return math.log1p(math.exp(logit))


def test_one_versus_rest() -> None:
    # Both of a class: the mean of the sums over the two classes.
    both = (rest(1.0) + rest(-2.0) + rest(-0.0) + rest(-1.0)) / 2
    assert float(HEADS["sigmoid"](batch([1, 0]), cross_entropy).detach()) == pytest.approx(both, rel=1e-6)
    # The second of none: it is refused by both classes, and weighs as much as all samples of classes together.
    apart = (rest(1.0) + rest(-2.0)) + (rest(0.0) + rest(-1.0))
    assert float(HEADS["sigmoid"](batch([1, -1]), cross_entropy).detach()) == pytest.approx(apart, rel=1e-6)
