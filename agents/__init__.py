"""Sparse reinforcement-learning agents, each a Stable-Baselines3 algorithm."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.nstep_replay import NStepReplay
    from agents.policies import SparseSACPolicy, SparseTD3Policy
    from agents.presets import AGENT_PRESETS, AgentPreset
    from agents.replay import Float32ReplayBuffer
    from agents.sac import SparseSAC
    from agents.sparse import SparseAgent
    from agents.td3 import SparseTD3

__all__ = [
    "AGENT_PRESETS", "AgentPreset", "Float32ReplayBuffer", "NStepReplay", "SparseAgent", "SparseSAC", "SparseSACPolicy",
    "SparseTD3", "SparseTD3Policy",
]  # fmt: skip

_HOMES = {
    "AGENT_PRESETS": "presets",
    "AgentPreset": "presets",
    "Float32ReplayBuffer": "replay",
    "NStepReplay": "nstep_replay",
    "SparseAgent": "sparse",
    "SparseSAC": "sac",
    "SparseSACPolicy": "policies",
    "SparseTD3": "td3",
    "SparseTD3Policy": "policies",
}


def __getattr__(name: str) -> Any:
    """Found when asked for, so that a list of presets need not wait for Stable-Baselines3."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"agents.{_HOMES[name]}"), name)
