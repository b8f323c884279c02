"""What every sparse agent has in common: networks made sparse, topologies that move, and all that saving needs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from inspect import Parameter, signature
from typing import Any, ClassVar, Self

import numpy as np
import torch
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, TrainFreq, TrainFrequencyUnit
from torch import Tensor, nn

from agents.moving import MovingTopologies, Update
from agents.nstep_replay import NStepReplay, ReplayOptions
from agents.options import SparseOptions, check_network, check_same_layers, check_spaces
from agents.policies import SparsePolicy
from agents.replay import Float32ReplayBuffer
from sparse_core import PRESETS, Sparsifier, Topology, settle, sparse_layers
from sparse_core.crossover import AUTO
from sparse_core.optimizer_state import check_elementwise
from sparse_core.registry import meant
from sparse_core.sparsifier import Rewirings

_OF_REPLAY = ("n_step_onset", "buffer_min", "buffer_every", "buffer_distance")


class SparseAgent(MovingTopologies):
    """An off-policy SB3 algorithm with sparse actor and critics: comes before SB3's class in an agent's bases.

    Targets share the topology of their online networks at every moment. What a subclass says is in `MovingTopologies`.

    Args:
        policy: `"MlpPolicy"` or a subclass of the policy that goes by that name.
        env: as in SB3; Box observations and actions.
        *args: as in SB3, in SB3's order.
        sparsity: share of connections left out in the actor and in each critic, over all their weight
            matrices; 0 is a plain dense agent. By default 0.5, or 0 with `topology="dense"`.
        topology: the method, a name from `sparse_core.PRESETS`.
        actor_sparsity: of the actor alone, instead of `sparsity`.
        critic_sparsity: of each critic, instead of `sparsity`.
        distribution: how connections are shared out between layers; the topology's own by default.
        dense: layers kept dense: `"input"`, `"output"`, indices or globs.
        init: initial weights, `"torch"` or `"fan-in"`; the topology's own by default.
        drop_fraction: share ζ of each layer's connections that change; the topology's own by default.
        period: critic gradient steps between two changes, 1000 by default, but for a topology that is itself only with
            its own (`itop-rigl`, `deepr`, …). Actor and critics change together, at the first policy update from there
            on.
        schedule: course of ζ over training; the topology's own by default.
        stop: share of the planned updates after which the topology stays; the topology's own by default.
        capture_batches: batches before a change that gradient growth looks at; the topology's own by default, mostly 1.
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
        initial_topology: where connections are at the start, a name from `sparse_core.INITIAL_TOPOLOGIES` that reads no
            inputs; the topology's own by default, which is `"random"`.
        n_step_onset: updates whose returns are over one step, whatever `n_steps` (SB3's own argument); with delayed
            long returns and `buffer_min` the agent learns as RLx2's does (arXiv:2205.15043).
        buffer_min: rows that the replay buffer keeps in any case while it forgets old ones that the policy contradicts;
            None, the default: it forgets nothing before it is full.
        buffer_every: updates after which it looks at its oldest rows.
        buffer_distance: half the mean squared distance between their actions, in [-1, 1], and the policy's from which
            on a tenth of all rows goes.
        **kwargs: as in SB3.

    Raises:
        ValueError: for values that cannot be, before anything is made.
        TypeError: for an optimizer whose state cannot follow moving connections.
    """

    policy: Any
    replay_options = ReplayOptions()
    """Those of agents that were saved before there was a choice."""
    at_least_one: ClassVar[tuple[str, ...]] = ("batch_size", "buffer_size")
    """Settings of SB3's that are numbers from 1 on."""

    def __init__(
        self,
        policy: str | type[SparsePolicy],
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
        capture_batches: int | None = None,
        total_updates: int | None = None,
        topologies: Mapping[str, Topology] | None = None,
        backend: str | Mapping[str, str] = "auto",
        norm: str = "none",
        input_sparsity: float | None = None,
        initial_topology: str | None = None,
        n_step_onset: int = 0,
        buffer_min: int | None = None,
        buffer_every: int = 10_000,
        buffer_distance: float = 0.2,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        self.sparse_options = SparseOptions.resolve(
            sparsity=sparsity, topology=topology, actor_sparsity=actor_sparsity, critic_sparsity=critic_sparsity,
            distribution=distribution, dense=(dense,) if isinstance(dense, (str, int)) else tuple(dense), init=init,
            drop_fraction=drop_fraction, period=period, schedule=schedule, stop=stop,
            capture_batches=capture_batches, total_updates=total_updates, backend=backend, topologies=topologies,
            norm=norm, input_sparsity=input_sparsity, initial_topology=initial_topology,
        )  # fmt: skip
        self.replay_options = ReplayOptions(n_step_onset, buffer_min, buffer_every, buffer_distance)
        if PRESETS[topology].given and topologies is None and _init_setup_model:
            raise ValueError(
                f"topology {topology!r} takes its connections from elsewhere, got none; give `topologies` by the names "
                "of the sparse layers, or choose 'static' for a drawn one"
            )
        self._check_policy(policy)
        if env is not None:  # None: `load` without one
            env = maybe_make_env(env, kwargs.get("verbose", 0))
            check_spaces(env.observation_space, env.action_space, type(self).__name__)
        self.actor_sparsifier: Sparsifier | None = None
        self.critic_sparsifier: Sparsifier | None = None
        self.last_rewirings: Rewirings = {}
        self._adaptation: dict[str, Any] | None = None
        self._losses: dict[str, Tensor | float] = {}
        self._update: Update | None = None
        self._settled: tuple[str, dict[str, str]] | None = None  # device, and what `auto` found for it
        self._loading = False
        self._check_arguments(kwargs)
        super().__init__(policy, env, *args, _init_setup_model=False, **kwargs)  # type: ignore[call-arg]
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self, given: Mapping[str, Any]) -> None:
        known: dict[str, Parameter] = {}
        for kind in type(self).__mro__:
            if "__init__" in vars(kind):
                own = signature(vars(kind)["__init__"]).parameters
                known |= own
                if all(each.kind is not Parameter.VAR_KEYWORD for each in own.values()):
                    break  # what it does not name goes no further
        for name in given:
            if name not in known:
                raise TypeError(
                    f"{type(self).__name__} has no argument {name!r}; {meant(name, known)}it takes its own and those "
                    f"of {kind.__module__.partition('.')[0]}'s {kind.__name__}"
                )

    def _check_policy(self, policy: object) -> None:
        wanted = self.policy_aliases["MlpPolicy"]
        if policy == "MlpPolicy" or (isinstance(policy, type) and issubclass(policy, wanted)):
            return
        raise ValueError(f"`policy` must be 'MlpPolicy' or a subclass of {wanted.__name__}, got {policy!r}")

    def _setup_model(self) -> None:
        self._check_settings()
        self._loading = self._adaptation is not None
        self._choose_buffer()
        given, n_steps = self.policy_kwargs, self.n_steps
        self.policy_kwargs = {**given, "sparse": self.sparse_options.policy(self.seed)}
        if self.replay_buffer_class is NStepReplay:
            self.n_steps = 1  # SB3 warns that it leaves long returns to the buffer
        super()._setup_model()
        self.policy_kwargs, self.n_steps = given, n_steps  # as the user knows them: `load` compares
        if self.sparse_options.backend == AUTO:
            self._settle_backends()
        if self.sparse_options.moves:
            check_elementwise(self.actor.optimizer)
            check_elementwise(self.critic.optimizer)

    def _choose_buffer(self) -> None:
        """Take a replay buffer of ours where the user leaves that to the agent; plain long returns are SB3's own."""
        special = self.replay_options.onset > 0 or self.replay_options.minimum is not None
        if self._scales_float64:  # when rows are sampled: what float32 lost before would be missing then
            if self.replay_buffer_class is Float32ReplayBuffer:  # of an agent that was saved without
                self.replay_buffer_class = None
            if special:
                raise ValueError(
                    "`n_step_onset` and `buffer_min` are for the agent's own replay buffer, which keeps float32: too "
                    "little for float64 observations that `VecNormalize` has yet to scale; let the environment give "
                    "float32, or leave these settings out"
                )
        elif self.replay_buffer_class is None and not self.optimize_memory_usage and (special or self.n_steps == 1):
            self.replay_buffer_class = NStepReplay if special else Float32ReplayBuffer
        elif special and self.replay_buffer_class is not NStepReplay:
            raise ValueError(
                "`n_step_onset` and `buffer_min` are for the agent's own replay buffer; leave "
                "`replay_buffer_class` and `optimize_memory_usage` out, or these settings"
            )

    @property
    def _scales_float64(self) -> bool:
        """Whether `VecNormalize` has yet to scale float64 observations."""
        normalising = self._vec_normalize_env
        return normalising is not None and normalising.norm_obs and self.observation_space.dtype == np.float64

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As SB3's; warns where the replay buffer keeps less than `VecNormalize` would need."""
        super().set_env(env, force_reset)
        if self._scales_float64 and isinstance(self.replay_buffer, Float32ReplayBuffer):
            warnings.warn(
                "the replay buffer keeps float32 of observations that `VecNormalize` has yet to scale; where they are "
                "large, make the agent with this environment, or load it with it",
                stacklevel=2,
            )

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
        own = {*signature(SparseOptions.resolve).parameters, *_OF_REPLAY}
        sparse = sorted(own & vars(self).keys())
        if sparse:
            raise ValueError(
                f"`load` cannot change {', '.join(f'`{name}`' for name in sparse)}: an agent keeps what it was made "
                "with; make a new one, and if the layers are the same, take over the weights with `set_parameters`"
            )
        check_network(self.policy_kwargs.get("net_arch"))
        for name in self.at_least_one:
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
        fresh = kwargs.get("reset_num_timesteps", args[1] if len(args) > 1 else True)
        if isinstance(self.replay_buffer, NStepReplay) and (fresh or self._last_obs is None):
            self.replay_buffer.cut_off()  # the environment is reset
        result = super()._setup_learn(int(total_timesteps), *args, **kwargs)
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

    def set_parameters(self, load_path_or_dict: Any, *args: Any, **kwargs: Any) -> None:
        """As SB3's; what belongs to connections that moved, and did not come along, starts anew.

        That is their moments and what the method remembers of them. Targets that did not come become copies.
        """
        incoming = load_path_or_dict
        if not isinstance(incoming, dict):
            incoming = load_from_zip_file(load_path_or_dict, load_data=False)[1]
        check_same_layers(self.policy, incoming.get("policy", {}))
        before = {name: layer.positions.clone() for name, layer in sparse_layers(self.policy).items()}
        try:
            super().set_parameters(incoming, *args, **kwargs)
        finally:  # SB3 finds out that something is missing when the rest is loaded
            for prefix, network in (("actor", self.actor), ("critic", self.critic)):
                came = f"{prefix}.optimizer" in incoming
                for name, layer in sparse_layers(network).items():
                    moved = not torch.equal(layer.positions, before[f"{prefix}.{name}"])
                    if moved and not came:
                        network.optimizer.state.pop(layer.values, None)
                    if moved and not self._loading:  # `load` brings what was saved with these parameters
                        self._forget(prefix, name)
            self._loading = False
        for online, target in (
            (self.critic, self.critic_target),
            *((self.actor, each) for each in self._actor_followers()),
        ):
            there = sparse_layers(target)
            if any(layer.topology != there[name].topology for name, layer in sparse_layers(online).items()):
                target.load_state_dict(online.state_dict())

    def _forget(self, network: str, layer: str) -> None:
        """Let go of what the method remembers of a layer's connections."""
        sparsifier = self.actor_sparsifier if network == "actor" else self.critic_sparsifier
        if sparsifier is not None:
            sparsifier.forget(layer)
        elif self._adaptation is not None:
            state = self._adaptation[network]
            kept = {key: {**state.get(key, {}), layer: {}} for key in ("memory", "marks")}
            captures = {name: pairs for name, pairs in state["captures"].items() if name != layer}
            if state["importance"] is not None:
                totals = {name: total for name, total in state["importance"]["totals"].items() if name != layer}
                kept["importance"] = {**state["importance"], "totals": totals}
            self._adaptation = {**self._adaptation, network: {**state, **kept, "captures": captures}}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that learns on by itself: what is bound to this agent's memory is made anew there."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for name, value in vars(self).items():
            vars(twin)[name] = None if name in ("_update", "_acting") else deepcopy(value, memo)
        return twin

    def save(self, *args: Any, **kwargs: Any) -> None:
        """SB3's own format; like every SB3 file, load it only from people you trust (it unpickles)."""
        kept, self._adaptation = self._adaptation, self.adaptation_state()
        try:
            super().save(*args, **kwargs)
        finally:
            self._adaptation = kept

    def _excluded_save_params(self) -> list[str]:
        made = ["actor_sparsifier", "critic_sparsifier", "last_rewirings", "_losses", "_update", "_loading"]
        return [*super()._excluded_save_params(), *made]
