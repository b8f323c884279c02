"""AFAF: new tasks read the old neurons that their data excite most; reserved ones never change (arXiv:2110.05329)."""

from __future__ import annotations

from continual.afaf import AFAF
from continual.learner import Setup


def build(setup: Setup) -> AFAF:
    """The learner for a benchmark."""
    return AFAF.for_setup(setup)
