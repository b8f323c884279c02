"""Learners of statistics alone: class means, or means and one covariance, of pixels or of features never trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from continual.baselines import bytes_of, only, silent_evaluator
from continual.learner import Costs, Setup
from continual.loading import InMemory
from continual.networks import all_biases
from sparse_core import sparse_layers

STATISTICS_CHOICES = ("batch_size",)


class Statistics(Protocol):
    """What a stream of samples leaves behind."""

    means: Tensor

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in samples x (n, …) with labels y (n,)."""

    def scores(self, x: Tensor) -> Tensor:
        """Scores (n, labels), -inf for labels never seen."""

    @property
    def nbytes(self) -> int:
        """Bytes of the statistics."""

    def state(self) -> dict[str, Any]:
        """What was learned, as tensors."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""


class NearestMeans:
    """One mean for each class; the nearest one wins. Exact whatever the batches, in float64.

    Args:
        features: numbers in a sample; x of more dimensions is flattened.
        labels: how many there are; y is below.
        device: where means are kept.
    """

    def __init__(self, features: int, labels: int, device: str | torch.device = "cpu") -> None:
        self.counts = torch.zeros(labels, dtype=torch.float64, device=device)
        self.means = torch.zeros(labels, features, dtype=torch.float64, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of counts and means."""
        return self.counts.nbytes + self.means.nbytes

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in samples x (n, …) with labels y (n,)."""
        x, y = x.flatten(1).to(self.means), y.to(self.counts.device)
        self.counts += torch.bincount(y, minlength=self.counts.numel())
        # Distances to the mean so far are small, sums over the whole stream are not.
        away = torch.zeros_like(self.means).index_add_(0, y, x - self.means[y])
        self.means += away / self.counts.clamp(min=1).unsqueeze(1)

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """Minus half the squared distance to every mean, but for what all have in common: (n, labels)."""
        scores = x.flatten(1).to(self.means) @ self.means.T - self.means.square().sum(1) / 2
        return scores.masked_fill(self.counts == 0, -torch.inf).to(x.device)

    def state(self) -> dict[str, Any]:
        """What was learned, as tensors."""
        return {"counts": self.counts.clone(), "means": self.means.clone()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.counts, self.means = (state[name].to(self.means, copy=True) for name in ("counts", "means"))


class StatisticsStrategy(InMemory, SupervisedTemplate):
    """An Avalanche strategy without gradients: one pass over the data fills statistics of fixed features.

    Args:
        setup: what it is made for; of its choices, the batch size is one, and changes speed alone.
        statistics: takes samples in and scores them.
        features: from samples (n, …) to what the statistics are of, never trained; the samples themselves by default.
    """

    def __init__(self, *, setup: Setup, statistics: Statistics, features: nn.Module | None = None) -> None:
        super().__init__(
            model=nn.Identity() if features is None else features.to(setup.device), optimizer=None,
            criterion=nn.CrossEntropyLoss(), train_epochs=1, train_mb_size=setup.batch_size or 1024, eval_mb_size=1024,
            device=setup.device, plugins=list(setup.plugins), evaluator=setup.evaluator or silent_evaluator(),
        )  # fmt: skip
        self.setup, self.statistics, self.batch_seed = setup, statistics, setup.seed

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """There is nothing to optimize."""

    def training_epoch(self: Any, **kwargs: Any) -> None:
        """One pass: what each batch leaves in the statistics."""
        for batch in self.dataloader:
            self.mbatch = batch
            if self._stop_training:
                break
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self._before_forward(**kwargs)
            with torch.no_grad():
                features = self.model(self.mb_x)
            self.statistics.update(features, self.mb_y)
            if self.evaluator.metrics:  # nobody else asks, and scores cost more than the statistics
                self.mb_output = self.statistics.scores(features)
            self._after_forward(**kwargs)
            self._after_training_iteration(**kwargs)

    def forward(self: Any) -> Tensor:
        """Scores of the mini-batch."""
        return self.class_scores(self.mb_x)

    @torch.no_grad()
    def class_scores(self: Any, x: Tensor) -> Tensor:
        """Scores (n, labels) with the task not known; -inf for labels never seen."""
        return self.statistics.scores(self.model(x.to(self.device))).to(x.device)

    def task_scores(self, x: Tensor, number: int) -> Tensor:
        """Scores (n, labels) of the classes of task `number` (from 0), -inf elsewhere."""
        return only(self.setup.benchmark.task_classes[number], self.class_scores(x))

    def costs(self: Any) -> Costs:
        """Features, statistics, and the linear scores that are worked out from them when they are asked for."""
        layers = sparse_layers(self.model).values()
        connections = sum(layer.nnz for layer in layers) + self.statistics.means.numel()
        return Costs(
            nnz=connections, neurons=sum(int((layer.row_pointer.diff() > 0).sum()) for layer in layers),
            parameter_bytes=sum(
                bytes_of([layer.values, layer.frozen_values, all_biases(layer)]) for layer in layers if layer.nnz
            ),
            index_bytes=sum(layer.columns.nbytes + layer.row_pointer.nbytes for layer in layers),
            statistic_bytes=self.statistics.nbytes, flops=2 * connections,
        )  # fmt: skip
