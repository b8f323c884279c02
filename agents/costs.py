"""What training costs in arithmetic and memory, by one formula for sparse and dense alike."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from agents.td3 import SparseTD3
from sparse_core import csr, meters, sparse_layers
from sparse_core.meters import Bytes, capture_bytes, forward_flops, growth_flops, training_flops


def training_cost(model: SparseTD3, updates: int, steps: int) -> int:
    """FLOPs of `updates` critic updates and `steps` environment steps; evaluation is not in it.

    Per update and sample: the targets f_π + 2 f_Q, each critic 3 f_Q; at every policy update the
    actor's 3 f_π, one critic forward f_Q and its input gradient f_Q. Forward and backward are 3 f less the
    input gradient of the first layer, which nobody needs. Every environment step of the policy f_π;
    every gradient-guided change 2·B·N per captured batch. Connections count and nothing else: biases, activations
    and normalisations do not.
    """
    critics = model.critic.q_networks
    actor_forward = forward_flops(model.actor)
    targets = actor_forward + sum(forward_flops(critic) for critic in critics)
    critic_update = targets + sum(training_flops(critic) for critic in critics)
    actor_update = training_flops(model.actor) + 2 * forward_flops(critics[0])
    total = model.batch_size * (critic_update * updates + actor_update * (updates // model.policy_delay))
    total += actor_forward * max(0, steps - model.learning_starts)
    batch = model.batch_size * model.sparse_options.capture_batches
    for network, sparsifier in ((model.critic, model.critic_sparsifier), (model.actor, model.actor_sparsifier)):
        if sparsifier is not None and sparsifier.needs_capture:
            total += sparsifier.changes * growth_flops(network, batch)
    return total


def training_memory(model: SparseTD3) -> Bytes:
    """Bytes of actor, critics, targets and optimizers, and scratch of actor and critics, kept from step to step.

    A gradient-guided change also holds the batches it has captured.
    """
    for layer in sparse_layers(nn.ModuleList([model.actor, model.critic])).values():
        if layer.backend == "csr":
            csr.transpose(layer)  # training has it; an agent that was just restored has not yet
    memory = meters.memory(model.policy, optimizers=(model.actor.optimizer, model.critic.optimizer))
    scratch = meters.memory(model.actor, model.critic).scratch
    sparsifier = model.critic_sparsifier
    captured = 0
    if sparsifier is not None and sparsifier.needs_capture:
        batch = model.batch_size * model.sparse_options.capture_batches
        captured = capture_bytes(model.critic, batch) + capture_bytes(model.actor, batch)
    return replace(memory, scratch=scratch + captured)
