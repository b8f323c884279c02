"""Whole convolutional models: their sparsity, their costs, and what they refuse."""

import copy
import re

import pytest
import torch
from small_convolutions import UNITS, seeded
from torch import Tensor, nn

from sparse_core import SparseConv2d, SparseLinear, Topology, plan, sparse_layers, sparsify
from sparse_core.meters import (
    LayerCount,
    Use,
    capture_bytes,
    forward_flops,
    growth_flops,
    layer_counts,
    memory,
    nnz,
    training_flops,
    uses,
)
from sparse_core.perceptrons import fusible


def network() -> nn.Sequential:
    """180, 1,800 and 1,600 weights, for 6×6 images."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(160, 10)
    )


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("wanted", [0.7, 0.8, 0.9])
@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_the_whole_model_has_the_sparsity(unit: str, wanted: float, distribution: str) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cells = 180 + 1800 + 1600
    sparsify(model, wanted, dense=(), conv_unit=unit, distribution=distribution, generator=seeded())
    # The linear layer makes up for whole kernels.
    assert nnz(model) == cells - round(wanted * cells)
    assert isinstance(model[2], SparseConv2d)
    assert model[2].unit == unit
    assert model[2].nnz % (9 if unit == "kernel" else 1) == 0
    for name, layer in sparse_layers(model).items():
        weight = layer.to_dense().weight
        assert torch.equal(weight, before[f"{name}.weight"] * (weight != 0))
    assert model(torch.ones(2, 1, 6, 6)).shape == (2, 10)


def test_convolutions_alone_come_as_near_as_whole_kernels_allow() -> None:
    for wanted in (0.5, 0.77, 0.9, 0.97):
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 20, 3), nn.Conv2d(20, 8, 3))
        cells = nnz(model)
        sparsify(model, wanted, dense=(), conv_unit="kernel")
        assert abs(nnz(model) - (cells - round(wanted * cells))) <= 4
    # Two layers of 4 kernels; 5 of 72 weights would be less than one kernel each.
    small = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    with pytest.raises(ValueError, match=r"cannot be met with whole kernels: .* is 13 weights off; use `conv_unit='we"):
        sparsify(small, 1 - 5 / 72, dense=(), conv_unit="kernel")
    assert not sparse_layers(small)


def test_names_choose_convolutions_too() -> None:
    assert list(plan(network(), 0.3).counts) == ["0", "2"]
    assert list(plan(network(), 0.3, dense=("input", "output")).counts) == ["2"]
    assert list(plan(network(), 0.1, include="2").counts) == ["2"]
    text = str(plan(network(), 0.5, conv_unit="kernel", exclude="0")).splitlines()
    assert re.fullmatch(r"2: \d+ connections of 9 weights each", text[0])
    assert text[1:] == ["0: stays dense, excluded", "5: stays dense, kept dense by `dense='output'`"]
    with pytest.raises(ValueError, match="`conv_unit` must be 'weight' or 'kernel', got 'filter'"):
        plan(network(), 0.5, conv_unit="filter")


def test_a_plain_convolution_comes_back_sparse() -> None:
    conv = sparsify(nn.Conv2d(4, 5, 3), 0.75, conv_unit="kernel")
    assert isinstance(conv, SparseConv2d)
    assert (conv.nnz, conv.connections) == (45, 5)


@pytest.mark.parametrize("unit", UNITS)
def test_costs_by_hand(unit: str) -> None:
    # 2 → 4 channels of 3×3 on 5×5 images gives 3×3 outputs; half of 72 weights. Then 36 → 2, dense.
    conv = SparseConv2d(2, 4, 3, unit=unit, sparsity=0.5)
    model = nn.Sequential(conv, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
    sample = torch.ones(7, 2, 5, 5)
    assert layer_counts(model) == {"0": LayerCount(36, 72), "3": LayerCount(72, 72)}
    assert uses(model, sample) == {"0": Use(9, 50, 36), "3": Use(1, 36, 2)}
    forward = 2 * (36 * 9 + 72)
    assert forward_flops(model, sample) == forward
    assert training_flops(model, sample) == 3 * forward - 2 * 36 * 9
    assert growth_flops(model, 10, sample) == 2 * 10 * 72 * 9
    assert capture_bytes(model, 10, sample) == 10 * (50 + 36) * 4
    assert model.training
    assert not model[1].num_batches_tracked  # a copy ran
    # Scratch: the dense weight, then its dense gradient.
    assert memory(model).scratch == 2 * 72 * 4
    dense = nn.Conv2d(2, 4, 3)
    assert forward_flops(dense, sample) == 2 * forward_flops(conv, sample) == 2 * 72 * 9
    for cost in (forward_flops, training_flops, lambda model: growth_flops(model, 1), lambda m: capture_bytes(m, 1)):
        with pytest.raises(ValueError, match="how often 0 is applied depends on the size of the images; give a `samp"):
            cost(model)


def test_a_sample_counts_every_application() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.unused = SparseLinear(6, 6, sparsity=0.5), nn.Linear(6, 6)
            self.up = nn.ConvTranspose2d(1, 3, 2, stride=2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.up(self.inner(self.inner(inputs))[:, None])

    # Five rows through the same layer twice; each of 5×6 inputs applies the transposed kernels once.
    model = Twice()
    assert {name: use.applications for name, use in uses(model, torch.ones(2, 5, 6)).items()} == {
        "inner": 10,
        "unused": 0,
        "up": 30,
    }
    assert forward_flops(model, torch.ones(2, 5, 6)) == 2 * (18 * 10 + 12 * 30)


def test_compiled_passes_refuse_convolutions() -> None:
    conv = SparseConv2d(6, 6, 1, sparsity=0.5)
    assert fusible(nn.Sequential(SparseLinear(6, 6, sparsity=0.5)))
    assert not fusible(nn.Sequential(conv))
    assert not fusible(nn.Sequential(SparseLinear(6, 6, sparsity=0.5), nn.ReLU(), conv))


@pytest.mark.parametrize("unit", UNITS)
def test_convolutions_take_init_and_backend(unit: str) -> None:
    dense = nn.Conv2d(8, 6, 3)
    plain, scaled = (
        sparsify(copy.deepcopy(dense), 0.7, conv_unit=unit, init=init, backend="csr", generator=seeded())
        for init in ("torch", "fan-in")
    )
    factors = (plain.in_features / plain.topology.fan_in[plain.topology.rows.long()]).sqrt()
    torch.testing.assert_close(scaled.values, plain.values * factors.view(-1, *[1] * (plain.values.dim() - 1)))
    assert plain.backend == scaled.backend == "csr"


def test_same_padding_of_a_dilated_convolution() -> None:
    dense = nn.Conv2d(2, 3, (5, 3), padding="same", dilation=(1, 2))
    sparse = SparseConv2d.from_dense(dense, Topology.full((3, 30)))
    assert sparse.padding == (2, 2)
    inputs = torch.randn(2, 2, 9, 8, generator=seeded())
    torch.testing.assert_close(sparse(inputs), dense(inputs))
