"""Synaptic intelligence: weights along which the loss fell are held, as told by their path (arXiv:1703.04200)."""

from continual.baselines import SGD_CHOICES, Baseline, check_choices
from continual.learner import Learner, Setup
from continual.methods import SI


def build(setup: Setup) -> Learner:
    """Avalanche's synaptic intelligence on a dense perceptron."""
    method = SI(**check_choices(setup, *SGD_CHOICES, si_lambda=100.0))
    return Baseline(setup=setup, methods=[method], statistics=method.kept)
