"""Sparse features of local patches, drawn and frozen in the first task, under a streaming LDA head; ours."""

from __future__ import annotations

from continual.baselines import check_choices
from continual.learner import Setup
from continual.means import STATISTICS_CHOICES
from continual.slda import SpaceNetSLDA


def build(setup: Setup) -> SpaceNetSLDA:
    """The learner for a benchmark."""
    return SpaceNetSLDA(setup=setup, **check_choices(setup, *STATISTICS_CHOICES, share=(0.6, 0.175), shrinkage=1e-4))
