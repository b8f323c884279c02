"""Sparse continual learners as Avalanche strategies, and the benchmarks and metrics they are measured with.

Avalanche takes seconds to import, so what needs it is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continual.benchmarks import make_benchmark, wrap
    from continual.catalogue import build_strategy, strategy_names
    from continual.learner import Setup
    from continual.networks import SubspaceNetwork
    from continual.ood import SpaceNetOOD
    from continual.options import Sizes
    from continual.rehearsal import SpaceNetRehearsal
    from continual.spacenet import SpaceNet, SpaceNet2021

_HOMES = {
    "Setup": "learner",
    "Sizes": "options",
    "SpaceNet": "spacenet",
    "SpaceNet2021": "spacenet",
    "SpaceNetOOD": "ood",
    "SpaceNetRehearsal": "rehearsal",
    "SubspaceNetwork": "networks",
    "build_strategy": "catalogue",
    "make_benchmark": "benchmarks",
    "strategy_names": "catalogue",
    "wrap": "benchmarks",
}

__all__ = [
    "Setup",
    "Sizes",
    "SpaceNet",
    "SpaceNet2021",
    "SpaceNetOOD",
    "SpaceNetRehearsal",
    "SubspaceNetwork",
    "build_strategy",
    "make_benchmark",
    "strategy_names",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"continual has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"continual.{_HOMES[name]}"), name)
