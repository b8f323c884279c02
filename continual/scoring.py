"""How finished and current tasks score samples, with the task known and not known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from continual.archive import Archive, Task
from continual.networks import SubspaceNetwork
from continual.options import SubspaceOptions


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within this block the network is in evaluation mode."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


class Scoring:
    """A mixin: scores of a strategy that keeps its finished tasks in an `Archive`."""

    network: SubspaceNetwork
    archive: Archive
    options: SubspaceOptions
    labels: int
    experience: Any
    device: torch.device
    _current: Task | None

    @property
    def tasks(self) -> list[Task]:
        """The finished tasks."""
        return self.archive.tasks

    @property
    def strict(self) -> bool:
        """Whether a task reads only what stood when it ended."""
        return self.options.isolation == "strict"

    def _by_label(self, logits: Tensor) -> Tensor:
        """Units of the current task in the places of their labels."""
        assert self._current is not None
        scores = logits.new_full((logits.shape[0], self.labels), -torch.inf)
        places = torch.tensor(self._current.classes, device=logits.device)
        return scores.index_copy(1, places, logits[:, self._current.units.to(logits.device)])

    def _known_task(self) -> int | None:
        """Which task the benchmark says the samples are of; None where it does not say."""
        told = [task.label for task in self._all_tasks()]
        given = {int(label) for label in getattr(self.experience, "task_labels", [])}
        if len(told) < 2 or len(set(told)) < len(told) or len(given) != 1:
            return None
        label = given.pop()
        return told.index(label) if label in told else None

    @torch.no_grad()
    def class_scores(self, x: Tensor) -> Tensor:
        """Scores (n, labels) with the task not known; -inf for labels of no task so far."""
        with evaluating(self.network):
            parts = self._task_logits(x.to(self.device))
        scores = self._no_scores(x)
        for task, logits in zip(self._all_tasks(), parts, strict=True):
            places = torch.tensor(task.classes, device=x.device)
            scores.index_copy_(1, places, torch.maximum(scores[:, places], logits.to(x.device)))
        return scores

    @torch.no_grad()
    def task_scores(self, x: Tensor, number: int) -> Tensor:
        """Scores (n, labels) within a task that is known, -inf elsewhere; without information for one still to come."""
        scores, tasks = self._no_scores(x), self._all_tasks()
        if number < len(tasks):
            with evaluating(self.network):
                logits = self._network_of(number)(x.to(self.device)).to(x.device)
            places = torch.tensor(tasks[number].classes, device=x.device)
            scores[:, places] = logits[:, tasks[number].units.to(x.device)]
        return scores

    def _no_scores(self, x: Tensor) -> Tensor:
        first = next(iter(self.network.parameters()))
        return torch.full((x.shape[0], self.labels), -torch.inf, dtype=first.dtype, device=x.device)

    def _all_tasks(self) -> list[Task]:
        return [*self.tasks, *([self._current] if self._current else [])]

    def _task_logits(self, x: Tensor) -> list[Tensor]:
        """For each task its classes' logits, comparable between tasks as far as the method makes them so."""
        tasks = self._all_tasks()
        if not self.strict:
            logits = self.network(x)
            return [logits[:, task.units.to(x.device)] for task in tasks]
        return [self._network_of(number)(x)[:, task.units.to(x.device)] for number, task in enumerate(tasks)]

    def _network_of(self, number: int) -> SubspaceNetwork:
        """The network as a task reads it."""
        if not self.strict or number == len(self.tasks):
            return self.network
        return self.archive.network_of(number)
