"""SpaceNet as it was released: accumulated importance, outer-product growth, isolated reserved neurons (2007.07617)."""

from __future__ import annotations

from continual.learner import Setup
from continual.spacenet import SpaceNet2021


def build(setup: Setup) -> SpaceNet2021:
    """The release's algorithm; its quirks are numbered in docs/deviations.md."""
    return SpaceNet2021.for_setup(setup)
