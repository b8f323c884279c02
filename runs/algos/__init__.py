"""Algorithms that `train` knows: a file in this folder is one, its first line what `list algos` says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents import SparseAgent


@dataclass(frozen=True)
class Algo:
    """What a file says of its algorithm, as `ALGO`."""

    agent: type[SparseAgent]
    plain: type[OffPolicyAlgorithm]
    """SB3's own, to which `export --to sb3` goes."""
    options: Callable[[Any], dict[str, Any]]
    """Of the `Settings`, arguments that only this algorithm takes; `agent` and `plain` take them alike."""
    heads: int = 1
    """Numbers that the actor's network puts out for each action."""


def find(name: str) -> Algo:
    """The algorithm of this name, which the command line has checked."""
    found: Algo = import_module(f"runs.algos.{name}").ALGO
    return found
