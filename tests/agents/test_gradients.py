"""Gradient flow of an agent: that of an update on the same transitions, and nobody notices that it was looked at."""

from typing import Any

import pytest
import torch
from small_agents import agent
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from agents import SparseSAC, SparseTD3
from agents.autograd_update import AutogradUpdate
from agents.gradients import gradient_flow_at
from agents.sac_update import SACUpdate
from sparse_core import gradient_flow, sparse_layers


def transitions(rows: int = 7) -> ReplayBufferSamples:
    draws = torch.Generator().manual_seed(0)
    seen, taken, after = (torch.randn(rows, width, generator=draws) for width in (3, 2, 3))
    ends = torch.arange(rows)[:, None] % 2
    return ReplayBufferSamples(seen, taken.tanh(), after, ends.float(), torch.randn(rows, 1, generator=draws))


@pytest.mark.parametrize(
    ("kind", "update", "options"),
    [
        (SparseTD3, AutogradUpdate, {}),
        (SparseTD3, AutogradUpdate, dict(norm="layer")),
        (SparseSAC, SACUpdate, dict(ent_coef=0.2)),
        (SparseSAC, SACUpdate, {}),
    ],
)
def test_flow_is_that_of_an_update(kind: type, update: type, options: dict[str, Any]) -> None:
    """Of one that changes nothing (learning rate 0), so that the actor sees the same critics."""
    model = agent(kind=kind, learning_rate=0.0, sparsity=0.6, backend="gemm", **options)
    model._setup_learn(100)
    batch = transitions()
    found = gradient_flow_at(model, batch)
    learner = update(model, len(batch.rewards))
    learner._batch = batch
    torch.manual_seed(0)
    learner.critics()
    learner.actor()
    flows = {f"critic.{name}": flow for name, flow in gradient_flow(model.critic).items()}
    flows |= {f"actor.{name}": flow for name, flow in gradient_flow(model.actor).items()}
    assert found == pytest.approx(flows)
    assert min(found.values()) > 0


def test_looking_leaves_no_trace() -> None:
    options = dict(learning_starts=10, period=4, stop=1.0, capture_batches=3, total_updates=100)
    model = agent(topology="rigl", **options)
    model.learn(21)
    layers = sparse_layers(model.policy)
    captured = {name: len(layer.capture or []) for name, layer in layers.items()}
    assert any(captured.values())
    before = torch.get_rng_state()
    parameters = {name: parameter.clone() for name, parameter in model.policy.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in model.policy.named_parameters()}
    with torch.no_grad():
        assert all(flow >= 0 for flow in gradient_flow_at(model, transitions()).values())
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: len(layer.capture or []) for name, layer in layers.items()} == captured
    for name, parameter in model.policy.named_parameters():
        assert torch.equal(parameter, parameters[name])
        assert parameter.grad is gradients[name]
