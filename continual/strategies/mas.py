"""Memory aware synapses: weights that the outputs depend on are held, told without labels (arXiv:1711.09601)."""

from continual.baselines import SGD_CHOICES, Baseline, check_choices
from continual.learner import Learner, Setup
from continual.methods import MAS


def build(setup: Setup) -> Learner:
    """Avalanche's MAS on a dense perceptron."""
    method = MAS(**check_choices(setup, *SGD_CHOICES, lambda_reg=1.0, alpha=0.5))
    return Baseline(setup=setup, methods=[method], statistics=lambda: [method.params or (), method.importance or ()])
