"""The benchmarks by name: which image set, cut into which tasks.

A benchmark is a function of the class order and the number of tasks, registered below; its docstring's first line is
its summary. Labels keep their numbers: the order says which task has which. In every benchmark each 10th
training image of each class (in the order of the file) is for validation and never trained on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from continual.data import (
    CIFAR10,
    CIFAR10_100,
    CIFAR100,
    DIGITS,
    FASHION,
    MNIST,
    ImageSet,
    Labelled,
    default_root,
    every_of_each_class,
)
from continual.scenario import Classes, ContinualBenchmark, Scenario, build, wrap
from continual.tensors import ImageTask
from sparse_core.registry import Registry

__all__ = ["BENCHMARKS", "ContinualBenchmark", "Order", "Plan", "benchmark", "make_benchmark", "summary_of", "wrap"]

Order = int | str | Sequence[int]


@dataclass(frozen=True)
class Plan:
    """What a benchmark is before any image is read: the set, the classes of each task, and how pixels move in each."""

    images: ImageSet
    task_classes: tuple[Classes, ...]
    scenario: Scenario = "class-il"
    permutations: tuple[NDArray[np.int64], ...] | None = None
    epochs: int = 4
    """Epochs of each task and samples in a batch, for every strategy alike, where nobody says otherwise."""
    batch_size: int = 128


BENCHMARKS: Registry[Callable[..., Plan]] = Registry("benchmark")
benchmark = BENCHMARKS.register


@benchmark("split-digits")
def split_digits(order: Order, tasks: int = 5) -> Plan:
    """scikit-learn's 8×8 digits, two classes a task; needs no file (1,302 to train, 140 to validate, 355 to test)."""
    # Some 260 images a task: 4 epochs of 2 batches each would teach nobody anything.
    return replace(_split(DIGITS, order, tasks), epochs=20, batch_size=16)


@benchmark("split-mnist")
def split_mnist(order: Order, tasks: int = 5) -> Plan:
    """MNIST's ten digits, two classes a task."""
    return _split(MNIST, order, tasks)


@benchmark("permuted-mnist")
def permuted_mnist(order: Order, tasks: int = 10) -> Plan:
    """MNIST with its pixels permuted anew in each task, all ten digits in all ten; the order is the permutations' seed.

    Every task is permuted, the first one too, so no task is easier for what it looks like.
    """
    if not isinstance(order, int) or isinstance(order, bool) or order < 0:
        raise ValueError(
            f"the class order of permuted-mnist is a seed for its permutations, a whole number from 0, got {order!r}"
        )
    _check_tasks(tasks, most=None)
    rng = np.random.default_rng(order)
    size = int(np.prod(MNIST.shape))
    permutations = tuple(rng.permutation(size) for _ in range(tasks))
    return Plan(MNIST, (tuple(range(10)),) * tasks, "domain-il", permutations, epochs=5)


@benchmark("split-fashion-mnist")
def split_fashion_mnist(order: Order, tasks: int = 5) -> Plan:
    """Fashion-MNIST's ten kinds of clothes, two classes a task."""
    return _split(FASHION, order, tasks)


@benchmark("split-cifar10")
def split_cifar10(order: Order, tasks: int = 5) -> Plan:
    """CIFAR-10, two classes a task."""
    return _split(CIFAR10, order, tasks)


@benchmark("split-cifar100")
def split_cifar100(order: Order, tasks: int = 10) -> Plan:
    """CIFAR-100, ten classes a task; 5, 20 and 50 tasks are common too."""
    return _split(CIFAR100, order, tasks)


@benchmark("split-cifar-10-100")
def split_cifar_10_100(order: Order, tasks: int = 11) -> Plan:
    """CIFAR-10 as the first task, then CIFAR-100 (labels 10 to 109), ten classes a task.

    An order concerns CIFAR-100; given as labels, it lists 10 to 109.
    """
    _check_tasks(tasks, most=101, least=2)
    rest = _tasks(_ordered(order, range(10, 110)), tasks - 1)
    return Plan(CIFAR10_100, (tuple(range(10)), *rest))


def summary_of(name: str) -> str:
    """One line about a benchmark, read from its registration alone."""
    return (inspect.getdoc(BENCHMARKS[name]) or "").partition("\n")[0]


