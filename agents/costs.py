"""What training has cost in arithmetic, by one formula for sparse and dense alike."""

from __future__ import annotations

from agents.td3 import SparseTD3
from sparse_core.meters import forward_flops, growth_flops, training_flops


def training_cost(model: SparseTD3, updates: int, steps: int) -> int:
    """FLOPs of `updates` critic updates and `steps` environment steps; evaluation is not in it.

    Per update and sample: the targets f_π + 2 f_Q, each critic 3 f_Q; at every policy update the
    actor's 3 f_π, one critic forward f_Q and its input gradient f_Q. Forward and backward are 3 f less the
    input gradient of the first layer, which nobody needs. Every environment step of the policy f_π;
    every gradient-guided change 2·B·N per captured batch.
    """
    critics = model.critic.q_networks
    actor_forward = forward_flops(model.actor)
    targets = actor_forward + sum(forward_flops(critic) for critic in critics)
    critic_update = targets + sum(training_flops(critic) for critic in critics)
    actor_update = training_flops(model.actor) + 2 * forward_flops(critics[0])
    total = model.batch_size * (critic_update * updates + actor_update * (updates // model.policy_delay))
    total += actor_forward * max(0, steps - model.learning_starts)
    sparsifier = model.critic_sparsifier
    if sparsifier is not None and sparsifier.needs_capture:
        batch = model.batch_size * model.sparse_options.capture_batches
        total += model.changes * (growth_flops(model.critic, batch) + growth_flops(model.actor, batch))
    return total
