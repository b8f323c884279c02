"""Streaming linear discriminant analysis of pixels: class means and one covariance, in one pass (arXiv:1909.01520)."""

from continual.baselines import check_choices
from continual.lda import StreamingLDA
from continual.learner import Learner, Setup
from continual.means import STATISTICS_CHOICES, StatisticsStrategy


def build(setup: Setup) -> Learner:
    """Discriminant analysis of pixels."""
    options = check_choices(setup, *STATISTICS_CHOICES, shrinkage=1e-2)
    lda = StreamingLDA(setup.inputs, setup.benchmark.classes, device=setup.device, **options)
    return StatisticsStrategy(setup=setup, statistics=lda)
