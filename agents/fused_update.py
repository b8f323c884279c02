"""One gradient step of TD3 without autograd: hand-written passes over networks that keep their workspaces.

Everything is feature-major (features, batch). The critics' input holds observations above actions, so the actor
reads the upper rows where they lie and writes its actions below them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.td3.policies import Actor
from torch import nn
from torch.optim import optimizer as optimizer_hooks

from agents import td3_kernels
from agents.replay import Float32ReplayBuffer
from sparse_core import Adam
from sparse_core.fused_networks import FusedNetworks, Part, Watch
from sparse_core.fused_optimizer import FusedAdam, FusedPolyak
from sparse_core.perceptrons import fusible, is_hooked, perceptron


class FusedUpdate:
    """Critics, actor and targets of a `SparseTD3`, one batch at a time, in the arithmetic of `AutogradUpdate`.

    For agents that `fits`, as long as it `is_current`. It works on the parameters and the optimizer's state where
    they lie; gradients are in arrays of its own, so parameters have no `grad`. Modules are not called: with hooks on
    them, on parameters or on an optimizer an agent does not fit, and hooks that come later are not seen in training.
    """

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether actor, critics and optimizers are plain enough to be computed without autograd, on the CPU."""
        pairs = (model.actor, model.actor_target), (model.critic, model.critic_target)
        kinds = {type(network) for network in pairs[0]} | {type(network) for network in pairs[1]}
        extractors = {type(network.features_extractor) for pair in pairs for network in pair}
        plain = kinds == {Actor, ContinuousCritic} and extractors == {FlattenExtractor}
        plain = plain and not any(is_hooked(network) for pair in pairs for network in pair)
        plain = plain and not model.needs_gradients_again
        space = model.observation_space
        if not plain or not isinstance(space, spaces.Box) or space.dtype not in (np.float32, np.float64):
            return False
        if model.action_space.dtype not in (np.float32, np.float64):
            return False
        actors, critics = ([network.mu for network in pairs[0]], [[*network.q_networks] for network in pairs[1]])
        return (
            fusible(*actors)
            and fusible(*critics[0], *critics[1])
            and _closed(*actors) == {True}
            and _closed(*critics[0], *critics[1]) == {False}
            and len({parameter.dtype for network in pairs[0] + pairs[1] for parameter in network.parameters()}) == 1
            and _optimizes(model.actor) and _optimizes(model.critic)
            and not model.critic_batch_norm_stats and not model.actor_batch_norm_stats
        )  # fmt: skip

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model, self.batch_size = model, batch_size
        like = next(model.critic.parameters()).detach()
        features, actions = int(np.prod(model.observation_space.shape)), int(np.prod(model.action_space.shape))
        self._features = features
        self._x, self._next_x = (like.new_empty(features + actions, self.batch_size) for _ in range(2))
        self._noise = torch.empty(self.batch_size, actions)
        self._rewards, self._discounts = (like.new_empty(self.batch_size).numpy() for _ in range(2))
        self._critics = FusedNetworks([*model.critic.q_networks], self._x)
        self._next_critics = FusedNetworks(
            [*model.critic_target.q_networks], self._next_x, trained=False, like=self._critics
        )
        self._actor = FusedNetworks([model.actor.mu], self._x[:features])
        self._next_actor = FusedNetworks(
            [model.actor_target.mu], self._next_x[:features], trained=False, like=self._actor
        )
        self._first_critic = self._critics.first()
        self._next_values = torch.empty_like(self._critics.outputs)
        self._critic_adam = FusedAdam(model.critic.optimizer, self._critics.parameters())
        self._actor_adam = FusedAdam(model.actor.optimizer, self._actor.parameters())
        pairs = (model.critic_target, model.critic), (model.actor_target, model.actor)
        self._polyak = FusedPolyak([
            pair for target, online in pairs for pair in zip(target.parameters(), online.parameters(), strict=True)
        ])  # fmt: skip
        self._watch = Watch(*(network for pair in pairs for network in pair))
        self._bound = self._now()

    def _now(self) -> list[Any]:
        """Changes whenever something that was bound lies elsewhere."""
        optimizers = self._model.critic.optimizer, self._model.actor.optimizer
        states = [state for optimizer in optimizers for state in optimizer.state.values()]
        first = [optimizer.param_groups[0] for optimizer in optimizers]
        groups = [
            (
                id(optimizer),
                "step" in vars(optimizer),
                group.get("betas"),
                group.get("warmup", 0),
                len(optimizer.param_groups),
            )
            for group, optimizer in zip(first, optimizers, strict=True)
        ]
        return [*self._watch.now(), *(id(tensor) for state in states for tensor in state.values()), *groups]

    def is_current(self) -> bool:
        """Whether parameters, indices and optimizer state still are where they were."""
        return self._now() == self._bound

    def draw(self) -> None:
        """Draw a batch."""
        replay = self._model.replay_buffer
        if _is_plain(replay) and self._model._vec_normalize_env is None:
            td3_kernels.gather(
                *replay.rings(), *replay.draw(self.batch_size), self._model.gamma,
                self._x.numpy(), self._next_x.numpy(), self._rewards, self._discounts,
            )  # fmt: skip
            return
        batch = replay.sample(self.batch_size, env=self._model._vec_normalize_env)
        self._x[: self._features] = batch.observations.flatten(1).T
        self._x[self._features :] = batch.actions.T
        self._next_x[: self._features] = batch.next_observations.flatten(1).T
        discounts = self._model.gamma if batch.discounts is None else batch.discounts
        self._rewards[:] = batch.rewards.squeeze(1).numpy()
        self._discounts[:] = ((1 - batch.dones) * discounts).squeeze(1).numpy()

    def critics(self) -> float:
        """Update the critics on the batch; returns the loss."""
        model = self._model
        actions = self._next_x[self._features :]
        self._noise.normal_()
        self._next_actor.forward()
        torch.tanh(self._next_actor.outputs[0], out=actions)
        td3_kernels.smooth(actions.numpy(), self._noise.numpy(), model.target_policy_noise, model.target_noise_clip)
        self._next_critics.forward()
        self._next_values.copy_(self._next_critics.outputs)
        outputs, gradients = self._critics.outputs.numpy(), self._critics.output_gradients.numpy()
        loss = 0.0
        for part in self._critics.parts():
            self._critics.forward(part)
            loss = td3_kernels.temporal_difference(
                outputs, self._next_values.numpy(), self._rewards, self._discounts, gradients, *self._span(part), loss
            )
            self._critics.backward(part=part)
            self._critics.gradients(part)
        self._critic_adam.step()
        return float(loss) / self.batch_size

    def actor(self) -> float:
        """Update the actor on the batch the critics have just had; returns the loss."""
        actor, critic, actions = self._actor, self._first_critic, self._x[self._features :]
        critic.output_gradients.fill_(-1 / self.batch_size)
        parts = actor.parts()
        for part in parts if parts == critic.parts() else [None]:
            start, stop = self._span(part)
            actor.forward(part)
            torch.tanh(actor.outputs[0, :, start:stop], out=actions[:, start:stop])
            critic.forward(part)
            critic.backward((self._features, self._x.shape[0]), part)
            td3_kernels.through_tanh(
                actor.output_gradients[0].numpy(), critic.input_gradients[0, self._features :].numpy(),
                actions.numpy(), start, stop,
            )  # fmt: skip
            actor.backward(part=part)
            actor.gradients(part)
        self._actor_adam.step()
        return -float(critic.outputs.numpy().mean())

    def _span(self, part: Part) -> tuple[int, int]:
        return (0, self.batch_size) if part is None else part

    def targets(self) -> None:
        """Move the targets by one step of Polyak averaging."""
        self._polyak.step(self._model.tau)


