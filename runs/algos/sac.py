"""Soft actor-critic, sparse or dense (agents.SparseSAC)."""

from __future__ import annotations

from typing import Any

from stable_baselines3 import SAC

from agents import SparseSAC
from runs.algos import Algo
from runs.settings import Settings


def _options(settings: Settings) -> dict[str, Any]:
    return dict(
        ent_coef="auto" if settings.ent_coef is None else settings.ent_coef,
        target_update_interval=settings.target_update_interval,
    )


ALGO = Algo(SparseSAC, SAC, _options, heads=2)
