"""One gradient step of SAC through torch's autograd: for any policy, optimizer and device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update
from torch import Tensor

from agents.autograd_update import AutogradUpdate, constant


class SACUpdate(AutogradUpdate):
    """Entropy coefficient, critics, actor and targets of a `SparseSAC`, one batch at a time, in SB3's order."""

    def _aims(self, batch: ReplayBufferSamples) -> Tensor:
        """Draw the policy's actions and update the entropy coefficient, which the targets then take."""
        model = self._model
        self._actions, log_probabilities = model.actor.action_log_prob(batch.observations)
        self._log_probabilities = log_probabilities.reshape(-1, 1)
        self._weight = self._entropy_coefficient()
        return value_targets(model, batch, self._weight)

    def _critic_loss(self, batch: ReplayBufferSamples) -> Tensor:
        return critic_loss(self._model, batch, self._targets)

    def _entropy_coefficient(self) -> Tensor:
        """The coefficient α as it is before this step; a learned one then takes its own step."""
        model = self._model
        if model.ent_coef_optimizer is None:
            fixed: Tensor = model.ent_coef_tensor
            return fixed
        now = torch.exp(model.log_ent_coef.detach())
        loss = -(model.log_ent_coef * (self._log_probabilities + model.target_entropy).detach()).mean()
        model.ent_coef_optimizer.zero_grad()
        loss.backward()
        model.ent_coef_optimizer.step()
        model._losses |= {"ent_coef": now, "ent_coef_loss": loss.detach()}
        return now

    def actor(self) -> Tensor:
        """Update the actor on the batch, and by the actions, the critics have just had; returns the loss."""
        loss = self._actor_gradient(self._actions, self._log_probabilities)
        self._model.actor.optimizer.step()
        return loss

    def actor_gradient(self) -> Tensor:
        """Work out the actor's loss and its gradient for actions drawn anew, the same each time, leaving no trace."""
        assert self._batch is not None
        with torch.random.fork_rng():
            actions, log_probabilities = self._model.actor.action_log_prob(self._batch.observations)
            return self._actor_gradient(actions, log_probabilities.reshape(-1, 1))

    def _actor_gradient(self, actions: Tensor, log_probabilities: Tensor) -> Tensor:
        model, batch = self._model, self._batch
        assert batch is not None
        # The critics only pass the gradient on here: they neither learn nor grow from the actor's loss.
        with model.critic_sparsifier.paused(), constant(*model.critic.q_networks):
            loss = actor_loss(model, batch, actions, log_probabilities, self._weight)
            model.actor.optimizer.zero_grad()
            loss.backward()
        return loss.detach()

    def targets(self) -> None:
        """Move the critics' targets by one step of Polyak averaging; with τ = 1 they become copies."""
        model = self._model
        with torch.no_grad():
            online, target = list(model.critic.parameters()), list(model.critic_target.parameters())
            if model.tau == 1:
                torch._foreach_copy_(target, online)
            else:
                torch._foreach_lerp_(target, online, model.tau)
        polyak_update(model.batch_norm_stats, model.batch_norm_stats_target, 1.0)


@torch.no_grad()
def value_targets(model: Any, batch: ReplayBufferSamples, weight: Tensor) -> Tensor:
    """What the critics of a SAC with this entropy coefficient are to say of these transitions, (B, 1)."""
    next_actions, next_log_probabilities = model.actor.action_log_prob(batch.next_observations)
    next_values = torch.cat(model.critic_target(batch.next_observations, next_actions), dim=1)
    soft = next_values.amin(dim=1, keepdim=True) - weight * next_log_probabilities.reshape(-1, 1)
    discounts = model.gamma if batch.discounts is None else batch.discounts
    targets: Tensor = batch.rewards + (1 - batch.dones) * discounts * soft
    return targets


def critic_loss(model: Any, batch: ReplayBufferSamples, targets: Tensor) -> Tensor:
    """Half the squared errors of all critics, averaged over the batch and added up."""
    values = model.critic(batch.observations, batch.actions)
    return 0.5 * torch.stack([F.mse_loss(value, targets) for value in values]).sum()


def actor_loss(
    model: Any, batch: ReplayBufferSamples, actions: Tensor, log_probabilities: Tensor, weight: Tensor
) -> Tensor:
    """Of the actor's own actions, with their log-probabilities (B, 1): what entropy and the lowest critic say."""
    values = torch.cat(model.critic(batch.observations, actions), dim=1)
    return (weight * log_probabilities - values.amin(dim=1, keepdim=True)).mean()
