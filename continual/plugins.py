"""Which of Avalanche's plugins cannot go with connections that move."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from avalanche.training.plugins import (
    EWCPlugin,
    GDumbPlugin,
    MASPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
)

# What does the same on a dense network, among the strategies here.
_INSTEAD = {
    EWCPlugin: "'ewc'", MASPlugin: "'mas'", SynapticIntelligencePlugin: "'si'", GDumbPlugin: "'gdumb'",
    RWalkPlugin: "'ewc' or 'si'",
}  # fmt: skip


def check_plugins(plugins: Iterable[Any] | None) -> None:
    """Raise a `ValueError` for a plugin that keeps numbers for each parameter, or replaces parameters."""
    for plugin in plugins or ():
        for kind, strategy in _INSTEAD.items():
            if isinstance(plugin, kind):
                raise ValueError(
                    f"{kind.__name__} wants the same parameters in every task, but connections move and parameters "
                    f"with them; leave it out, or take the strategy {strategy} on a dense network"
                )
