"""SpaceNet, ours: one shared network, fresh importance at each change, gradient growth (after arXiv:2007.07617)."""

from __future__ import annotations

from continual.learner import Setup
from continual.spacenet import SpaceNet


def build(setup: Setup) -> SpaceNet:
    """The learner for a benchmark."""
    return SpaceNet.for_setup(setup)
