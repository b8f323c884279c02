"""Elastic weight consolidation: weights that the Fisher information calls important are held (arXiv:1612.00796)."""

from continual.baselines import SGD_CHOICES, Baseline, check_choices
from continual.learner import Learner, Setup
from continual.methods import EWC


def build(setup: Setup) -> Learner:
    """Avalanche's EWC on a dense perceptron, one penalty for each earlier task."""
    method = EWC(**check_choices(setup, *SGD_CHOICES, ewc_lambda=1e4))
    return Baseline(setup=setup, methods=[method], statistics=lambda: [method.saved_params, method.importances])
