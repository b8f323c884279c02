"""Environments the agents learn in, each with a state that can be stored."""

from envs.registry import make, names
from envs.replayable import Replayable, ReplayMismatch

__all__ = ["ReplayMismatch", "Replayable", "make", "names"]
