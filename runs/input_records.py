"""Which inputs of noisy observations keep connections: the environment's own features, or noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

import envs
from agents import SparseAgent
from runs.scoring import shown_at
from runs.topology_records import input_connections


def real_features(model: SparseAgent, step: int) -> list[int] | None:
    """Which features of an observation are the environment's own at `step`; None where all of them are."""
    env = model.get_env()
    assert env is not None
    noisy = envs.noisy_features(env.envs[0])  # type: ignore[attr-defined]
    if noisy is None:
        return None
    own: list[int] = np.flatnonzero(noisy.places(shown_at(step)) < noisy.real).tolist()
    return own


def connections_on_real(model: SparseAgent, step: int) -> dict[str, list[float]]:
    """What `shares_of` says of the agent at `step`; nothing where no feature is noise."""
    real = real_features(model, step)
    return {} if real is None else shares_of(input_connections(model), real)


def shares_of(inputs: Mapping[str, Sequence[int]], real: Sequence[int]) -> dict[str, list[float]]:
    """Of actor and critics: the share of the first layers' connections from observations that are on real features,
    and connections of one network out of a real feature and out of a noise feature, on average.

    Args:
        inputs: connections out of each input by network; those of critics have actions after the observations, which
            are not looked at.
        real: which features of an observation are real.
    """  # noqa: D205
    features, found = len(inputs["actor"]), {}
    is_real = np.isin(np.arange(features), real)
    for owner in ("actor", "critic"):
        counts = np.mean([each[:features] for name, each in inputs.items() if name.startswith(owner)], axis=0)
        share = counts[is_real].sum() / max(counts.sum(), 1)
        found[owner] = [float(share), float(counts[is_real].mean()), float(counts[~is_real].mean())]
    return found
