"""What makes an agent sparse, checked at the door and resolved once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import nn

from sparse_core import BACKENDS, INITIALISATIONS, PRESETS, SCHEDULES, Preset, SparseLinear, Topology
from sparse_core.distributions import check_sparsity, fixes_total, repeated
from sparse_core.initial_topologies import placing
from sparse_core.method_checks import check_choices

NORMS = ("none", "layer")


@dataclass(frozen=True)
class SparseOptions:
    """Sparsity, topology and their courses, with every default filled in from the topology's preset."""

    topology: str
    actor: float | None
    """Sparsity of the actor; None where the distribution fixes it."""
    critic: float | None
    distribution: str
    dense: tuple[str | int, ...]
    init: str
    drop_fraction: float
    period: int
    schedule: str
    stop: float
    capture_batches: int
    total_updates: int | None
    backend: str | Mapping[str, str]
    topologies: Mapping[str, Topology] | None = None
    norm: str = "none"  # the default is that of agents that were saved before there was a choice
    input: float | None = None
    initial_topology: str = "random"

    @classmethod
    def resolve(
        cls,
        *,
        sparsity: float | None,
        topology: str,
        actor_sparsity: float | None,
        critic_sparsity: float | None,
        distribution: str | None,
        dense: tuple[str | int, ...],
        init: str | None,
        drop_fraction: float | None,
        period: int | None,
        schedule: str | None,
        stop: float | None,
        capture_batches: int | None,
        total_updates: int | None,
        backend: str | Mapping[str, str],
        topologies: Mapping[str, Topology] | None = None,
        norm: str = "none",
        input_sparsity: float | None = None,
        initial_topology: str | None = None,
    ) -> SparseOptions:
        """The options with defaults filled in, or a `ValueError` that says what is wrong."""
        preset = PRESETS[topology]
        if input_sparsity is not None:
            _check_input(input_sparsity, preset, topology, (sparsity, actor_sparsity, critic_sparsity))
        distribution = distribution or preset.distribution
        if preset.dense and fixes_total(distribution):
            distribution = preset.distribution
        if sparsity is None and not fixes_total(distribution):
            own = 0.5 if preset.own_sparsity is None else preset.own_sparsity
            sparsity = 0.0 if preset.dense or input_sparsity is not None else own
        _share(sparsity)
        actor, critic = (_share(sparsity if own is None else own) for own in (actor_sparsity, critic_sparsity))
        if preset.dense and (actor or critic):
            most = max(actor or 0.0, critic or 0.0)
            raise ValueError(
                f"topology {topology!r} keeps every connection, got sparsity {most:g}; leave "
                "the sparsity out, or choose a sparse topology, as 'static' or 'set'"
            )
        for each in (actor, critic):
            preset.settled(each)
        options = cls(
            topology, actor, critic, distribution, dense, init or preset.init,
            preset.drop_fraction if drop_fraction is None else drop_fraction,
            period if period is not None else preset.period if preset.keeps_period else 1_000,
            schedule or preset.schedule,
            preset.stop if stop is None else stop,
            preset.capture_batches if capture_batches is None else capture_batches, total_updates,
            dict(backend) if isinstance(backend, Mapping) else backend, topologies, norm, input_sparsity,
            initial_topology or preset.initial_topology,
        )  # fmt: skip
        options.check()
        return options

    def check(self) -> None:
        """Raise a `ValueError` for a name that is not known or a number out of range."""
        check_choices(PRESETS[self.topology])
        fixes_total(self.distribution)
        INITIALISATIONS[self.init]
        placing(self.initial_topology)
        SCHEDULES[self.schedule]
        for backend in self.backend.values() if isinstance(self.backend, Mapping) else [self.backend]:
            BACKENDS[backend]
        if self.norm not in NORMS:
            raise ValueError(
                f"`norm` must be one of {', '.join(map(repr, NORMS))}, got {self.norm!r}; take 'layer' for layer "
                "normalisation before each hidden activation, 'none' for networks without any"
            )
        if not 0 <= self.drop_fraction <= 1:
            raise ValueError(f"`drop_fraction` must be in [0, 1], got {self.drop_fraction!r}")
        if not 0 <= self.stop <= 1:
            raise ValueError(f"`stop` must be a share of the updates in [0, 1], got {self.stop!r}")
        for name in ("period", "capture_batches"):
            if not isinstance(getattr(self, name), int | np.integer) or getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1, got {getattr(self, name)!r}")
        if self.total_updates is not None and self.total_updates < 0:
            raise ValueError(f"`total_updates` must not be negative, got {self.total_updates!r}")

    @property
    def moves(self) -> bool:
        """Whether connections ever move."""
        return PRESETS[self.topology].changes

    def policy(self, seed: int | None) -> dict[str, Any]:
        """What a `SparsePolicy` is told."""
        return dict(
            actor=self.actor, critic=self.critic, distribution=self.distribution, dense=list(self.dense),
            init=self.init, backend=self.backend, norm=self.norm, seed=seed, topologies=self.topologies,
            topology=self.topology, input=self.input, initial_topology=self.initial_topology,
        )  # fmt: skip

    def sparsifier(
        self, total_updates: int | None, seed: int | None, sparsity: float | None, networks: int = 1
    ) -> dict[str, Any]:
        """What a `Sparsifier` of `networks` alike networks with this sparsity is told."""
        if not self.moves:
            return dict(seed=seed)
        course = PRESETS[self.topology].course
        if total_updates is None and (self.schedule != "constant" or self.stop < 1 or course is not None):
            raise ValueError(
                f"schedule {self.schedule!r} with `stop` {self.stop:g} needs the length of training, which does not "
                "follow from these settings; give `total_updates`, the planned critic gradient steps"
            )
        return dict(
            drop_fraction=self.drop_fraction, period=self.period, schedule=self.schedule, stop=self.stop,
            capture_batches=self.capture_batches, total_steps=total_updates, seed=seed, sparsity=sparsity,
            distribution=repeated(self.distribution, networks),
        )  # fmt: skip


