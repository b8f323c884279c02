"""The gradient of an agent's losses on given transitions, looked at without learning from it."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

from agents.moving import MovingTopologies
from sparse_core.topology_measures import layer_weights, squared_norms


def gradient_flow_at(model: MovingTopologies, batch: ReplayBufferSamples) -> dict[str, float]:
    """Squared norm of the gradient at each layer's connections, of actor and critics, on these transitions.

    Of the agent's `losses` with the weights as they are. No gradient is left behind, growth rules see none of it, and
    what the losses draw comes from a seed of its own (0): torch's generators stand where they stood. Layers are named
    as in the agent, `critic.qf0.2`. See `sparse_core.gradient_flow`.
    """
    devices = [] if model.device.type == "cpu" else [model.device]
    with ExitStack() as stack, torch.enable_grad(), torch.random.fork_rng(devices):
        for sparsifier in (model.actor_sparsifier, model.critic_sparsifier):
            if sparsifier is not None:
                stack.enter_context(sparsifier.paused())
        torch.manual_seed(0)
        critic_loss, actor_loss = model.losses(batch)
        found = _gradients("critic", model.critic, critic_loss) | _gradients("actor", model.actor, actor_loss)
    return squared_norms(found)


def _gradients(owner: str, network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Of the weights of a network's layers, by their names."""
    weights = layer_weights(network)
    gradients = torch.autograd.grad(loss, [*weights.values()])
    return {f"{owner}.{name}": gradient for name, gradient in zip(weights, gradients, strict=True)}
