"""Plain fine-tuning of a dense network, task after task: the lower end of what forgetting costs."""

from continual.baselines import SGD_CHOICES, Baseline, check_choices
from continual.learner import Learner, Setup


def build(setup: Setup) -> Learner:
    """Fine-tuning on a dense perceptron."""
    check_choices(setup, *SGD_CHOICES)
    return Baseline(setup=setup)