def _is_plain(replay: Any) -> bool:
    return type(replay) is Float32ReplayBuffer and not replay.optimize_memory_usage


def _closed(*networks: nn.Module) -> set[bool]:
    return {found.closed for network in networks if (found := perceptron(network))}


def _optimizes(network: Any) -> bool:
    """Whether one group of our own Adam holds exactly the network's parameters, and nobody wants to see its steps."""
    optimizer = network.optimizer
    groups = optimizer.param_groups
    return (
        type(optimizer) is Adam
        and "step" not in vars(optimizer)  # wrapped, to clip gradients or by a learning rate scheduler
        and not optimizer_hooks._global_optimizer_pre_hooks
        and not optimizer_hooks._global_optimizer_post_hooks
        and len(groups) == 1
        and not optimizer._optimizer_step_pre_hooks
        and not optimizer._optimizer_step_post_hooks
        and {id(parameter) for parameter in groups[0]["params"]} == {id(p) for p in network.parameters()}
    )


class FusedActor:
    """The actor on one observation, without autograd or modules."""

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether the actor is plain enough, and on the CPU."""
        actor = model.actor
        return (
            type(actor) is Actor
            and type(actor.features_extractor) is FlattenExtractor
            and not is_hooked(actor)
            and fusible(actor.mu)
            and _closed(actor.mu) == {True}
        )

    def __init__(self, model: Any) -> None:
        network: Any = model.actor.mu
        self._input = next(network.parameters()).detach().new_empty(model.actor.features_dim, 1)
        self._network = FusedNetworks([network], self._input, trained=False)
        self._watch = Watch(network)
        self._bound = self._watch.now()

    def is_current(self) -> bool:
        """Whether parameters and indices still are where they were."""
        return self._watch.now() == self._bound

    def act(self, observation: Any) -> Any:
        """Actions (1, actions) in [-1, 1] for an observation (1, …), as arrays of float32."""
        # SB3 rounds to float32 what networks see.
        self._input.numpy()[:, 0] = observation.astype(np.float32, copy=False).ravel()
        self._network.forward()
        return torch.tanh(self._network.outputs[:, :, 0]).float().numpy()
