"""Algorithms that `train` knows: a file in this folder is one, its first line what `list algos` says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents import SparseAgent
from sparse_core.registry import hint


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
    """The algorithm of this name; a `ValueError` for another than the files here."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    if name not in known:
        raise ValueError(f"no algorithm called {name!r}; {hint(name, known)}")
    found: Algo = import_module(f"runs.algos.{name}").ALGO
    return found
