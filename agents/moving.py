"""Training whose topology moves: updates of critics, actor and targets, and two sparsifiers that change along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn
from torch.optim import Optimizer

from agents.nstep_replay import NStepReplay, ReplayOptions
from agents.options import SparseOptions
from agents.replay import Array
from sparse_core import Sparsifier, sparse_layers
from sparse_core.sparsifier import Rewirings


class Update(Protocol):
    """What computes one gradient step of an agent, one batch at a time: `draw`, `critics`, `actor`, `targets`."""

    batch_size: int

    def is_current(self) -> bool:
        """Whether what it remembers still is where it was; else the agent makes a new one."""

    def draw(self) -> None:
        """Draw a batch."""

    def critics(self) -> Tensor | float:
        """Update the critics on the batch; returns the loss."""

    def actor(self) -> Tensor | float:
        """Update the actor on the batch the critics have just had; returns the loss."""

    def targets(self) -> None:
        """Move the targets."""


class MovingTopologies(OffPolicyAlgorithm):
    """The training loop of a sparse agent: one sparsifier moves the critics' connections, one the actor's.

    A subclass says how an update is computed (`_make_update`) and when the actor and the targets take part in it
    (`policy_every`, `target_every`). Targets share the topology of their online networks at every moment.
    """

    actor: Any
    critic: Any
    critic_target: Any
    sparse_options: SparseOptions
    replay_options: ReplayOptions
    actor_sparsifier: Sparsifier | None
    critic_sparsifier: Sparsifier | None
    last_rewirings: Rewirings
    _adaptation: dict[str, Any] | None
    _losses: dict[str, Tensor | float]
    _update: Update | None

    @property
    def policy_every(self) -> int:
        """Critic updates to one of the actor."""
        return 1

    @property
    def target_every(self) -> int:
        """Critic updates to one of the targets."""
        return 1

    @property
    def acting_modules(self) -> list[nn.Module]:
        """The deterministic actor as a chain of modules, from observations (B, features) to actions in [-1, 1]."""
        raise NotImplementedError

    @property
    def judges(self) -> int:
        """Critics that the actor's loss asks."""
        return 1

    def losses(self, batch: ReplayBufferSamples) -> tuple[Tensor, Tensor]:
        """The critics' and the actor's loss on these transitions, with a graph, for who wants to look at gradients."""
        raise NotImplementedError

    def _make_update(self, batch_size: int) -> Update:
        raise NotImplementedError

    def _make_sparsifiers(self, total_updates: int | None, state: Mapping[str, Any] | None) -> None:
        for network in (self.actor, self.critic):
            for layer in sparse_layers(network).values():
                layer.capture = None
        chosen = self.sparse_options
        of_critics = chosen.sparsifier(total_updates, self.seed, chosen.critic, len(self.critic.q_networks))
        for old in (self.critic_sparsifier, self.actor_sparsifier):
            if old is not None:
                old.detach()
        self.critic_sparsifier = Sparsifier.preset(
            chosen.topology, self.critic, self.critic.optimizer, followers=[self.critic_target], **of_critics
        )
        self.actor_sparsifier = Sparsifier.preset(
            chosen.topology, self.actor, self.actor.optimizer, followers=self._actor_followers(),
            capture_stride=self.policy_every, **chosen.sparsifier(total_updates, self.seed, chosen.actor),
        )  # fmt: skip
        self._update = None  # one that was made for others knows neither their hooks nor their warm-up
        if state is not None:
            self.critic_sparsifier.load_state_dict(state["critic"])
            self.actor_sparsifier.load_state_dict(state["actor"])
        self._adaptation = None

    def _actor_followers(self) -> list[nn.Module]:
        """Networks that take the actor's changes, too."""
        return []

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Update the critics `gradient_steps` times, and actor, targets and topology with every few."""
        if self.critic_sparsifier is None:
            self._make_sparsifiers(self.sparse_options.total_updates, self._adaptation)
        self._update_learning_rate(self._optimizers())
        update = self._updater(batch_size)
        for _ in range(gradient_steps):
            self._n_updates += 1
            policy_update = self._n_updates % self.policy_every == 0
            self._prepare_replay()
            update.draw()
            self._losses["critic_loss"] = update.critics()
            if policy_update:
                self._losses["actor_loss"] = update.actor()
            if self._move_connections(policy_update):
                update = self._updater(batch_size)
            if self._n_updates % self.target_every == 0:
                update.targets()

    def _prepare_replay(self) -> None:
        """Say over how many steps returns are now, and let the buffer forget what is too old."""
        replay, options = self.replay_buffer, self.replay_options
        if not isinstance(replay, NStepReplay):
            return
        replay.n_steps, replay.gamma = self.n_steps if self._n_updates > options.onset else 1, self.gamma
        if options.minimum is not None and self._n_updates % options.every == 0:
            replay.shrink(options, self._answers)

    @torch.no_grad()
    def _answers(self, observations: Any) -> Array:
        """The policy's own actions (B, actions) in [-1, 1], without noise, to observations (B, …)."""
        assert self.actor_sparsifier is not None
        self.policy.set_training_mode(False)
        if self._vec_normalize_env is not None:
            observations = self._vec_normalize_env.normalize_obs(observations)
        with self.actor_sparsifier.paused():
            inputs = torch.as_tensor(observations, device=self.device)
            answers: Array = self.policy._predict(inputs, deterministic=True).cpu().numpy()
        return answers

    def _optimizers(self) -> list[Optimizer]:
        return [self.actor.optimizer, self.critic.optimizer]

    @property
    def needs_gradients_again(self) -> bool:
        """Whether the next change wants gradients worked out anew: updates then must have such methods."""
        sparsifier = self.critic_sparsifier
        return sparsifier is not None and sparsifier.needs_closure

    def _updater(self, batch_size: int) -> Update:
        """What computes an update."""
        if self._update is None or self._update.batch_size != batch_size or not self._update.is_current():
            self._update = self._make_update(batch_size)
        return self._update

    def _move_connections(self, policy_update: bool) -> bool:
        """Change the topologies where that is due; whether it was."""
        assert self.critic_sparsifier is not None
        assert self.actor_sparsifier is not None
        gradients: tuple[Any, Any] = (None, None)
        if self.needs_gradients_again:
            again: Any = self._update
            gradients = again.critic_gradient, again.actor_gradient
        changed = self.critic_sparsifier.step(policy_update, gradients[0])
        changed_actor = self.actor_sparsifier.step(policy_update, gradients[1])
        if gradients[0] is not None and not self.needs_gradients_again:
            self._update = None  # from here on a faster one may do
        if changed or changed_actor:
            self.last_rewirings = {f"critic.{name}": change for name, change in changed.items()}
            self.last_rewirings |= {f"actor.{name}": change for name, change in changed_actor.items()}
        return bool(changed or changed_actor)

    @property
    def changes(self) -> int:
        """Topology changes so far; actor and critics change together."""
        if self.critic_sparsifier is not None and self.actor_sparsifier is not None:
            # Asked for at every step: not through `adaptation_state`, which copies every generator.
            return max(self.critic_sparsifier.changes, self.actor_sparsifier.changes)
        state = self._adaptation
        return 0 if state is None else max(int(state[network]["changes"]) for network in ("critic", "actor"))

    def dump_logs(self) -> None:
        """As SB3's, with the last losses and the number of topology changes."""
        for name, loss in self._losses.items():
            self.logger.record(f"train/{name}", float(loss))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/topology_changes", self.changes)
        super().dump_logs()

    def adaptation_state(self) -> dict[str, Any] | None:
        """Where the topology's schedules and generators stand; None before the first training."""
        if self.critic_sparsifier is None or self.actor_sparsifier is None:
            return self._adaptation
        return {"critic": self.critic_sparsifier.state_dict(), "actor": self.actor_sparsifier.state_dict()}

    def load_adaptation_state(self, state: dict[str, Any] | None) -> None:
        """Put back what `adaptation_state` gave; it takes effect at the next training unless that starts anew."""
        self.actor_sparsifier = self.critic_sparsifier = None
        self._adaptation = state
