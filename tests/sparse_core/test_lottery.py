"""Iterative magnitude pruning with rewinding."""

import pytest
import torch
from torch import nn

from sparse_core import Adam, SparseLinear, Topology, sparse_layers, sparsify
from sparse_core.lottery import lottery
from sparse_core.meters import nnz, sparsity


def test_one_layer_by_hand() -> None:
    layer = SparseLinear(4, 1, topology=Topology.full((1, 4)))
    first = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with torch.no_grad():
        layer.values.copy_(first)
        layer.bias.fill_(7.0)

    def train(model: nn.Module) -> None:
        with torch.no_grad():
            model.values.mul_(-10).add_(torch.tensor([0.0, 0.0, 30.0, 0.0])[-model.values.numel() :])
            model.bias.fill_(0.0)

    rounds = lottery(layer, train, 0.5, share=0.25)
    # Trained to -10, -20, 0, -40: the third is the weakest. What is left begins anew.
    assert next(rounds) == 0.25
    assert layer.positions.tolist() == [0, 1, 3]
    assert layer.values.tolist() == [1.0, 2.0, 4.0]
    assert layer.bias.item() == 7.0
    # Trained to -10, 10, -40 (30 falls on the second now): one more, the first of two as weak.
    assert next(rounds) == 0.5
    assert layer.positions.tolist() == [1, 3]
    assert list(rounds) == []


def test_a_network_comes_down_exactly_and_learns_again() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 8, generator=generator)
    targets = inputs[:, :1].abs() - inputs[:, 1:2]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 1))
    model = sparsify(model, 0.8, topology="gmp", generator=generator)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainings = 0

    def train(network: nn.Module) -> None:
        nonlocal trainings
        trainings += 1
        optimizer = Adam(network.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            (network(inputs) - targets).square().mean().backward()
            optimizer.step()

    shares = list(lottery(model, train, 0.8, share=0.3))
    assert shares == sorted(shares)
    assert trainings == len(shares) == 7  # of 256: 180, 126, 89, 63, 45, 32, and the 26 that are wanted
    cells = 8 * 32 + 32
    assert nnz(model) == cells - round(0.8 * cells)
    (layer,) = sparse_layers(model).values()
    assert torch.equal(layer.values, start["0.values"][layer.positions])  # it was full: a position is an index
    assert torch.equal(model[3].weight, start["3.weight"])
    assert torch.equal(model[2].running_mean, start["2.running_mean"])
    assert model[2].num_batches_tracked == 0
    train(model)
    with torch.no_grad():
        assert (model(inputs) - targets).square().mean() < 0.2 * targets.var()


def test_without_rewinding_values_stay_trained() -> None:
    layer = SparseLinear(4, 1, topology=Topology.full((1, 4)), bias=False)

    def train(model: nn.Module) -> None:
        with torch.no_grad():
            model.values.copy_(torch.arange(1.0, 5.0)[-model.values.numel() :])

    assert list(lottery(layer, train, 0.5, share=0.5, rewind=False)) == [0.5]
    assert layer.values.tolist() == [3.0, 4.0]


def test_what_cannot_be() -> None:
    def never(model: nn.Module) -> None:
        raise AssertionError

    layer = SparseLinear(10, 10, sparsity=0.5)
    with pytest.raises(ValueError, match=r"`share` must be a number in \(0, 1\), got 1"):
        lottery(layer, never, 0.9, share=1)
    with pytest.raises(ValueError, match=r"0\.5000 sparse already, more than 0\.4; start fuller"):
        lottery(layer, never, 0.4)
    with pytest.raises(ValueError, match="has no sparse layers; make it with"):
        lottery(nn.Linear(3, 3), never, 0.5)
    assert sparsity(layer) == 0.5
