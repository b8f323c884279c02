"""Twin delayed deep deterministic policy gradient, sparse or dense (agents.SparseTD3)."""

from __future__ import annotations

from typing import Any

from stable_baselines3 import TD3

from agents import SparseTD3
from runs.algos import Algo
from runs.settings import Settings


def _options(settings: Settings) -> dict[str, Any]:
    return dict(
        policy_delay=settings.policy_delay,
        target_policy_noise=settings.target_policy_noise,
        target_noise_clip=settings.target_noise_clip,
    )


ALGO = Algo(SparseTD3, TD3, _options)
