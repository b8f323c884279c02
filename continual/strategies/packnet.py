"""PackNet: each task keeps a share of a dense network's weights for good; must be told the task (arXiv:1711.05769)."""

from continual.baselines import SGD_CHOICES, check_choices
from continual.learner import Learner, Setup
from continual.packnet import PackNet


def build(setup: Setup) -> Learner:
    """Avalanche's PackNet on a dense perceptron."""
    return PackNet(setup=setup, learning_rate=0.1, **check_choices(setup, *SGD_CHOICES, post_prune_epochs=None))
