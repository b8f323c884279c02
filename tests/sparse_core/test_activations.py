"""All-ReLU: by hand, in a network, and where rules ask what neurons answer."""

import copy
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from sparse_core import AllReLU, SparseLinear, SparseMLP, sparse_layers
from sparse_core.activity import activities


def test_slopes_alternate() -> None:
    # Hidden layers have the numbers 2, 3, 4 in the paper: even ones turn the negative side up.
    inputs = torch.tensor([-2.0, 0.0, 3.0])
    assert AllReLU(0, 0.5)(inputs).tolist() == [1.0, 0.0, 3.0]
    assert AllReLU(1, 0.5)(inputs).tolist() == [-1.0, 0.0, 3.0]
    assert AllReLU(2, 0.5)(inputs).tolist() == [1.0, 0.0, 3.0]
    assert AllReLU(7)(inputs).tolist() == pytest.approx([-1.2, 0.0, 3.0])
    assert str(AllReLU(0)) == "AllReLU(slope=-0.6)"


@pytest.mark.parametrize("layer", [0, 1])
def test_gradients_are_the_functions_own(layer: int) -> None:
    inputs = torch.tensor([-2.0, -0.3, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(AllReLU(layer), inputs)


def test_a_network_numbers_its_layers() -> None:
    torch.manual_seed(0)
    model = SparseMLP([5, 8, 8, 8, 2], sparsity=0.5, activation=partial(AllReLU, alpha=0.75))
    assert [module.slope for module in model if isinstance(module, AllReLU)] == [-0.75, 0.75, -0.75]
    assert isinstance(model[-1], nn.Linear)
    x = expected = torch.randn(4, 5)
    for module in model:
        if isinstance(module, AllReLU):
            expected = torch.where(expected > 0, expected, module.slope * expected)
        else:
            expected = module(expected)
    assert torch.equal(model(x), expected)
    # What wants no argument gets none, whatever it may be given.
    assert all(isinstance(SparseMLP([2, 3, 3, 1], sparsity=0, activation=kind)[1], kind) for kind in (nn.ReLU, nn.ELU))
    widths: list[int] = []
    SparseMLP([2, 3, 3, 1], sparsity=0, activation=lambda layer: widths.append(layer) or nn.Tanh())
    assert widths == [0, 1]


def test_rules_see_what_neurons_answer() -> None:
    model = SparseMLP([5, 8, 8, 2], sparsity=0.5, activation=AllReLU)
    inputs = torch.randn(6, 5)
    answer = activities(model)["0"](inputs)
    assert torch.equal(answer, AllReLU(0)(sparse_layers(model)["0"](inputs)))
    assert (answer < 0).sum() == 0 < (answer > 0).sum()  # the negative side is turned up


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "`layer` must be the number of a hidden layer, 0, 1, …, got -1"),
        ((0.5,), "`layer` must be the number of a hidden layer, 0, 1, …, got 0.5"),
        ((0, -0.6), "`alpha` must be a finite number ≥ 0, got -0.6; the sign is the layer's"),
        ((0, float("nan")), "`alpha` must be a finite number ≥ 0, got nan"),
    ],
)
def test_what_cannot_be(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        AllReLU(*arguments)


def test_a_look_at_answers_leaves_normalisations_as_they_are() -> None:
    model = nn.Sequential(
        SparseLinear(5, 8, sparsity=0.5), nn.BatchNorm1d(8), nn.Tanh(), SparseLinear(8, 2, sparsity=0.5)
    )
    before, inputs = copy.deepcopy(model.state_dict()), torch.randn(6, 5)
    answer = activities(model)["0"](inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].training
    assert torch.equal(answer, model.eval()[:3](inputs))


def test_without_modules_between_them_hidden_layers_answer_through_relu() -> None:
    bare = nn.ModuleDict({"a": SparseLinear(5, 8, sparsity=0.5), "b": SparseLinear(5, 2, sparsity=0.5)})
    inputs = torch.randn(6, 5)
    assert torch.equal(activities(bare)["a"](inputs), bare["a"](inputs).relu())
    assert torch.equal(activities(bare)["b"](inputs), bare["b"](inputs))
