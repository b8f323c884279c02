from typing import Any

import pytest
import torch

from continual.benchmarks import ContinualBenchmark, make_benchmark
from continual.scenario import wrap


@pytest.fixture(scope="module")
def digits() -> ContinualBenchmark:
    return make_benchmark("split-digits")


def small_set(count: int, seed: int) -> Any:
    """A dataset of Avalanche's over somebody else's tensors: vectors of five numbers, labels 0 to 3."""
    from avalanche.benchmarks.utils import as_classification_dataset

    data: Any = torch.utils.data.TensorDataset(
        torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % 4
    )
    data.targets = data.tensors[1].tolist()
    return as_classification_dataset(data)


def test_wrapped_benchmark_has_its_tensors() -> None:
    from avalanche.benchmarks import class_incremental_benchmark

    sets = {"train": small_set(40, 0), "test": small_set(20, 1)}
    wrapped = wrap(class_incremental_benchmark(dict(sets), class_order=[3, 0, 1, 2], num_experiences=2), name="mine")
    assert (wrapped.name, wrapped.input_shape, wrapped.classes) == ("mine", (5,), 4)
    assert wrapped.task_classes == ((0, 3), (1, 2))
    assert wrapped.scenario == "class-il"
    assert wrapped.valid is None
    for stream in ("train", "test"):
        for task in range(2):
            x, y = wrapped.tensors(stream, task)
            samples = list(wrapped.avalanche.streams[stream][task].dataset)
            assert torch.equal(x, torch.stack([sample[0] for sample in samples]))
            assert y.tolist() == [int(sample[1]) for sample in samples]
    assert wrapped.tensors("test", 0)[0] is wrapped.tensors("test", 0)[0]


def test_wrapped_tasks_may_share_classes() -> None:
    from avalanche.benchmarks import benchmark_from_datasets

    streams = {name: [small_set(8, seed) for seed in range(3)] for name in ("train", "valid", "test")}
    wrapped = wrap(benchmark_from_datasets(**streams))
    assert wrapped.scenario == "domain-il"
    assert wrapped.task_classes == ((0, 1, 2, 3),) * 3
    assert len(wrapped.tensors("valid", 2)[0]) == 8


def test_own_benchmark_may_be_wrapped(digits: ContinualBenchmark) -> None:
    wrapped = wrap(digits.avalanche)
    assert (wrapped.task_classes, wrapped.scenario) == (digits.task_classes, digits.scenario)
    assert (wrapped.input_shape, wrapped.classes) == (digits.input_shape, digits.classes)
    assert torch.equal(wrapped.tensors("test", 3)[0], digits.tensors("test", 3)[0])


def test_what_cannot_be_wrapped_is_said() -> None:
    from avalanche.benchmarks import benchmark_from_datasets

    with pytest.raises(ValueError, match="missing: test"):
        wrap(benchmark_from_datasets(train=[small_set(8, 0)]))
    with pytest.raises(ValueError, match="got 2 to train and 1 in the test stream"):
        wrap(benchmark_from_datasets(train=[small_set(8, 0), small_set(8, 1)], test=[small_set(8, 2)]))
