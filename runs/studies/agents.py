"""Studies of agents: from flags to arms, what each costs a second, and one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

import envs
from agents.presets import AGENT_PRESETS
from runs import algos
from runs.building import build
from runs.fixed_totals import space_sizes
from runs.flags import AgentFlags, left_out
from runs.options import Resume, Train
from runs.settings import FORMAT, VERSION, Settings
from runs.small_dense import agent_weights, small_hidden
from runs.studies.options import Compare
from runs.studies.plan import Arm
from runs.training import begin, resume
from runs.values import names_in, words
from sparse_core import PRESETS
from sparse_core.distributions import fixes_total


@dataclass(frozen=True)
class _ArmFlags(AgentFlags):
    """What an --arm may say: every flag of `train` but those that all runs of a study share."""

    sparsity: Annotated[float | None, left_out("FLOAT")] = None
    topology: str = ""
    """(default: the preset's)"""
    preset: str = "td3"


@dataclass(frozen=True)
class _Wanted:
    """An arm before its settings are known."""

    name: str
    flags: _ArmFlags
    of: str | None = None
    as_large_as: float | None = None


def arms(options: Compare) -> list[Arm]:
    """Every arm with its settings in every environment; a `ValueError` says what cannot be."""
    wanted = _grid(options) + [_given(text, options) for text in options.arm]
    groups = names_in(options.env, "env")
    for group in groups:
        envs.make(group).close()  # one that is not there shows itself here
    return [_arm(each, groups, options) for each in wanted]


def _sparsities(options: Compare, preset: str) -> list[float | None]:
    """Those of the grid; None alone where other flags or the preset say what is left out."""
    text, flags, chosen = options.sparsities, _flags(options, preset=preset), AGENT_PRESETS[preset]
    if text is None:
        by_network = flags.actor_sparsity is not None and flags.critic_sparsity is not None
        inputs = (flags.input_sparsity, chosen.input_sparsity) != (None, None)
        if by_network or inputs or fixes_total(flags.distribution or "erk"):
            return [None]
        return [0.9 if chosen.sparsity is None else chosen.sparsity]
    try:
        return [float(name) for name in names_in(text, "sparsities")]
    except ValueError as error:
        raise ValueError(f"`sparsities` must be a comma list of different numbers in [0, 1), got {text!r}") from error


def _grid(options: Compare) -> list[_Wanted]:
    """Arms in the order of the flags: per preset dense, then every sparsity's small-dense and methods."""
    presets, methods = names_in(options.presets, "presets"), names_in(options.topologies, "topologies")
    plain = [method for method in methods if method != "dense"]
    found = []
    for preset in presets:
        prefix = f"{preset}-" if len(presets) > 1 else ""
        flags = _flags(options, preset=preset)
        if "dense" in methods:
            found.append(_Wanted(f"{prefix}dense", _dense(flags)))
        for sparsity in _sparsities(options, preset) if plain or options.small_dense else []:
            if options.small_dense:
                if sparsity is None:
                    raise ValueError(
                        "`small_dense` is as large as a network of one of the `sparsities`; give those, too"
                    )
                found.append(_Wanted(f"{prefix}small-dense-{sparsity:g}", flags, as_large_as=sparsity))
            for method in plain:
                found.append(_sparse(method, methods, sparsity, prefix, flags))
    return found


def _dense(flags: _ArmFlags) -> _ArmFlags:
    """The same for a dense agent, which has no use for what is said of sparse ones."""
    distribution = None if fixes_total(flags.distribution or "erk") else flags.distribution
    return replace(
        flags, topology="dense", distribution=distribution, sparsity=None, actor_sparsity=None, critic_sparsity=None,
        input_sparsity=None,
    )  # fmt: skip


def _sparse(method: str, methods: list[str], sparsity: float | None, prefix: str, flags: _ArmFlags) -> _Wanted:
    topology, _, source = method.partition(":")
    if "=" in source:  # options of the topology, not the arm that it comes from
        topology, source = method, ""
    suffix = "" if sparsity is None else f"-{sparsity:g}"
    plain = method.replace(":", "-" if topology == method else "-of-").replace("=", "-")
    name, of = f"{prefix}{plain}{suffix}", None
    if PRESETS[topology].given:
        searching = [other for other in methods if ":" not in other and PRESETS[other].searches]
        source = source or next(iter(searching), "")
        if source not in searching:
            raise ValueError(
                f"topology {method!r} takes the last topology of a method that searches, which must be among "
                f"`topologies`, too; got {', '.join(methods)}"
            )
        of = f"{prefix}{source}{suffix}"
    elif source:
        raise ValueError(
            f"`topologies` has {method!r}, but {topology!r} takes its topology from nobody; leave {source!r} out"
        )
    return _Wanted(name, replace(flags, topology=topology, sparsity=sparsity), of)


def _flags(options: Compare, **changes: Any) -> _ArmFlags:
    shared = {field.name: getattr(options, field.name) for field in fields(AgentFlags)}
    return _ArmFlags(**{**shared, **changes})


def _given(text: str, options: Compare) -> _Wanted:
    """An --arm: its name, then its own flags over those of the command."""
    name, *arguments = words(text)
    base = _flags(options, preset=names_in(options.presets, "presets")[0])
    config = (tyro.conf.OmitArgPrefixes,)
    flags = tyro.cli(_ArmFlags, prog=f"--arm {name}", args=arguments, default=base, config=config)
    topology = flags.topology or AGENT_PRESETS[flags.preset].topology
    if PRESETS[topology].given:
        raise ValueError(f"--arm {name}: {topology!r} takes its topology from another arm; name it in --topologies")
    return _Wanted(name, replace(flags, topology=topology))


def _arm(wanted: _Wanted, groups: list[str], options: Compare) -> Arm:
    settings = {group: _settings(wanted, group, options) for group in groups}
    method = "small-dense" if wanted.as_large_as is not None else wanted.flags.topology
    plain = {group: stored(each) for group, each in settings.items()}
    return Arm(wanted.name, method, plain, of=wanted.of, as_large_as=wanted.as_large_as)


def stored(settings: Settings) -> dict[str, Any]:
    """Settings as a plan holds them: without what differs from seed to seed."""
    return {name: value for name, value in settings.as_dict().items() if name not in ("seed", "topology_from")}


def _settings(wanted: _Wanted, group: str, options: Compare) -> Settings:
    flags = wanted.flags
    if wanted.as_large_as is not None:
        flags = _narrowed(flags, group, options, wanted.as_large_as)
    given = {field.name: getattr(flags, field.name) for field in fields(_ArmFlags)}
    # Only a place holder: each run takes it from the run of its own seed.
    source = Path("/") if wanted.of is not None else None
    threads = options.threads_per_worker
    algo = AGENT_PRESETS[flags.preset].algo
    return Settings.resolve(
        Train(algo=algo, env=group, steps=options.steps, threads=threads, topology_from=source, **given)
    )


def _narrowed(flags: _ArmFlags, group: str, options: Compare, sparsity: float) -> _ArmFlags:
    """Flags of a dense agent with as many weights as a static one of this sparsity."""
    sparse = _settings(_Wanted("", replace(flags, topology="static", sparsity=sparsity)), group, options)
    observations, actions = space_sizes(group, sparse.noise)
    heads = algos.find(sparse.algo).heads
    actor, critic = agent_weights(sparse.hidden, observations, actions, heads)
    wanted = round((1 - sparse.actor_sparsity) * actor) + 2 * round((1 - sparse.critic_sparsity) * critic)
    hidden = small_hidden(sparse.hidden, wanted, observations, actions, heads)
    return replace(_dense(flags), hidden=",".join(map(str, hidden)))


def settle(arm: Arm, group: str, seed: int) -> dict[str, str]:
    """What multiplies in every sparse layer of an arm; measured where that was left to us."""
    model = build(settings_of(arm.settings[group], seed, None))
    backends = model.backends
    env = model.get_env()
    assert env is not None
    env.close()
    return backends


def settings_of(settings: Mapping[str, Any], seed: int, topology_from: str | None) -> Settings:
    """The settings of one run; one whose source is not there yet is as a static one."""
    given = {**settings, "seed": seed, "topology_from": topology_from}
    if PRESETS[settings["topology"]].given and topology_from is None:
        given["topology"] = "static"
    return Settings.from_config({"format": FORMAT, "version": VERSION, "settings": given}, "the plan of the study")


def run(directory: Path, settings: Mapping[str, Any], seed: int, backends: Mapping[str, str], of: str | None) -> int:
    """Begin or continue one run; the exit code of `train`."""
    if (directory / "config.json").exists():
        return resume(Resume(directory))
    return begin(settings_of(settings, seed, of), directory, backends)
