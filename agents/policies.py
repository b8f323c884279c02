"""SB3's actors and critics with sparse layers in the place of dense ones, under SB3's own names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stable_baselines3.common.policies import BaseModel, BasePolicy, ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import nn
from torch.optim import Optimizer

from sparse_core import Adam, SparseLinear, generators, sparse_layers, sparsify
from sparse_core.crossover import AUTO


class SparsePolicy(BasePolicy):
    """An SB3 policy whose actor and critics are each sparse to the connection; comes before SB3's among the bases.

    Args:
        *args: as in SB3's own policy.
        sparse: `actor` and `critic` (sparsity of the actor and of each critic), `distribution`, `dense`,
            `init`, `initial_topology`, `backend` (a name, or one for every sparse layer by the layer's), `norm` ("none"
            or "layer"), `seed` of the initial topologies, and `topologies`, by the layer's name, instead of drawn ones;
            None for dense networks.
        optimizer_class: Adam with per-connection age by default.
        **kwargs: as in SB3's own policy.
    """

    actor: Any
    critic: Any

    def __init__(
        self,
        *args: Any,
        sparse: dict[str, Any] | None = None,
        optimizer_class: type[Optimizer] = Adam,
        **kwargs: Any,
    ) -> None:
        self.sparse = sparse or {"actor": 0.0, "critic": 0.0, "seed": 0}
        super().__init__(*args, optimizer_class=optimizer_class, **kwargs)
        backend = self.sparse.get("backend")
        if isinstance(backend, Mapping):
            self.use_backends(backend)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """Critics with sparse layers, each with a topology of its own."""
        critic: ContinuousCritic = super().make_critic(features_extractor)  # type: ignore[misc]
        for index, network in enumerate(critic.q_networks):
            self._normalise(network, hidden=_linear(network)[:-1])
            self._sparsify(network, self.sparse["critic"], f"critic {index}", f"critic.qf{index}.")
        return critic

    @property
    def layers(self) -> dict[str, SparseLinear]:
        """The sparse layers of actor and critics by name, targets left out."""
        return {
            f"{owner}.{name}": layer
            for owner in ("actor", "critic")
            for name, layer in sparse_layers(getattr(self, owner)).items()
        }

    @property
    def backends(self) -> dict[str, str]:
        """The backend of every sparse layer of actor and critics, by name; targets have the same."""
        return {name: layer.backend for name, layer in self.layers.items()}

    def use_backends(self, backends: Mapping[str, str]) -> None:
        """Let these multiply from now on, online and target layers alike; every sparse layer must be named."""
        own, given = set(self.backends), set(backends)
        if own != given:
            parts = {"missing": sorted(own - given), "unknown": sorted(given - own)}
            wrong = "; ".join(f"{what}: {', '.join(map(str, names))}" for what, names in parts.items() if names)
            raise ValueError(
                f"`backend` must name every sparse layer of the agent and nothing else ({wrong}); give one backend for "
                "all, or take `backends` of an agent with the same networks"
            )
        for name, backend in backends.items():
            owner, _, layer = name.partition(".")
            for network in (owner, f"{owner}_target"):
                if hasattr(self, network):
                    sparse_layers(getattr(self, network))[layer].use_backend(backend)

    def set_training_mode(self, mode: bool) -> None:
        """As SB3's, which training asks for twice a step, at a sixth of its time."""
        for network in (self.actor, self.critic):
            if type(network).set_training_mode is BaseModel.set_training_mode:
                _train(network, mode)
            else:
                network.set_training_mode(mode)
        self.training = mode

    def _sparsify(
        self, network: nn.Module, sparsity: float, stream: str, prefix: str, outputs: Sequence[str] = ("output",)
    ) -> None:
        """Make a network sparse, its topology drawn from `stream`; names below `prefix`, `outputs` its last layers."""
        known = ("topology", "distribution", "dense", "init", "initial_topology", "backend")
        options: dict[str, Any] = {key: self.sparse[key] for key in known if key in self.sparse}
        dense = options.get("dense", ["output"])
        dense = [dense] if isinstance(dense, str | int) else dense
        options["dense"] = [each for item in dense for each in (outputs if item == "output" else [item])]
        if isinstance(options.get("backend"), Mapping):
            options["backend"] = AUTO  # until all networks are there
        generator = generators(self.sparse["seed"], stream)[stream]
        if self.sparse.get("topologies") is not None:
            options["topologies"] = {
                layer.removeprefix(prefix): topology
                for layer, topology in self.sparse["topologies"].items()
                if layer.startswith(prefix)
            }
        if self.sparse.get("input"):
            sparsity, options["dense"] = _input_alone(network, self.sparse["input"])
        sparsify(network, sparsity, generator=generator, **options)

    def _normalise(self, network: Any, hidden: Sequence[nn.Linear]) -> None:
        """Put a layer normalisation between each hidden linear layer and its activation, if asked; nothing is drawn.

        The names are then those of SB3's `create_mlp` with `post_linear_modules=[nn.LayerNorm]`.
        """
        if self.sparse.get("norm", "none") != "layer":
            return
        for layer in hidden:
            norm = nn.LayerNorm(layer.out_features, device=layer.weight.device, dtype=layer.weight.dtype)
            network.insert([*network].index(layer) + 1, norm)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "sparse": self.sparse}


class SparseTD3Policy(SparsePolicy, TD3Policy):
    """SB3's TD3 policy, sparse; see `SparsePolicy` for what it is told."""

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """An actor with sparse layers; online and target draw the same topology."""
        actor = super().make_actor(features_extractor)
        self._normalise(actor.mu, hidden=_linear(actor.mu)[:-1])
        self._sparsify(actor.mu, self.sparse["actor"], "actor", "actor.mu.")
        return actor


class SparseSACPolicy(SparsePolicy, SACPolicy):
    """SB3's SAC policy, sparse; see `SparsePolicy` for what it is told.

    The actor is one network whose last layers are two, `mu` and `log_std`: `dense=["output"]` keeps both dense.
    """

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> SACActor:
        """An actor with sparse layers."""
        actor = super().make_actor(features_extractor)
        self._normalise(actor.latent_pi, hidden=_linear(actor.latent_pi))
        parts = ("latent_pi", "mu", "log_std")
        network = nn.ModuleDict({part: getattr(actor, part) for part in parts})
        self._sparsify(network, self.sparse["actor"], "actor", "actor.", outputs=parts[1:])
        actor.mu, actor.log_std = network["mu"], network["log_std"]  # type: ignore[assignment]
        return actor


def _linear(network: Any) -> list[nn.Linear]:
    return [module for module in network if isinstance(module, nn.Linear)]


def _input_alone(network: nn.Module, share: float) -> tuple[float, list[str]]:
    """The sparsity of a network whose first layer alone is sparse, and the names of the layers that stay dense."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    first, *others = layers
    cells = sum(layer.weight.numel() for layer in layers.values())
    return round(share * layers[first].weight.numel()) / cells, others


def _train(module: nn.Module, mode: bool) -> None:
    """As `module.train(mode)`, past `nn.Module.__setattr__`, which is what that spends its time in."""
    kind = type(module)
    if kind.train is not nn.Module.train or kind.__setattr__ is not nn.Module.__setattr__:
        module.train(mode)  # it does more
        return
    module.__dict__["training"] = mode
    for child in module._modules.values():
        if child is not None:
            _train(child, mode)
