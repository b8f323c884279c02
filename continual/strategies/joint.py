"""Training once on all tasks' data together: no continual learner, but what one is measured against."""

from __future__ import annotations

from typing import Any

from avalanche.training.supervised import JointTraining

from continual.baselines import SGD_CHOICES, Dense, check_choices
from continual.learner import Learner, Setup
from continual.tensors import classes_of


class Joint(Dense, JointTraining):
    """Avalanche's joint training on a dense perceptron: `train_all` instead of one `train` for each experience.

    There is one row of accuracies and no matrix. Every class is in every head, so the heads are alike.
    """

    joint = True

    def train_all(self, stream: Any) -> None:
        """Learn all experiences of a stream at once; an error the second time."""
        self.train(list(stream))

    def classes_to_learn(self) -> tuple[int, ...]:
        """The classes of all experiences."""
        return tuple(sorted({label for each in self._experiences for label in classes_of(each)}))


def build(setup: Setup) -> Learner:
    """Joint training on a dense perceptron."""
    check_choices(setup, *SGD_CHOICES)
    return Joint(setup=setup, learning_rate=0.3)
