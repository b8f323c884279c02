"""SpaceNet in strict subnetworks whose one-vs-rest heads learn to refuse pseudo-outliers; ours."""

from __future__ import annotations

from continual.learner import Setup
from continual.ood import SpaceNetOOD


def build(setup: Setup) -> SpaceNetOOD:
    """The learner for a benchmark."""
    return SpaceNetOOD.for_setup(setup, isolation="strict")
