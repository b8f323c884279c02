"""Learning without forgetting: the network before a task says what the new one must still answer (arXiv:1606.09282)."""

from avalanche.training.plugins import LwFPlugin

from continual.baselines import SGD_CHOICES, Baseline, check_choices
from continual.learner import Learner, Setup


def build(setup: Setup) -> Learner:
    """Avalanche's LwF on a dense perceptron."""
    method = LwFPlugin(**check_choices(setup, *SGD_CHOICES, alpha=10.0, temperature=2.0))
    return Baseline(setup=setup, methods=[method], statistics=lambda: [method.lwf.prev_model or ()])
