"""What value a new connection starts with, by hand and in a network."""

import copy

import pytest
import torch
from small_sparsifiers import OPTIMIZERS, learn, seeded

from sparse_core import LayerView, SparseLinear, Sparsifier
from sparse_core.birth import BIRTHS
from sparse_core.signals import Capture

TAKEN, GROWN = torch.tensor([0, 2, 5, 7]), torch.tensor([1, 4])


def view() -> LayerView:
    """A layer of two outputs and four inputs; gradients are 10 20 0 10 | -1 -2 0 -1."""
    capture = Capture(1)
    capture.add(torch.tensor([[1.0, 2.0, 0.0, 1.0]]), torch.tensor([[10.0, -1.0]]))
    return LayerView((2, 4), TAKEN, torch.ones(4), TAKEN, seeded(), capture)


def test_every_birth_by_hand() -> None:
    assert BIRTHS["zero"].choose(view(), GROWN).tolist() == [0, 0]
    assert BIRTHS["gradient:step=0.5"].choose(view(), GROWN).tolist() == [-10, 0.5]
    drawn = BIRTHS["normal:std=0.3"].choose(view(), torch.arange(8).repeat(500))
    assert drawn.std().item() == pytest.approx(0.3, rel=0.05)
    assert drawn.mean().item() == pytest.approx(0, abs=0.02)
    assert torch.equal(drawn, BIRTHS["normal:std=0.3"].choose(view(), torch.arange(8).repeat(500)))
    signs = BIRTHS["tiny:size=0.5"].choose(view(), torch.arange(8).repeat(500))
    assert signs.abs().unique().tolist() == [0.5]
    assert signs.mean().item() == pytest.approx(0, abs=0.05)
    assert {"zero", "gradient", "normal", "tiny"} == {*BIRTHS}


def test_new_connections_take_a_small_step_against_their_gradient() -> None:
    layer = SparseLinear(12, 9, sparsity=0.5, generator=seeded())
    follower = copy.deepcopy(layer)
    optimizer = OPTIMIZERS["SGD"](layer.parameters())
    sparsifier = Sparsifier(
        layer, optimizer, drop="magnitude", grow="random", period=1, seed=3, birth="gradient:step=0.5",
        followers=[follower],
    )  # fmt: skip
    dense = layer.to_dense()
    learn(dense, torch.optim.SGD(dense.parameters(), lr=0), 0, 12)
    gradient = dense.weight.grad
    learn(layer, optimizer, 0, 12)
    before = layer.to_dense().weight.detach().flatten()
    change = sparsifier.step()[""]
    grown, kept = change.after[change.source < 0], change.after[change.source >= 0]
    assert grown.numel() == 16  # 30 % of 54
    for each in (layer, follower):
        now = each.to_dense().weight.detach().flatten()
        assert torch.allclose(now[grown], -0.5 * gradient.flatten()[grown], atol=1e-6)
    assert torch.equal(layer.to_dense().weight.detach().flatten()[kept], before[kept])
