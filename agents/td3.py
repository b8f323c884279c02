"""TD3 on networks that are never dense: Stable-Baselines3's algorithm with a topology that can move."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from stable_baselines3 import TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import ReplayBufferSamples, RolloutReturn, TrainFreq
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from agents.autograd_update import AutogradUpdate, actor_loss, critic_loss, value_targets
from agents.collection import Array, PlainActor, collect, is_plain
from agents.moving import Update
from agents.policies import SparseTD3Policy
from agents.sparse import SparseAgent

if TYPE_CHECKING:
    from agents.fused_update import FusedActor


class SparseTD3(SparseAgent, TD3):
    """`stable_baselines3.TD3` with sparse actor and critics (Fujimoto et al. 2018; DS-TD3, arXiv:2106.04217).

    SB3's own arguments and defaults hold, `learn`, `predict`, `save`, `load`, callbacks and the rest
    with them; those that make it sparse are described in `SparseAgent`. Actor and critics change their topology
    together, at policy updates.
    """

    policy: SparseTD3Policy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": SparseTD3Policy}
    at_least_one = ("batch_size", "buffer_size", "policy_delay")
    _acting: PlainActor | FusedActor | None = None

    @property
    def policy_every(self) -> int:
        """Critic updates to one of the actor."""
        return self.policy_delay

    @property
    def target_every(self) -> int:
        """Critic updates to one of the targets: they move with the actor."""
        return self.policy_delay

    @property
    def acting_modules(self) -> list[nn.Module]:
        """The deterministic actor as a chain of modules, from observations (B, features) to actions in [-1, 1]."""
        return [*self.actor.mu]

    def _actor_followers(self) -> list[nn.Module]:
        return [self.actor_target]

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, train_freq: TrainFreq, replay_buffer: Any, *args: Any, **kwargs: Any
    ) -> RolloutReturn:
        """As SB3's, in a loop of our own where there is one plain environment; only `_act` may round otherwise."""
        if is_plain(self, env, train_freq, replay_buffer):
            return collect(self, env, callback, train_freq, replay_buffer, *args, **kwargs)
        return super().collect_rollouts(env, callback, train_freq, replay_buffer, *args, **kwargs)

    def _act(self, observation: Array) -> Array:
        """The actor's answer (1, actions), float32 in [-1, 1], to an observation (1, features)."""
        if self._acting is None or not self._acting.is_current():
            self._acting = self._make_acting()
        return self._acting.act(observation)

    def _make_acting(self) -> PlainActor | FusedActor:
        """What acts: compiled where the actor is plain enough, else its modules."""
        with suppress(ImportError):  # without Numba
            from agents.fused_update import FusedActor

            if FusedActor.fits(self):
                return FusedActor(self)
        return PlainActor(self)

    def losses(self, batch: ReplayBufferSamples) -> tuple[Tensor, Tensor]:
        """The critics' loss and the actor's on these transitions, with the networks as they are."""
        return critic_loss(self, batch, value_targets(self, batch)), actor_loss(self, batch)

    def _make_update(self, batch_size: int) -> Update:
        """What computes an update: by hand where the networks are plain enough, else through autograd."""
        with suppress(ImportError):  # without Numba
            from agents.fused_update import FusedUpdate

            if FusedUpdate.fits(self):
                return FusedUpdate(self, batch_size)
        return AutogradUpdate(self, batch_size)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_acting"]
