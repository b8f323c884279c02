"""What makes an agent sparse, checked at the door and resolved once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparse_core import BACKENDS, DISTRIBUTIONS, INITIALISATIONS, PRESETS, SCHEDULES
from sparse_core.distributions import check_sparsity


@dataclass(frozen=True)
class SparseOptions:
    """Sparsity, topology and their courses, with every default filled in from the topology's preset."""

    topology: str
    actor: float
    critic: float
    distribution: str
    dense: tuple[str | int, ...]
    init: str
    drop_fraction: float
    period: int
    schedule: str
    stop: float
    capture_batches: int
    total_updates: int | None
    backend: str

    @classmethod
    def resolve(
        cls,
        sparsity: float | None,
        topology: str,
        actor_sparsity: float | None,
        critic_sparsity: float | None,
        distribution: str | None,
        dense: tuple[str | int, ...],
        init: str | None,
        drop_fraction: float | None,
        period: int,
        schedule: str | None,
        stop: float | None,
        capture_batches: int,
        total_updates: int | None,
        backend: str,
    ) -> SparseOptions:
        """The options with defaults filled in, or a `ValueError` that says what is wrong."""
        preset = PRESETS[topology]
        if sparsity is None:
            sparsity = 0.0 if preset.dense else 0.5
        actor, critic = (
            check_sparsity(sparsity if own is None else own) for own in (actor_sparsity, critic_sparsity)
        )  # fmt: skip
        if preset.dense and (actor or critic):
            raise ValueError(
                f"topology {topology!r} keeps every connection, got sparsity {max(actor, critic):g}; leave "
                f"the sparsity out, or choose one of {', '.join(name for name, other in PRESETS.items() if not other.dense)}"
            )
        options = cls(
            topology, actor, critic, distribution or preset.distribution, dense, init or preset.init,
            preset.drop_fraction if drop_fraction is None else drop_fraction, period, schedule or preset.schedule,
            preset.stop if stop is None else stop, capture_batches, total_updates, backend,
        )  # fmt: skip
        options.check()
        return options

    def check(self) -> None:
        """Raise a `ValueError` for a name that is not known or a number out of range."""
        DISTRIBUTIONS[self.distribution.partition(":")[0]]
        INITIALISATIONS[self.init]
        SCHEDULES[self.schedule]
        BACKENDS[self.backend]
        if not 0 <= self.drop_fraction <= 1:
            raise ValueError(f"`drop_fraction` must be in [0, 1], got {self.drop_fraction!r}")
        if not 0 <= self.stop <= 1:
            raise ValueError(f"`stop` must be a share of the updates in [0, 1], got {self.stop!r}")
        if self.period < 1 or self.capture_batches < 1:
            raise ValueError(
                f"`period` and `capture_batches` must be at least 1, got {self.period}, {self.capture_batches}"
            )
        if self.total_updates is not None and self.total_updates < 0:
            raise ValueError(f"`total_updates` must not be negative, got {self.total_updates!r}")

    @property
    def moves(self) -> bool:
        """Whether connections ever move."""
        return PRESETS[self.topology].drop is not None

    def policy(self, seed: int | None) -> dict[str, Any]:
        """What `SparseTD3Policy` is told."""
        return dict(
            actor=self.actor, critic=self.critic, distribution=self.distribution, dense=list(self.dense),
            init=self.init, backend=self.backend, seed=seed,
        )  # fmt: skip

    def sparsifier(self, total_updates: int | None, seed: int | None) -> dict[str, Any]:
        """What each `Sparsifier` is told."""
        if not self.moves:
            return dict(seed=seed)
        return dict(
            drop_fraction=self.drop_fraction, period=self.period, schedule=self.schedule, stop=self.stop,
            capture_batches=self.capture_batches, total_steps=total_updates, seed=seed,
        )  # fmt: skip
