"""From flags and presets to the settings of a run, every one of them said."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, get_type_hints

from agents.nstep_replay import ReplayOptions
from agents.options import SparseOptions
from agents.presets import AGENT_PRESETS, AgentPreset
from envs.noise import Noise
from runs import algos
from runs.fixed_totals import fixed_sparsities
from runs.options import Train
from runs.seeds import SEEDS_BELOW
from runs.values import check_device, check_threads, parse_list, parse_widths, settings_in
from sparse_core import PRESETS, Preset
from sparse_core.distributions import fixes_total

FORMAT = "sparse-agents-run"
VERSION = 1


@dataclass(frozen=True)
class Settings:
    """Everything a run needs to be done again; `config.json` holds it."""

    algo: str
    env: str
    steps: int
    seed: int
    preset: str
    topology: str
    sparsity: float
    actor_sparsity: float
    critic_sparsity: float
    distribution: str
    dense: list[str | int]
    init: str
    drop_fraction: float
    schedule: str
    stop: float
    period: int
    capture_batches: int
    hidden: list[int]
    norm: str
    learning_rate: float
    weight_decay: float
    learning_starts: int
    batch_size: int
    buffer_size: int
    action_noise: float
    gamma: float
    tau: float
    policy_delay: int
    target_policy_noise: float
    target_noise_clip: float
    ent_coef: float | None
    target_update_interval: int
    n_steps: int
    n_step_onset: int
    buffer_min: int | None
    buffer_every: int
    buffer_distance: float
    device: str
    backend: str
    threads: int
    eval_every: int
    eval_episodes: int
    checkpoint_every: int
    final_episodes: int
    topology_from: str | None
    noise_features: float
    permute_features_every: int | None
    input_sparsity: float | None
    initial_topology: str

    @classmethod
    def resolve(cls, options: Train) -> Settings:
        """Flags over a topology's options over preset over its own choices; a `ValueError` says what cannot be."""
        preset = preset_of(options)

        topology = preset.topology if options.topology is None else options.topology
        method = PRESETS[topology]

        def chosen(name: str) -> Any:
            """As given by a flag, else with the topology's name, else by the preset."""
            given = getattr(options, name)
            return getattr(method if name in method.chosen else preset, name) if given is None else given

        sparsity = options.sparsity
        inputs = _input_sparsity(options, preset, topology)
        own = method.distribution if "distribution" in method.chosen else None
        distribution = options.distribution or own or preset.distribution_for(options.env)
        if sparsity is None and topology != "dense" and not (distribution and fixes_total(distribution)):
            sparsity = preset.sparsity
        sparse = SparseOptions.resolve(
            sparsity=sparsity,
            topology=topology,
            actor_sparsity=options.actor_sparsity,
            critic_sparsity=options.critic_sparsity,
            distribution=distribution,
            dense=parse_list(options.dense, "dense", "output"),
            init=options.init,
            drop_fraction=chosen("drop_fraction"),
            period=_period(options, preset, method),
            schedule=chosen("schedule"),
            stop=chosen("stop"),
            capture_batches=options.capture_batches,
            total_updates=None,
            backend=options.backend,
            input_sparsity=inputs,
            initial_topology=options.initial_topology,
        )
        hidden = list(preset.hidden) if options.hidden is None else parse_widths(options.hidden, "hidden", "256,256")
        actor, critic = sparse.actor, sparse.critic
        if fixes_total(sparse.distribution):
            noise = _noise(options.noise_features, options.seed, options.permute_features_every)
            actor, critic = fixed_sparsities(
                options.env, noise, hidden, sparse.dense, sparse.distribution, actor, critic,
                algos.find(options.algo).heads,
            )  # fmt: skip
        assert actor is not None
        assert critic is not None
        settings = cls(
            algo=options.algo, env=options.env, steps=options.steps, seed=options.seed,
            preset=options.algo if options.preset is None else options.preset,
            topology=topology, sparsity=max(actor, critic) if sparsity is None else sparsity,
            actor_sparsity=actor, critic_sparsity=critic, distribution=sparse.distribution,
            dense=list(sparse.dense), init=sparse.init, drop_fraction=sparse.drop_fraction, schedule=sparse.schedule,
            stop=sparse.stop, period=sparse.period, capture_batches=sparse.capture_batches,
            hidden=hidden,
            gamma=preset.gamma, tau=preset.tau, policy_delay=preset.policy_delay,
            target_policy_noise=preset.target_policy_noise, target_noise_clip=preset.target_noise_clip,
            **_replay(options, preset),
            ent_coef=preset.ent_coef, target_update_interval=preset.target_update_interval,
            device=check_device(options.device), backend=options.backend,
            threads=options.threads,
            checkpoint_every=options.checkpoint_every, norm=options.norm, final_episodes=options.final_episodes,
            noise_features=options.noise_features, permute_features_every=options.permute_features_every,
            input_sparsity=inputs, initial_topology=sparse.initial_topology,
            topology_from=None if options.topology_from is None else str(options.topology_from.expanduser().absolute()),
            **{name: chosen(name) for name in _FROM_PRESET},
        )  # fmt: skip
        settings.check()
        return settings

    @classmethod
    def from_config(cls, config: dict[str, Any], where: str) -> Settings:
        """The settings in a `config.json`, or a `UserError` for a damaged or foreign one."""
        settings = cls(**settings_in(config, where, "sparse-agents run", (FORMAT, VERSION), get_type_hints(cls), LATER))
        settings.check()
        return settings

    def check(self) -> None:
        """Raise a `ValueError` for a number out of range."""
        for name in (
            "steps",
            "batch_size",
            "buffer_size",
            "eval_every",
            "eval_episodes",
            "checkpoint_every",
            "n_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.norm not in ("none", "layer"):
            raise ValueError(f"`norm` must be none or layer, got {self.norm!r}")
        if (self.topology_from is not None) != PRESETS[self.topology].given:
            raise ValueError(
                f"topology {self.topology!r} takes the last topology of a run; name that with --topology-from RUN"
                if self.topology_from is None
                else f"--topology-from is for --topology final-topology, got topology {self.topology!r}; leave it out"
            )
        for name in (
            "learning_starts", "seed", "learning_rate", "weight_decay", "action_noise", "final_episodes",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be a finite number ≥ 0, got {getattr(self, name)}")
        check_threads(self.threads)
        ReplayOptions(self.n_step_onset, self.buffer_min, self.buffer_every, self.buffer_distance)
        Noise(self.noise_features, self.seed, self.permute_features_every)
        if self.permute_features_every is not None and not self.noise_features:
            raise ValueError("`permute_features_every` needs noise; give --noise-features, too, as 0.9")
        if self.seed >= SEEDS_BELOW:
            raise ValueError(f"`seed` must be below {SEEDS_BELOW}, got {self.seed}")
        if self.batch_size > self.buffer_size:
            raise ValueError(f"`batch_size` must not exceed `buffer_size`, got {self.batch_size} > {self.buffer_size}")

    @property
    def noise(self) -> Noise | None:
        """What the environment's observations get appended; None for those of the environment itself."""
        return _noise(self.noise_features, self.seed, self.permute_features_every)

    @property
    def note(self) -> str | None:
        """What is so short that it may not be meant; None where nothing is."""
        updates = self.steps - self.learning_starts
        if updates <= 0:
            return (
                f"with {self.steps} steps, of which the first {self.learning_starts} are random, nothing is "
                "learned; lower --learning-starts or raise --steps"
            )
        if PRESETS[self.topology].changes and updates < self.period:
            return (
                f"{updates} updates with a change every {self.period}: no connection moves; lower --period or raise "
                "--steps"
            )
        return None

    def as_dict(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return asdict(self)


LATER: dict[str, Any] = {
    "norm": "none", "final_episodes": 0, "topology_from": None, "noise_features": 0.0, "permute_features_every": None,
    "input_sparsity": None, "ent_coef": None, "target_update_interval": 1, "initial_topology": "random", "n_steps": 1,
    "n_step_onset": 0, "buffer_min": None, "buffer_every": 10_000, "buffer_distance": 0.2,
}  # fmt: skip
"""Settings that runs of earlier versions do not have, with what held then."""


def _noise(share: float, seed: int, permute_every: int | None) -> Noise | None:
    return Noise(share, seed, permute_every) if share else None


def preset_of(options: Train) -> AgentPreset:
    """The preset that is asked for, by default the algorithm's own; one of another algorithm is a `ValueError`."""
    name = options.algo if options.preset is None else options.preset
    preset = AGENT_PRESETS[name]
    if preset.algo != options.algo:
        fitting = ", ".join(each for each, other in AGENT_PRESETS.items() if other.algo == options.algo)
        raise ValueError(f"preset {name!r} is for {preset.algo}, got {options.algo}; choose one of {fitting}")
    return preset


def _period(options: Train, preset: AgentPreset, method: Preset) -> int | None:
    """As given, else the preset's share of the steps; None leaves it to the topology."""
    if options.period is not None or preset.period_share is None or method.keeps_period:
        return options.period
    return preset.scaled(preset.period_share, options.steps)


def _replay(options: Train, preset: AgentPreset) -> dict[str, Any]:
    """Returns and the buffer: as given, else the preset's shares of the steps in all."""
    minimum = options.buffer_min
    if minimum is None and preset.buffer_min is not None:
        minimum = preset.scaled(preset.buffer_min, options.steps)
    onset = options.n_step_onset
    return dict(
        n_steps=preset.n_steps if options.n_steps is None else options.n_steps,
        n_step_onset=preset.scaled(preset.n_step_onset, options.steps) if onset is None else onset,
        buffer_min=minimum or None,
        buffer_every=preset.scaled(preset.buffer_every, options.steps) if minimum else LATER["buffer_every"],
    )


def _input_sparsity(options: Train, preset: AgentPreset, topology: str) -> float | None:
    """Of the first layer alone: as given, else the preset's, unless the user asks for another sparsity or for none."""
    if options.input_sparsity is not None:
        return options.input_sparsity
    others = (options.sparsity, options.actor_sparsity, options.critic_sparsity)
    return None if topology == "dense" or any(each is not None for each in others) else preset.input_sparsity


_FROM_PRESET = (
    "learning_rate", "weight_decay", "learning_starts", "batch_size", "buffer_size", "action_noise", "buffer_distance",
    "eval_every", "eval_episodes",
)  # fmt: skip