def _share(sparsity: float | None) -> float | None:
    return None if sparsity is None else check_sparsity(sparsity)


def _check_input(share: float, preset: Preset, topology: str, others: tuple[float | None, ...]) -> None:
    """Raise a `ValueError` where a sparsity of the input layer alone has no meaning."""
    check_sparsity(share)
    if any(others):
        raise ValueError(
            f"`input_sparsity` {share:g} leaves every other layer dense; leave `sparsity`, `actor_sparsity` and "
            "`critic_sparsity` out, or leave it out"
        )
    if preset.dense or preset.begins_wider:
        raise ValueError(
            f"topology {topology!r} cannot keep an input layer sparse alone; choose one that keeps its number of "
            "connections, as 'set' or 'static'"
        )


def check_spaces(observations: spaces.Space[Any], actions: spaces.Space[Any], agent: str) -> None:
    """Raise a `ValueError` for an environment that is not of boxes."""
    if isinstance(observations, spaces.Dict):
        raise ValueError(
            f"{agent} takes Box observations, got Dict; flatten them with `gymnasium.wrappers.FlattenObservation`"
        )
    if not isinstance(actions, spaces.Box):
        raise ValueError(f"{agent} takes Box actions, got {actions}; take an environment with continuous actions")


def check_network(net_arch: Any) -> None:
    """Raise a `ValueError` for a hidden layer without units."""
    widths = [*net_arch.values()] if isinstance(net_arch, dict) else [net_arch] if net_arch is not None else []
    for layers in widths:
        whole = isinstance(layers, list | tuple) and all(isinstance(width, int | np.integer) for width in layers)
        if not whole or min(layers, default=1) < 1:
            raise ValueError(f"every hidden layer must be at least 1 wide, got `net_arch` {net_arch!r}")


def check_same_layers(policy: nn.Module, incoming: Mapping[str, Any]) -> None:
    """Raise a `ValueError` where a layer is sparse on one side and dense on the other."""
    differing = []
    for name, module in policy.named_modules():
        own, other = ("values", "weight") if isinstance(module, SparseLinear) else ("weight", "values")
        if isinstance(module, SparseLinear | nn.Linear) and f"{name}.{other}" in incoming:
            differing.append(f"{name} ({'sparse' if own == 'values' else 'dense'} here)")
    if differing:
        raise ValueError(
            f"these layers are sparse in one agent and dense in the other: {', '.join(differing)}; make an agent with "
            "the sparsity and distribution of the one the parameters come from, or use its class's `load`"
        )
