"""Sparse reinforcement-learning agents, each a Stable-Baselines3 algorithm."""

from agents.policies import SparseTD3Policy
from agents.presets import AGENT_PRESETS, AgentPreset
from agents.replay import Float32ReplayBuffer
from agents.td3 import SparseTD3

__all__ = ["AGENT_PRESETS", "AgentPreset", "Float32ReplayBuffer", "SparseTD3", "SparseTD3Policy"]
