"""SpaceNet that rehearses stored images, 200 a class unless --memory says otherwise; bytes counted."""

from __future__ import annotations

from continual.learner import Setup
from continual.rehearsal import SpaceNetRehearsal


def build(setup: Setup) -> SpaceNetRehearsal:
    """The learner for a benchmark."""
    return SpaceNetRehearsal.for_setup(setup)
