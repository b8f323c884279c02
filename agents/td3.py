"""TD3 on networks that are never dense: Stable-Baselines3's algorithm with a topology that can move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from stable_baselines3 import TD3
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import (
    GymEnv,
    RolloutReturn,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from agents.autograd_update import AutogradUpdate
from agents.collection import Array, PlainActor, collect, is_plain
from agents.options import SparseOptions, check_network, check_same_layers, check_spaces
from agents.policies import SparseTD3Policy
from agents.replay import Float32ReplayBuffer
from sparse_core import PRESETS, Sparsifier, Topology, settle, sparse_layers
from sparse_core.crossover import AUTO
from sparse_core.optimizer_state import check_elementwise
from sparse_core.sparsifier import Rewirings

if TYPE_CHECKING:
    from agents.fused_update import FusedActor, FusedUpdate


class SparseTD3(TD3):
    """`stable_baselines3.TD3` with sparse actor and critics (Fujimoto et al. 2018; DS-TD3, arXiv:2106.04217).

    SB3's own arguments and defaults hold, `learn`, `predict`, `save`, `load`, callbacks and the rest
    with them. Targets share the topology of their online networks at every moment.

    Args:
        policy: `"MlpPolicy"` or a subclass of `SparseTD3Policy`.
        env: as in SB3; Box observations and actions.
        *args: as in SB3, in SB3's order.
        sparsity: share of connections left out in the actor and in each critic, over all their weight
            matrices; 0 is plain dense TD3. By default 0.5, or 0 with `topology="dense"`.
        topology: the method, a name from `sparse_core.PRESETS`.
        actor_sparsity: of the actor alone, instead of `sparsity`.
        critic_sparsity: of each critic, instead of `sparsity`.
        distribution: how connections are shared out between layers; the topology's own by default.
        dense: layers kept dense: `"input"`, `"output"`, indices or globs.
        init: initial weights, `"torch"` or `"fan-in"`; the topology's own by default.
        drop_fraction: share ζ of each layer's connections that change; the topology's own by default.
        period: critic gradient steps between two changes, 1000 by default, or 1 for a method that has to change at
            every step. Actor and critics change together, at the first policy update from there on.
        schedule: course of ζ over training; the topology's own by default.
        stop: share of the planned updates after which the topology stays; the topology's own by default.
        capture_batches: batches before a change that gradient growth looks at.
        total_updates: planned critic gradient steps, where `learn` cannot know them (training by episodes).
        topologies: of every sparse layer by the layer's name (as in `backends`), instead of drawn ones;
            `topology="final-topology"` wants them.
        backend: what multiplies, a name from `sparse_core.BACKENDS`, or one for every sparse layer by the layer's
            name (see `backends`). `"auto"` measures once which is fastest, for `batch_size` and torch's present
            thread count; what it found is saved with the agent.
        norm: `"layer"` normalises each hidden linear layer's outputs before their activation, in actor, critics and
            targets (`nn.LayerNorm` with torch's defaults: Ba et al. 2016, arXiv:1607.06450; placed as in DroQ,
            arXiv:2110.02034, and BRO, arXiv:2405.16158). Modules are then numbered as SB3's `create_mlp` does with
            `post_linear_modules`: `actor.mu.3` is the second linear layer. `"none"`, the default, leaves it out.
        input_sparsity: share of connections left out in the first layer of actor and critics, every other layer being
            dense (ANF, arXiv:2302.06548); instead of `sparsity`.
        **kwargs: as in SB3.

    Raises:
        ValueError: for values that cannot be, before anything is made.
        TypeError: for an optimizer whose state cannot follow moving connections.
    """

    policy: SparseTD3Policy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": SparseTD3Policy}

    def __init__(
        self,
        policy: str | type[SparseTD3Policy],
        env: GymEnv | str,
        *args: Any,
        sparsity: float | None = None,
        topology: str = "set",
        actor_sparsity: float | None = None,
        critic_sparsity: float | None = None,
        distribution: str | None = None,
        dense: Sequence[str | int] = ("output",),
        init: str | None = None,
        drop_fraction: float | None = None,
        period: int | None = None,
        schedule: str | None = None,
        stop: float | None = None,
        capture_batches: int = 1,
        total_updates: int | None = None,
        topologies: Mapping[str, Topology] | None = None,
        backend: str | Mapping[str, str] = "auto",
        norm: str = "none",
        input_sparsity: float | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        self.sparse_options = SparseOptions.resolve(
            sparsity=sparsity, topology=topology, actor_sparsity=actor_sparsity, critic_sparsity=critic_sparsity,
            distribution=distribution, dense=(dense,) if isinstance(dense, (str, int)) else tuple(dense), init=init,
            drop_fraction=drop_fraction, period=period, schedule=schedule, stop=stop,
            capture_batches=capture_batches, total_updates=total_updates, backend=backend, topologies=topologies,
            norm=norm, input_sparsity=input_sparsity,
        )  # fmt: skip
        if PRESETS[topology].given and topologies is None and _init_setup_model:
            raise ValueError(
                f"topology {topology!r} takes its connections from elsewhere, got none; give `topologies` by the names "
                "of the sparse layers, or choose 'static' for a drawn one"
            )
        _check_policy(policy)
        if env is not None:  # None: `load` without one
            env = maybe_make_env(env, kwargs.get("verbose", 0))
            check_spaces(env.observation_space, env.action_space)
        self.actor_sparsifier: Sparsifier | None = None
        self.critic_sparsifier: Sparsifier | None = None
        self.last_rewirings: Rewirings = {}
        self._adaptation: dict[str, Any] | None = None
        self._losses: dict[str, Tensor | float] = {}
        self._update: AutogradUpdate | FusedUpdate | None = None
        self._acting: PlainActor | FusedActor | None = None
        self._settled: tuple[str, dict[str, str]] | None = None  # device, and what `auto` found for it
        super().__init__(policy, env, *args, _init_setup_model=False, **kwargs)  # type: ignore[misc]
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._check_settings()
        if self.replay_buffer_class is None and self.n_steps == 1 and not self.optimize_memory_usage:
            self.replay_buffer_class = Float32ReplayBuffer
        given = self.policy_kwargs
        self.policy_kwargs = {**given, "sparse": self.sparse_options.policy(self.seed)}
        super()._setup_model()
        self.policy_kwargs = given  # as the user knows them: `load` compares
        if self.sparse_options.backend == AUTO:
            self._settle_backends()
        if self.sparse_options.moves:
            check_elementwise(self.actor.optimizer)
            check_elementwise(self.critic.optimizer)

    def _settle_backends(self) -> None:
        """Choose what multiplies; an agent that was loaded keeps what was found for it on the same kind of device."""
        if self._settled is None or self._settled[0] != self.device.type:
            online = nn.ModuleDict({"actor": self.actor, "critic": self.critic})
            settle(online, self.batch_size)
            self._settled = self.device.type, self.backends
        self.policy.use_backends(self._settled[1])

    @property
    def backends(self) -> dict[str, str]:
        """What multiplies, by the name of every sparse layer; targets have the same as their online networks."""
        return self.policy.backends

    def _check_settings(self) -> None:
        """Raise a `ValueError` for settings that cannot be; `load` comes past here with its own, too."""
        sparse = sorted(signature(SparseOptions.resolve).parameters.keys() & vars(self).keys())
        if sparse:
            raise ValueError(
                f"`load` cannot change {', '.join(f'`{name}`' for name in sparse)}: an agent keeps what it was made "
                "with; make a new one, and if the layers are the same, take over the weights with `set_parameters`"
            )
        check_network(self.policy_kwargs.get("net_arch"))
        for name in ("batch_size", "buffer_size", "policy_delay"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)!r}")
        if not self.learning_starts >= 0:
            raise ValueError(f"`learning_starts` must not be negative, got {self.learning_starts!r}")
        if self.batch_size > self.buffer_size:
            raise ValueError(
                f"`batch_size` must not exceed `buffer_size`, got {self.batch_size} > {self.buffer_size}; "
                "take a larger buffer or smaller batches"
            )

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        if isinstance(total_timesteps, bool) or not (total_timesteps >= 0 and total_timesteps % 1 == 0):
            raise ValueError(f"`total_timesteps` must be a whole number ≥ 0, got {total_timesteps!r}")
        result = super()._setup_learn(int(total_timesteps), *args, **kwargs)
        fresh = kwargs.get("reset_num_timesteps", args[1] if len(args) > 1 else True)
        self._make_sparsifiers(self._planned_updates(), None if fresh else self.adaptation_state())
        return result

    def _planned_updates(self) -> int | None:
        """Critic gradient steps until `_total_timesteps`, where they follow from the settings."""
        if self.sparse_options.total_updates is not None:
            return self.sparse_options.total_updates
        assert isinstance(self.train_freq, TrainFreq)
        if self.train_freq.unit == TrainFrequencyUnit.EPISODE:
            return max(0, self._total_timesteps - self.learning_starts) if self.gradient_steps < 0 else None
        collected = self.train_freq.frequency * self.n_envs
        rollouts = -(-self._total_timesteps // collected)
        idle = min(rollouts, self.learning_starts // collected)
        return (rollouts - idle) * (collected if self.gradient_steps < 0 else self.gradient_steps)

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
            chosen.topology, self.actor, self.actor.optimizer, followers=[self.actor_target],
            capture_stride=self.policy_delay, **chosen.sparsifier(total_updates, self.seed, chosen.actor),
        )  # fmt: skip
        self._update = None  # one that was made for others knows neither their hooks nor their warm-up
        if state is not None:
            self.critic_sparsifier.load_state_dict(state["critic"])
            self.actor_sparsifier.load_state_dict(state["actor"])
        self._adaptation = None

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

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Update the critics `gradient_steps` times, and actor, targets and topology with every few."""
        if self.critic_sparsifier is None:
            self._make_sparsifiers(self.sparse_options.total_updates, self._adaptation)
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        update = self._updater(batch_size)
        for _ in range(gradient_steps):
            self._n_updates += 1
            policy_update = self._n_updates % self.policy_delay == 0
            update.draw()
            self._losses["critic_loss"] = update.critics()
            if policy_update:
                self._losses["actor_loss"] = update.actor()
            if self._move_connections(policy_update):
                update = self._updater(batch_size)
            if policy_update:
                update.targets()

    def _updater(self, batch_size: int) -> AutogradUpdate | FusedUpdate:
        """What computes an update: by hand where the networks are plain enough, else through autograd."""
        if self._update is None or self._update.batch_size != batch_size or not self._update.is_current():
            self._update = self._make_update(batch_size)
        return self._update

    def _make_update(self, batch_size: int) -> AutogradUpdate | FusedUpdate:
        with suppress(ImportError):  # without Numba
            from agents.fused_update import FusedUpdate

            if FusedUpdate.fits(self):
                return FusedUpdate(self, batch_size)
        return AutogradUpdate(self, batch_size)

    def _move_connections(self, policy_update: bool) -> bool:
        """Change the topologies where that is due; whether it was."""
        assert self.critic_sparsifier is not None
        assert self.actor_sparsifier is not None
        changed = self.critic_sparsifier.step(allowed=policy_update)
        changed_actor = self.actor_sparsifier.step(allowed=policy_update)
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

    def set_parameters(self, load_path_or_dict: Any, *args: Any, **kwargs: Any) -> None:
        """As SB3's; moments of connections that moved, and for which no optimizer state came, start anew."""
        if isinstance(load_path_or_dict, dict):
            check_same_layers(self.policy, load_path_or_dict.get("policy", {}))
        before = {name: layer.positions.clone() for name, layer in sparse_layers(self.policy).items()}
        try:
            super().set_parameters(load_path_or_dict, *args, **kwargs)
        finally:  # SB3 finds out that something is missing when the rest is loaded
            for prefix, network in (("actor", self.actor), ("critic", self.critic)):
                came = not isinstance(load_path_or_dict, dict) or f"{prefix}.optimizer" in load_path_or_dict
                for name, layer in sparse_layers(network).items():
                    moved = not torch.equal(layer.positions, before[f"{prefix}.{name}"])
                    if moved and not came:
                        network.optimizer.state.pop(layer.values, None)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """SB3's own format; like every SB3 file, load it only from people you trust (it unpickles)."""
        kept, self._adaptation = self._adaptation, self.adaptation_state()
        try:
            super().save(*args, **kwargs)
        finally:
            self._adaptation = kept

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "actor_sparsifier",
            "critic_sparsifier",
            "last_rewirings",
            "_losses",
            "_update",
            "_acting",
        ]


def _check_policy(policy: object) -> None:
    if policy == "MlpPolicy" or (isinstance(policy, type) and issubclass(policy, SparseTD3Policy)):
        return
    raise ValueError(f"`policy` must be 'MlpPolicy' or a subclass of SparseTD3Policy, got {policy!r}")
