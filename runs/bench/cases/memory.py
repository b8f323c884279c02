"""Bytes in training: values, indices, transposes, gradients, moments, ages, scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

import torch
from torch import nn
from torch.optim import Optimizer

from runs.bench import rivals
from runs.bench.rows import Row
from runs.bench.session import Session
from runs.bench.timing import Effort
from sparse_core import Adam, SparseMLP, Sparsifier
from sparse_core.meters import Bytes, memory

WIDTHS = (256, 1024)
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)
AGENT_SPARSITIES = (0.5, 0.8, 0.9, 0.95)
FULL = QUICK = Effort(sample_seconds=0, seconds=0, least=1, most=1)  # bytes are counted, once


def measure(
    session: Session,
    effort: Effort,
    *,
    widths: Sequence[int] = WIDTHS,
    sparsities: Sequence[float] = SPARSITIES,
    agent_sparsities: Sequence[float] = AGENT_SPARSITIES,
) -> list[Row]:
    """A network of a critic's shape with Adam, and a whole agent with its targets, each against the dense one."""
    session.expect(len(widths) * (1 + len(sparsities)) + 1 + len(agent_sparsities))
    rows = []
    for width in widths:
        session.say(f"counting networks {width} wide")
        dense = dense_network(width)
        rows += [_row("network with Adam", s, width, sparse_network(width, s), dense, "csr") for s in sparsities]
    session.say("counting agents")
    dense, _ = agent(0.0)
    for sparsity in agent_sparsities:
        mine, backend = agent(sparsity)
        rows.append(_row("agent", sparsity, rivals.WIDTH, mine, dense, backend))
    return rows


def _row(what: str, sparsity: float, width: int, ours: Bytes, dense: Bytes, backend: str) -> Row:
    return Row(
        what, sparsity, width, "dense", [ours.total], [dense.total], backend=backend, unit="bytes",
        details={"parts": {"ours": asdict(ours), "peer": asdict(dense)}},
    )  # fmt: skip


def dense_network(width: int) -> Bytes:
    """A dense network with `torch.optim.Adam`, after one update."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(_sizes(width)):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(network.parameters())
    _update(network, optimizer)
    return memory(network, optimizers=(optimizer,))


def sparse_network(width: int, sparsity: float) -> Bytes:
    """A sparse network with our Adam, after one update and one topology change, from which on ages differ."""
    generator = torch.Generator().manual_seed(0)
    network = SparseMLP(_sizes(width), sparsity=sparsity, generator=generator, backend="csr")
    optimizer = Adam(network.parameters())
    sparsifier = Sparsifier.preset("set", network, optimizer, period=1, seed=0)
    _update(network, optimizer)
    if not sparsifier.step():
        raise RuntimeError("the topology did not change, so connections have no ages yet to be counted")
    return memory(network, optimizers=(optimizer,))


def _sizes(width: int) -> list[int]:
    return [rivals.OBSERVATIONS + rivals.ACTIONS, width, width, 1]


def _update(network: nn.Module, optimizer: Optimizer) -> None:
    network(torch.ones(4, rivals.OBSERVATIONS + rivals.ACTIONS)).sum().backward()
    optimizer.step()


def agent(sparsity: float) -> tuple[Bytes, str]:
    """Actor, critics, targets and optimizers of our agent after a topology change; and what multiplies in it."""
    made = rivals.ours(rivals.HalfCheetahSpaces(), sparsity, rivals.WIDTH, batch_size=4, period=2)
    rivals.fill(made, rows=4)
    made.train(gradient_steps=4, batch_size=4)
    networks = (made.actor, made.critic, made.actor_target, made.critic_target)
    optimizers = (made.actor.optimizer, made.critic.optimizer)
    return memory(*networks, optimizers=optimizers), rivals.backend_of(made)
