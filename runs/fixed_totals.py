"""The sparsities of an agent whose distribution fixes the number of connections: known before anything is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

import envs
from envs.noise import Noise
from sparse_core import plan


def fixed_sparsities(
    env: str,
    noise: Noise | None,
    hidden: Sequence[int],
    dense: Sequence[str | int],
    distribution: str,
    actor: float | None,
    critic: float | None,
    heads: int = 1,
) -> tuple[float, float]:
    """Sparsity of the actor and of each critic; a `ValueError` where one was given that means another number.

    Args:
        env: a Gymnasium id.
        noise: what its observations get appended.
        hidden: widths.
        dense: layers kept dense.
        distribution: one that fixes the number of connections.
        actor: sparsity asked for, if any.
        critic: as `actor`.
        heads: last layers of the actor side by side.
    """
    observations, actions = space_sizes(env, noise)
    return (
        _sparsity([observations, *hidden, actions], heads, dense, distribution, actor),
        _sparsity([observations + actions, *hidden, 1], 1, dense, distribution, critic),
    )


def _sparsity(
    sizes: list[int], heads: int, dense: Sequence[str | int], distribution: str, asked: float | None
) -> float:
    modules: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        modules += [nn.Linear(fan_in, fan_out, device="meta"), nn.ReLU()]
    modules[-1:] = [nn.Linear(sizes[-2], sizes[-1], device="meta") for _ in range(1, heads)]
    network = nn.Sequential(*modules)  # named as SB3's where there is one head
    last = [str(len(modules) - head) for head in range(1, heads + 1)]
    dense = [each for item in dense for each in (last if item == "output" else [item])]
    planned = plan(network, asked, distribution=distribution, dense=dense)
    cells = {name: layer.weight.numel() for name, layer in network.named_children() if isinstance(layer, nn.Linear)}
    return 1 - sum(planned.counts.get(name, cells[name]) for name in cells) / sum(cells.values())


def space_sizes(env: str, noise: Noise | None = None) -> tuple[int, int]:
    """Numbers in an observation and in an action."""
    environment = envs.make(env, noise=noise)
    try:
        spaces = environment.observation_space, environment.action_space
        observations, actions = (math.prod(space.shape or ()) for space in spaces)
        return observations, actions
    finally:
        environment.close()
