"""TD3's actor and critics with sparse layers in the place of dense ones, under SB3's own names."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch.optim import Optimizer

from sparse_core import Adam, generators, sparsify


class SparseTD3Policy(TD3Policy):
    """SB3's TD3 policy whose actor and critics are each sparse to the connection.

    Args:
        *args: as in `stable_baselines3.td3.policies.TD3Policy`.
        sparse: `actor` and `critic` (sparsity of the actor and of each critic), `distribution`, `dense`,
            `init`, `backend`, and `seed` of the initial topologies; None for dense networks.
        optimizer_class: Adam with per-connection age by default.
        **kwargs: as in `stable_baselines3.td3.policies.TD3Policy`.
    """

    def __init__(
        self,
        *args: Any,
        sparse: dict[str, Any] | None = None,
        optimizer_class: type[Optimizer] = Adam,
        **kwargs: Any,
    ) -> None:
        self.sparse = sparse or {"actor": 0.0, "critic": 0.0, "seed": 0}
        super().__init__(*args, optimizer_class=optimizer_class, **kwargs)  # type: ignore[misc]

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """An actor with sparse layers; online and target draw the same topology."""
        actor = super().make_actor(features_extractor)
        self._sparsify(actor, "mu", self.sparse["actor"], "actor")
        return actor

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """Critics with sparse layers, each with a topology of its own."""
        critic = super().make_critic(features_extractor)
        for index in range(len(critic.q_networks)):
            self._sparsify(critic, f"qf{index}", self.sparse["critic"], f"critic {index}")
        return critic

    def _sparsify(self, owner: Any, name: str, sparsity: float, stream: str) -> None:
        options = {key: self.sparse[key] for key in ("distribution", "dense", "init", "backend") if key in self.sparse}
        generator = generators(self.sparse["seed"], stream)[stream]
        sparsify(getattr(owner, name), sparsity, generator=generator, **options)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "sparse": self.sparse}
