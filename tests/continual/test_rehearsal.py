"""Stored samples: how many, of what, at what price, and that rehearsing them helps."""

from typing import Any

import pytest
import torch
from synthetic import blobs

from continual.augmentation import jittered
from continual.benchmarks import make_benchmark
from continual.catalogue import build_strategy
from continual.evaluation import accuracy_rows
from continual.learner import Setup
from continual.rehearsal import Memory


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_memory_keeps_so_many_of_each() -> None:
    x, y = torch.arange(20.0).view(20, 1), torch.tensor([3] * 12 + [1] * 6 + [8] * 2)
    memory = Memory(4)
    assert (len(memory), memory.nbytes) == (0, 0)
    memory.add(x, y, generator())
    assert memory.y.tolist() == [1] * 4 + [3] * 4 + [8] * 2  # of a class with fewer, all
    assert y[memory.x.flatten().long()].tolist() == memory.y.tolist()
    assert len(memory.x.unique()) == 10  # none twice
    assert memory.nbytes == 10 * (4 + 8)
    again = Memory(4)
    again.add(x, y, generator())
    assert torch.equal(again.x, memory.x)
    memory.add(x + 100, torch.full((20,), 5), generator())
    assert memory.y.tolist()[10:] == [5] * 4
    assert torch.equal(memory.x[:10], again.x)


def test_memory_is_drawn_from_with_repetition() -> None:
    memory = Memory(3)
    memory.add(torch.arange(6.0).view(6, 1), torch.tensor([0, 0, 0, 1, 1, 1]), generator())
    x, y = memory.draw(600, generator(1))
    assert x.shape == (600, 1)
    assert ((x.flatten() > 2) == (y == 1)).all()
    counts = torch.bincount(x.flatten().long(), minlength=6)
    assert counts.min() > 60


def test_memory_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least 1 sample a class, got 0"):
        Memory(0)


@pytest.mark.parametrize("shape", [(9, 1, 8, 8), (4, 3, 5, 7)])
def test_jitter_moves_each_image_a_little(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=generator()) - 0.5
    moved = jittered(x, generator(1))
    assert moved.shape == x.shape
    assert torch.equal(jittered(x, generator(1)), moved)
    assert ((moved - x).abs().flatten(1).amax(1) > 0.01).all()
    assert moved.min() >= x.min() - 1e-6
    assert moved.max() <= x.max() + 1e-6
    still = jittered(x, generator(1), degrees=0, scale=0, shear=0, shift=0)
    torch.testing.assert_close(still, x, atol=1e-5, rtol=0)


def learned(benchmark: Any, name: str = "spacenet-rehearsal", **choices: Any) -> Any:
    setup = Setup(benchmark, **{"hidden": (60, 60), "epochs": 6, "batch_size": 32, "learning_rate": 0.01, **choices})
    strategy = build_strategy(name, setup)
    for experience in benchmark.train:
        strategy.train(experience, [])
    return strategy


@pytest.mark.end_to_end
def test_counts_bytes_and_forgetting() -> None:
    digits = make_benchmark("split-digits")
    strategy = learned(digits, memory=7, epochs=8)
    assert torch.bincount(strategy.memory.y).tolist() == [7] * 10
    assert strategy.costs().memory_bytes == 70 * (64 * 4 + 8)
    tests = [digits.tensors("test", task) for task in range(5)]
    accuracies, _ = accuracy_rows(strategy, tests)
    assert min(accuracies[:4]) > 0.3
    assert sum(accuracies) / 5 > 0.7


@pytest.mark.end_to_end
def test_shared_labels_are_rehearsed_where_they_were_learned() -> None:
    # Task by task the pixels lie elsewhere: an old image must excite the old task's unit of its label.
    benchmark = blobs(tasks=3, shared_classes=True)
    strategy = learned(benchmark, memory=5, batch_size=8, epochs=20)
    assert strategy.memory.y.tolist() == [unit for unit in range(6) for _ in range(5)]
    x, units = strategy.memory.x, strategy.memory.y
    with torch.no_grad():
        assert (strategy.network.eval()(x).argmax(1) == units).float().mean() > 0.9


def test_strict_isolation_needs_no_rehearsal() -> None:
    with pytest.raises(ValueError, match="rehearsal needs `isolation='shared'`"):
        build_strategy("spacenet-rehearsal", Setup(blobs(tasks=2), isolation="strict"))