def make_benchmark(
    name: str, *, tasks: int | None = None, class_order: Order = 0, data_root: str | Path | None = None
) -> ContinualBenchmark:
    """A registered benchmark with its images in memory; the same arguments give the same benchmark.

    Args:
        name: one of `BENCHMARKS`.
        tasks: how many; None is the benchmark's own number. Classes are divided evenly.
        class_order: which task has which classes: 0 takes them as they are numbered, k ≥ 1 as
            `numpy.random.default_rng(k).permutation` of them; or all labels, in a sequence or as "3,1,4,…".
        data_root: folder of the image sets (`<root>/MNIST/raw`, …), where those missing are downloaded to; None is
            `SPARSE_AGENTS_DATA`, else a folder in the user's cache folder.

    Raises:
        ValueError: for an unknown name, tasks that do not divide the classes, an order that is none, a damaged file.
        OSError: where images are neither there nor to be downloaded; one line that says what to do.
    """
    entry = BENCHMARKS[name]
    order = _parsed(class_order)
    plan = entry(order) if tasks is None else entry(order, tasks)
    root = default_root() if data_root is None else Path(data_root).expanduser()
    train, test = plan.images.read(root)
    held_out = every_of_each_class(train.labels, 10)
    streams = {
        "train": list(_image_tasks(plan, train, ~held_out)),
        "valid": list(_image_tasks(plan, train, held_out)),
        "test": list(_image_tasks(plan, test, np.ones(len(test.labels), bool))),
    }
    made = build(name, summary_of(name), streams, plan.task_classes, plan.images.classes, plan.scenario)
    return replace(made, epochs=plan.epochs, batch_size=plan.batch_size)


def _image_tasks(plan: Plan, images: Labelled, wanted: NDArray[np.bool_]) -> Iterator[ImageTask]:
    """One dataset for each task, all on the same pixels and labels."""
    pixels, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
    mean, std = (np.array(constants, np.float64) for constants in (plan.images.mean, plan.images.std))
    gain = torch.from_numpy(1 / (plan.images.white * std)).to(torch.float32)
    shift = torch.from_numpy(-mean / std).to(torch.float32)
    permutations = plan.permutations or (None,) * len(plan.task_classes)
    for classes, permutation in zip(plan.task_classes, permutations, strict=True):
        rows = torch.from_numpy(np.flatnonzero(wanted & np.isin(images.labels, classes)))
        moved = None if permutation is None else torch.from_numpy(permutation)
        yield ImageTask(pixels, labels, rows, gain, shift, moved)


def _split(images: ImageSet, order: Order, tasks: int) -> Plan:
    return Plan(images, _tasks(_ordered(order, range(images.classes)), tasks))


def _tasks(order: Sequence[int], tasks: int) -> tuple[Classes, ...]:
    """The classes in their order, cut into tasks of equal size; ascending within a task."""
    _check_tasks(tasks, most=len(order))
    each, rest = divmod(len(order), tasks)
    if rest:
        fits = ", ".join(str(count) for count in range(1, len(order) + 1) if len(order) % count == 0)
        raise ValueError(f"{len(order)} classes do not divide into {tasks} equal tasks; these numbers fit: {fits}")
    return tuple(tuple(sorted(order[start : start + each])) for start in range(0, len(order), each))


def _check_tasks(tasks: int, most: int | None, least: int = 1) -> None:
    if not isinstance(tasks, int) or isinstance(tasks, bool) or tasks < least or (most is not None and tasks > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"`tasks` must be a whole number, {limits}, got {tasks!r}")


def _parsed(order: Order) -> Order:
    """An order given as text, as a number or a list of labels; any other order as it is."""
    if not isinstance(order, str):
        return order
    try:
        labels = [int(part) for part in order.split(",")]
    except ValueError:
        raise ValueError(f"a class order is a whole number from 0, or labels as in 3,1,4,…; got {order!r}") from None
    return labels if "," in order else labels[0]


def _ordered(order: Order, labels: range) -> tuple[int, ...]:
    if isinstance(order, bool) or (isinstance(order, int) and order < 0):
        raise ValueError(f"a class order is a whole number from 0, or a list of labels; got {order!r}")
    if isinstance(order, int):
        drawn = np.arange(len(labels)) if order == 0 else np.random.default_rng(order).permutation(len(labels))
        return tuple(labels[int(index)] for index in drawn)
    listed = tuple(int(label) for label in order)
    if sorted(listed) != list(labels):
        raise ValueError(
            f"a class order lists each label from {labels[0]} to {labels[-1]} once, "
            f"got {len(listed)} labels: {', '.join(map(str, listed))}"
        )
    return listed
