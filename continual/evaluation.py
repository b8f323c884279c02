"""One row of the accuracy matrix: every task's data scored once, with and without the task known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from continual.learner import Learner, knows_classes

Samples = tuple[Tensor, Tensor]


@torch.no_grad()
def accuracy_rows(
    learner: Learner, tasks: Sequence[Samples], batch_size: int = 2048
) -> tuple[list[float], list[float]]:
    """Accuracy on each task's samples (x, y), as fractions: with the task not known, and with it known.

    The first row is NaN for a learner that must know the task: one whose `scenarios` lack "class-il". A sample
    without a finite score, as of a task still to come, counts as wrong.
    """
    without, within = [], []
    needs_task = not knows_classes(learner)
    for number, (x, y) in enumerate(tasks):
        right_class = right_task = 0
        for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            if not needs_task:
                right_class += _right(learner.class_scores(images), labels)
            right_task += _right(learner.task_scores(images, number), labels)
        without.append(math.nan if needs_task else right_class / len(y))
        within.append(right_task / len(y))
    return without, within


def _right(scores: Tensor, labels: Tensor) -> int:
    best, found = scores.max(1)
    return int(((found == labels) & (best > -torch.inf)).sum())
