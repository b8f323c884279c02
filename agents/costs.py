"""What training costs in arithmetic and memory, by one formula for sparse and dense alike."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from agents.sparse import SparseAgent
from sparse_core import Sparsifier, csr, meters, sparse_layers
from sparse_core.meters import Bytes, capture_bytes, forward_flops, growth_flops, training_flops


def training_cost(model: SparseAgent, updates: int, steps: int) -> int:
    """FLOPs of `updates` critic updates and `steps` environment steps; evaluation is not in it.

    Per update and sample: the targets f_π + 2 f_Q, each critic 3 f_Q; at every policy update the
    actor's 3 f_π, and of each critic that its loss asks (TD3: one, SAC: all) the forward pass f_Q and the input
    gradient f_Q. Forward and backward are 3 f less the
    input gradient of the first layer, which nobody needs. Every environment step of the policy f_π;
    every gradient-guided change 2·B·N per captured batch, 2·B·n where it looks at as many places as there are
    connections. Where their number changes along training, its average counts. Connections count and nothing else:
    biases, activations and normalisations do not.
    """
    actor, own = mean_weights(model.actor_sparsifier), mean_weights(model.critic_sparsifier)
    critics = [(critic, _below(own, f"qf{index}")) for index, critic in enumerate(model.critic.q_networks)]
    forward = [forward_flops(critic, weights=weights) for critic, weights in critics]
    actor_forward = forward_flops(model.actor, weights=actor)
    targets = actor_forward + sum(forward)
    critic_update = targets + sum(training_flops(critic, weights=weights) for critic, weights in critics)
    actor_update = training_flops(model.actor, weights=actor) + 2 * sum(forward[: model.judges])
    total = model.batch_size * (critic_update * updates + actor_update * (updates // model.policy_every))
    total += actor_forward * max(0, steps - model.learning_starts)
    for network, sparsifier in ((model.critic, model.critic_sparsifier), (model.actor, model.actor_sparsifier)):
        if sparsifier is not None and sparsifier.looks:
            total += sparsifier.looks * growth_flops(
                network, model.batch_size, dense=sparsifier.looks_at_dense_gradient
            )
    return total


def mean_weights(sparsifier: Sparsifier | None) -> dict[str, float]:
    """Weights of a network's sparse layers averaged over its training; empty before there was any."""
    return {} if sparsifier is None else sparsifier.mean_weights


def _below(weights: dict[str, float], owner: str) -> dict[str, float]:
    return {name.removeprefix(f"{owner}."): count for name, count in weights.items() if name.startswith(f"{owner}.")}


def training_memory(model: SparseAgent) -> Bytes:
    """Bytes of actor, critics, targets and optimizers, and scratch of actor and critics, kept from step to step.

    A gradient-guided change also holds the batches it has captured, a method what it remembers of connections.
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
    both = (model.actor_sparsifier, model.critic_sparsifier)
    remembered = sum(each.remembered_bytes for each in both if each is not None)
    return replace(memory, scratch=scratch + captured + remembered)
