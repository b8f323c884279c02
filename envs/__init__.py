"""Environments the agents learn in, each with a state that can be stored."""

from envs.noise import Noise, NoisyFeatures, noisy_features
from envs.registry import make, names
from envs.replayable import Replayable, ReplayMismatch

__all__ = ["Noise", "NoisyFeatures", "ReplayMismatch", "Replayable", "make", "names", "noisy_features"]
