"""Small networks whose connections move, on data that a number decides."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_core import PRESETS, Adam, SparseMLP, Sparsifier

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "ours": lambda p: Adam(p, lr=0.01, weight_decay=0.1),
    "ours decoupled": lambda p: Adam(p, lr=0.01, weight_decay=0.1, decoupled=True),
}
MOVING = [name for name, preset in PRESETS.items() if preset.changes]
SEARCHING = [name for name in MOVING if PRESETS[name].searches]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learn(model: nn.Module, optimizer: Optimizer, step: int, features: int) -> Tensor:
    """One step on data that the step's number decides."""
    optimizer.zero_grad()
    loss = loss_of(model, step, features)
    loss.backward()
    optimizer.step()
    return loss.detach()


def loss_of(model: nn.Module, step: int, features: int) -> Tensor:
    inputs = torch.randn(8, features, generator=seeded(step))
    return (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()


def again(model: nn.Module, step: int) -> Callable[[], None]:
    """The closure that GraSP wants: the gradient of that step's loss."""
    return lambda: loss_of(model, step, 6).backward()


def network(preset: str, seed: int = 0) -> SparseMLP:
    sparsity = 0.0 if PRESETS[preset].dense else PRESETS[preset].own_sparsity or 0.6
    return SparseMLP([6, 16, 16, 2], sparsity=sparsity, topology=preset, generator=seeded(seed))


def sparsifier_of(preset: str, model: nn.Module, optimizer: Optimizer, **options: Any) -> Sparsifier:
    choices = {"period": 5, "total_steps": 60, "seed": 0, "sparsity": 0.6, **options}
    return Sparsifier.preset(preset, model, optimizer, **choices)


def assert_equal(actual: Any, expected: Any) -> None:
    """Nested state, bit for bit."""
    assert type(actual) is type(expected)
    if isinstance(expected, Tensor):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, item in expected.items():
            assert_equal(actual[key], item)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_equal(one, other)
    else:
        assert actual == expected
