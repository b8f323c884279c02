"""`TaskNorm` against torch's batch normalisation, and with frozen neurons."""

import pytest
import torch
from torch import nn

from continual.normalisation import TaskNorm

SHAPES = [(9, 5), (4, 5, 3, 2)]


def both(shape: tuple[int, ...]) -> tuple[TaskNorm, nn.Module]:
    ours, theirs = TaskNorm(5).double(), (nn.BatchNorm1d(5) if len(shape) == 2 else nn.BatchNorm2d(5)).double()
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(ours, name).copy_(torch.rand(5, generator=torch.Generator().manual_seed(1)))
            getattr(theirs, name).copy_(getattr(ours, name))
    return ours, theirs


def samples(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 1


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_batch_normalisation(shape: tuple[int, ...]) -> None:
    ours, theirs = both(shape)
    for step in range(3):
        results = []
        for norm in (ours, theirs):
            x = samples(shape, step).requires_grad_()
            norm.zero_grad()
            y = norm(x)
            y.square().mul(torch.arange(y.numel()).view(shape)).sum().backward()
            results.append([y, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var])
        for one, two in zip(*results, strict=True):
            torch.testing.assert_close(one, two)
    x = samples(shape, 9)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)


@pytest.mark.parametrize("shape", SHAPES)
def test_frozen_neurons_answer_alike_for_ever(shape: tuple[int, ...]) -> None:
    ours, theirs = both(shape)
    optimizer = torch.optim.AdamW(ours.parameters(), lr=0.1, weight_decay=0.5)
    ours(samples(shape, 0))
    ours.freeze(torch.tensor([1, 3]))
    x, held, free = samples(shape, 7), [1, 3], [0, 2, 4]
    ours.eval()
    before, content = ours(x), ours.content()
    ours.train()
    for step in range(1, 4):
        optimizer.zero_grad()
        ours(samples(shape, step)).square().sum().backward()
        optimizer.step()
    # In training too, they are normalised by what was stored.
    assert torch.equal(ours(x)[:, held], before[:, held])
    ours.eval()
    assert torch.equal(ours(x)[:, held], before[:, held])
    assert not torch.isclose(ours(x)[:, free], before[:, free]).any(0).all()
    for name, tensor in ours.content().items():
        assert torch.equal(tensor[held], content[name][held])
        assert not torch.isclose(tensor[free], content[name][free]).any()
    # Another freeze does not touch those that are frozen already.
    ours.freeze(torch.tensor([0, 1]))
    assert torch.equal(ours.content()["weight"][held], content["weight"][held])
    assert ours.frozen.tolist() == [True, True, False, True, False]
    # Neurons that are not frozen behave as before.
    theirs.load_state_dict({
        name: ours.content().get(name, tensor) for name, tensor in theirs.state_dict().items()
    })  # fmt: skip
    ours.train()
    torch.testing.assert_close(ours(x)[:, [2, 4]], theirs.train()(x)[:, [2, 4]])


def test_begun_and_restored() -> None:
    ours, _ = both((9, 5))
    ours(samples((9, 5), 0))
    ours.freeze(torch.arange(5))
    content = ours.content()
    ours.begin()
    x = samples((9, 5), 1)
    torch.testing.assert_close(ours(x), nn.BatchNorm1d(5).double()(x))
    other = TaskNorm(5).double()
    other.restore(content)
    assert all(torch.equal(content[name], tensor) for name, tensor in other.content().items())
    ours.eval()
    ours.restore(content)
    assert torch.equal(ours(x), other.eval()(x))
