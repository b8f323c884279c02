"""SAC on networks that are never dense: Stable-Baselines3's algorithm with a topology that can move."""

from __future__ import annotations

from typing import ClassVar

from stable_baselines3 import SAC
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn
from torch.optim import Optimizer

from agents.moving import Update
from agents.policies import SparseSACPolicy
from agents.sac_update import SACUpdate, actor_loss, critic_loss, value_targets
from agents.sparse import SparseAgent


class SparseSAC(SparseAgent, SAC):
    """`stable_baselines3.SAC` with sparse actor and critics (Haarnoja et al. 2018, arXiv:1812.05905).

    SB3's own arguments and defaults hold, `learn`, `predict`, `save`, `load`, callbacks and the rest with them; those
    that make it sparse are described in `SparseAgent`. `target_update_interval` counts updates from the first on,
    whatever SB3's `train_freq` and `gradient_steps` (deviations 66 to 68).

    Raises:
        ValueError: for values that cannot be, gSDE (`use_sde`) among them, before anything is made.
    """

    policy: SparseSACPolicy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": SparseSACPolicy}
    at_least_one = ("batch_size", "buffer_size", "target_update_interval")

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.use_sde:
            raise ValueError("SparseSAC draws actions independently, got `use_sde=True`; leave gSDE out")
        if not (isinstance(self.ent_coef, str) or self.ent_coef >= 0):
            raise ValueError(f"`ent_coef` must be a number ≥ 0 or 'auto', got {self.ent_coef!r}")

    @property
    def target_every(self) -> int:
        """Critic updates to one of the targets."""
        return self.target_update_interval

    @property
    def acting_modules(self) -> list[nn.Module]:
        """The deterministic actor as a chain of modules, from observations (B, features) to actions in [-1, 1]."""
        return [*self.actor.latent_pi, self.actor.mu, nn.Tanh()]

    @property
    def judges(self) -> int:
        """Critics that the actor's loss asks: all of them."""
        return len(self.critic.q_networks)

    def losses(self, batch: ReplayBufferSamples) -> tuple[Tensor, Tensor]:
        """The critics' loss and the actor's on these transitions, with networks and entropy coefficient as they are."""
        weight = self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef.detach().exp()
        actions, log_probabilities = self.actor.action_log_prob(batch.observations)
        targets = value_targets(self, batch, weight)
        of_actor = actor_loss(self, batch, actions, log_probabilities.reshape(-1, 1), weight)
        return critic_loss(self, batch, targets), of_actor

    def _make_update(self, batch_size: int) -> Update:
        return SACUpdate(self, batch_size)

    def _optimizers(self) -> list[Optimizer]:
        learned = [] if self.ent_coef_optimizer is None else [self.ent_coef_optimizer]
        return [*super()._optimizers(), *learned]
