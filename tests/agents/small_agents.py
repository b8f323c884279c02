"""Small worlds and agents that the tests of `agents` share."""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import TD3
from stable_baselines3.common.logger import Logger

from agents import SparseTD3
from agents.autograd_update import AutogradUpdate
from sparse_core import PRESETS, SparseLinear, Topology, sparse_layers
from sparse_core.meters import topology_distance

EPISODE = 8

# What each test runs over: one of each kind. test_methods.py has every one of the registry.
METHODS = ["dense", "static", "final-topology", "set", "rigl", "reset-in-place"]
MOVING = [name for name in METHODS if PRESETS[name].changes]
SEARCHING = [name for name in METHODS if PRESETS[name].searches]


class Reach(gymnasium.Env):
    """Each step shows a point; the reward is best where the action is the point's first two coordinates, doubled."""

    observation_space = spaces.Box(-1.0, 1.0, (3,), np.float64)
    action_space = spaces.Box(-2.0, 2.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.point = self.np_random.uniform(-1, 1, 3)
        return self.point, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = -float(np.square(action - 2 * self.point[:2]).sum())
        self.point = self.np_random.uniform(-1, 1, 3)
        return self.point, reward, False, False, {}


def reach() -> gymnasium.Env:
    return TimeLimit(Reach(), EPISODE)


def agent(env: Any = None, kind: type = SparseTD3, **options: Any) -> Any:
    """An agent that learns from step 20 on and changes its topology every 10 updates."""
    defaults: dict[str, Any] = dict(
        learning_starts=20, batch_size=16, buffer_size=400, seed=0, device="cpu",
        policy_kwargs=dict(net_arch=[16, 16]),
    )  # fmt: skip
    if kind is SparseTD3 and options.get("topology") != "dense":
        defaults |= dict(sparsity=0.6, period=10)
    chosen = {**defaults, **options}
    if kind is SparseTD3 and PRESETS[chosen.get("topology", "set")].given and "topologies" not in chosen:
        # Those of an agent with another seed, as if it had found them.
        donor = agent(env, kind, **{**chosen, "topology": "static", "seed": 77 + chosen["seed"]})
        chosen["topologies"] = {name: topology for name, topology in topologies(donor).items() if "target" not in name}
    return kind("MlpPolicy", reach() if env is None else env, **chosen)


def fill(model: TD3, rows: int = 200, seed: int = 0) -> TD3:
    """Give an agent experience that the seed decides, and a logger, so that `train` can be called."""
    draws = np.random.default_rng(seed)
    buffer = model.replay_buffer
    assert buffer is not None
    for row in range(rows):
        here, there = draws.uniform(-1, 1, (2, 1, *buffer.obs_shape)).astype(np.float32)
        action = draws.uniform(-1, 1, (1, buffer.action_dim)).astype(np.float32)
        done = row % 7 == 6
        buffer.add(
            here, there, action, draws.normal(size=1), np.array([done]), [{"TimeLimit.truncated": row % 14 == 6}]
        )
    model.set_logger(Logger(None, []))
    return model


def autograd(model: SparseTD3) -> SparseTD3:
    """Let torch's autograd compute the updates of an agent that would do without it."""
    model._make_update = lambda batch_size: AutogradUpdate(model, batch_size)
    return model


PAIRS = (("actor", "actor_target"), ("critic", "critic_target"))


def target_distance(model: SparseTD3) -> float:
    """The largest distance between a layer's topology, or what it multiplies, and that of its target."""
    return max(
        (
            topology_distance(layer.active_topology, sparse_layers(getattr(model, target))[name].active_topology)
            for online, target in PAIRS
            for name, layer in sparse_layers(getattr(model, online)).items()
        ),
        default=0.0,
    )


def topologies(model: SparseTD3) -> dict[str, Topology]:
    return {name: layer.topology for name, layer in sparse_layers(model.policy).items()}


def dense_state(model: TD3) -> dict[str, torch.Tensor]:
    """All that an agent learns, zeros where there is no connection, under a dense agent's names."""
    state = {}
    for name, module in model.policy.named_modules():
        if isinstance(module, SparseLinear):
            module = module.to_dense()
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm):
            state |= {f"{name}.{own}": value.detach().clone() for own, value in module.named_parameters()}
    return state


def same(first: Any, second: Any) -> bool:
    """Whether two nested states are equal to the bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(one, other) for one, other in zip(first, second, strict=True))
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return bool(first == second)
