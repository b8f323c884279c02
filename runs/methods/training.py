"""One run: a perceptron on images with one method at one sparsity."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runs.methods.watching import Watch
from runs.small_dense import narrowed, weights_of
from sparse_core import PRESETS, Adam, Correlated, SparseMLP, Sparsifier, generators, meters, settle, sparse_layers

SMALL_DENSE = "small-dense"
LOOKS = 4  # looks at validation images an epoch


@dataclass(frozen=True)
class Task:
    """Images (n, features) and labels (n,) to learn from, to watch training with, and to test with once."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int


@dataclass(frozen=True)
class Training:
    """How a perceptron is trained."""

    hidden: tuple[int, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    target: float
    initial_topology: str | None = None


def train(
    task: Task, training: Training, topology: str, sparsity: float, seed: int, tick: Callable[[], None]
) -> dict[str, Any]:
    """Train one perceptron, and say what it reached and cost; `tick` is called after every epoch."""
    draws = generators(seed, "network", "batches", "small-world")
    model = _network(task, training, topology, sparsity, draws["network"])
    optimizer = Adam(model.parameters(), lr=training.learning_rate)
    settle(model, training.batch_size)
    steps = len(task.train[1]) // training.batch_size
    method = "dense" if topology == SMALL_DENSE else topology
    sparsifier = Sparsifier.preset(
        method,
        model,
        optimizer,
        total_steps=steps * training.epochs,
        seed=seed,
        sparsity=sparsity,
        **_period(method, steps),
    )
    peak = meters.memory(model, optimizers=(optimizer,)).total
    seconds, reached, course, watch = 0.0, None, [], Watch(model, sparsifier.choices.changes)
    for _ in range(training.epochs):
        order = torch.randperm(len(task.train[1]), generator=draws["batches"])[: steps * training.batch_size]
        for part in order.view(steps, -1).tensor_split(LOOKS):
            begun = time.process_time()  # what else runs on the machine does not lengthen it
            _learn(model, optimizer, sparsifier, task.train, part, watch)
            seconds += time.process_time() - begun
            settle(model, training.batch_size)
            course.append(accuracy(model, *task.validation))
            watch.look()
            if reached is None and course[-1] >= training.target:
                reached = seconds
            peak = max(peak, meters.memory(model, optimizers=(optimizer,)).total + sparsifier.remembered_bytes)
        tick()
    samples = steps * training.batch_size * training.epochs
    return {
        "accuracy": accuracy(model, *task.test),
        "validation": course,
        "nnz": meters.nnz(model),
        "sparsity_reached": meters.sparsity(model),
        "changes": sparsifier.changes,
        "measures": watch.close(draws["small-world"]),
        "flops": _flops(model, sparsifier, samples, training.batch_size),
        "bytes": peak,
        "backends": {name: layer.backend for name, layer in sparse_layers(model).items()},
        "measured": {"seconds": seconds, "seconds_to_target": reached},
    }


def _network(task: Task, training: Training, topology: str, sparsity: float, draws: torch.Generator) -> nn.Module:
    features = task.train[0].shape[1]
    sizes = [features, *training.hidden, task.classes]
    if topology == SMALL_DENSE:
        wanted = (1 - sparsity) * weights_of(sizes)
        sizes = [
            features,
            *narrowed(training.hidden, lambda hidden: weights_of([features, *hidden, task.classes]), wanted),
            task.classes,
        ]
    if topology in (SMALL_DENSE, "dense"):
        return SparseMLP(sizes, sparsity=0.0, generator=draws)
    initial = Correlated(task.train[0]) if training.initial_topology == "correlated" else training.initial_topology
    return SparseMLP(
        sizes, sparsity=sparsity, topology=topology, dense=(), initial_topology=initial, backend="auto",
        generator=draws,
    )  # fmt: skip


def _period(topology: str, steps: int) -> dict[str, int]:
    """A method's own period, at most an epoch: on few images a paper's 4,000 steps would never come."""
    preset = PRESETS[topology]
    return {"period": min(preset.period, steps)} if preset.changes else {}


def _learn(
    model: nn.Module, optimizer: Adam, sparsifier: Sparsifier, data: tuple[Tensor, Tensor], part: Tensor, watch: Watch
) -> None:
    images, labels = data
    for rows in part:
        optimizer.zero_grad()
        backward = partial(_backward, model, images[rows], labels[rows])
        backward()
        optimizer.step()
        watch.step(sparsifier.step(closure=backward))


def _backward(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    F.cross_entropy(model(images), labels).backward()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose label scores highest."""
    parts = zip(images.split(2048), labels.split(2048), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in parts) / len(labels)


def _flops(model: nn.Module, sparsifier: Sparsifier, samples: int, batch: int) -> int:
    total = samples * meters.training_flops(model, weights=sparsifier.mean_weights)
    if sparsifier.looks:
        total += sparsifier.looks * meters.growth_flops(model, batch, dense=sparsifier.looks_at_dense_gradient)
    return total
