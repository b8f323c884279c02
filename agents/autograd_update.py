"""One gradient step of TD3 through torch's autograd: for any policy, optimizer and device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update
from torch import Tensor, nn


class AutogradUpdate:
    """Critics, actor and targets of a `SparseTD3`, one batch at a time; `SACUpdate` draws as it does."""

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model, self.batch_size = model, batch_size
        self._batch: ReplayBufferSamples | None = None

    def is_current(self) -> bool:
        """Nothing is remembered from one batch to the next."""
        return True

    def draw(self) -> None:
        """Draw a batch."""
        self._model.policy.set_training_mode(True)
        self._batch = self._model.replay_buffer.sample(self.batch_size, env=self._model._vec_normalize_env)

    def critics(self) -> Tensor:
        """Update the critics on the batch; returns the loss."""
        assert self._batch is not None
        self._targets = self._aims(self._batch)
        loss = self.critic_gradient()
        self._model.critic.optimizer.step()
        return loss

    def critic_gradient(self) -> Tensor:
        """Work out the critics' loss and its gradient, towards the targets of the last `critics`; returns the loss."""
        assert self._batch is not None
        loss = self._critic_loss(self._batch)
        self._model.critic.optimizer.zero_grad()
        loss.backward()
        return loss.detach()

    def _aims(self, batch: ReplayBufferSamples) -> Tensor:
        return value_targets(self._model, batch)

    def _critic_loss(self, batch: ReplayBufferSamples) -> Tensor:
        return critic_loss(self._model, batch, self._targets)

    def actor(self) -> Tensor:
        """Update the actor on the batch the critics have just had; returns the loss."""
        loss = self.actor_gradient()
        self._model.actor.optimizer.step()
        return loss

    def actor_gradient(self) -> Tensor:
        """Work out the actor's loss on the batch and its gradient; returns the loss."""
        model, batch = self._model, self._batch
        assert batch is not None
        # The critic only passes the gradient on here: it neither learns nor grows from the actor's loss.
        with model.critic_sparsifier.paused(), constant(model.critic.q_networks[0]):
            loss = actor_loss(model, batch)
            model.actor.optimizer.zero_grad()
            loss.backward()
        return loss.detach()

    def targets(self) -> None:
        """Move the targets by one step of Polyak averaging."""
        model = self._model
        with torch.no_grad():
            for online, target in ((model.critic, model.critic_target), (model.actor, model.actor_target)):
                torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), model.tau)
        polyak_update(model.critic_batch_norm_stats, model.critic_batch_norm_stats_target, 1.0)
        polyak_update(model.actor_batch_norm_stats, model.actor_batch_norm_stats_target, 1.0)


@torch.no_grad()
def value_targets(model: Any, batch: ReplayBufferSamples) -> Tensor:
    """What the critics of a TD3 are to say of these transitions, (B, 1)."""
    noise = torch.randn_like(batch.actions).mul_(model.target_policy_noise)
    noise = noise.clamp_(-model.target_noise_clip, model.target_noise_clip)
    next_actions = (model.actor_target(batch.next_observations) + noise).clamp_(-1, 1)
    next_values = torch.cat(model.critic_target(batch.next_observations, next_actions), dim=1)
    discounts = model.gamma if batch.discounts is None else batch.discounts
    targets: Tensor = batch.rewards + (1 - batch.dones) * discounts * next_values.amin(dim=1, keepdim=True)
    return targets


def critic_loss(model: Any, batch: ReplayBufferSamples, targets: Tensor) -> Tensor:
    """Squared errors of all critics, averaged over the batch and added up."""
    values = model.critic(batch.observations, batch.actions)
    return torch.stack([F.mse_loss(value, targets) for value in values]).sum()


def actor_loss(model: Any, batch: ReplayBufferSamples) -> Tensor:
    """Minus the first critic's mean value of what the actor would do."""
    value: Tensor = model.critic.q1_forward(batch.observations, model.actor(batch.observations))
    return -value.mean()


@contextmanager
def constant(*modules: nn.Module) -> Iterator[None]:
    """Within this block gradients pass through these modules but their parameters take none."""
    trained = [each for module in modules for each in module.parameters() if each.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
