"""From flags to the settings of a continual run; None leaves a choice to the strategy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from continual.benchmarks import BENCHMARKS
from continual.catalogue import strategy_summary
from continual.learner import OPTIMIZERS
from continual.ledger import POLICIES
from continual.normalisation import NORMS
from runs.options import Continual
from runs.seeds import parse_seeds
from runs.values import check_device, check_threads, parse_widths, settings_in
from sparse_core import BACKENDS
from sparse_core.crossover import AUTO
from sparse_core.initial_topologies import placing

FORMAT = "sparse-agents-continual"
VERSION = 1
_MACHINE = ("data_root", "joint", "checkpoint_every")
_MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Settings:
    """Everything a run needs to be done again; `config.json` holds it."""

    strategy: str
    benchmark: str
    seeds: list[int]
    tasks: int | None
    class_order: str
    hidden: list[int]
    channels: list[int]
    norm: str
    epochs: int | None
    batch_size: int | None
    isolation: str | None
    head: str | None
    optimizer: str | None
    learning_rate: float | None
    policy: str | None
    memory: int | None
    initial_topology: str | None
    data_root: str | None
    joint: str | None
    device: str
    threads: int
    backend: str
    checkpoint_every: float

    @classmethod
    def resolve(cls, options: Continual) -> Settings:
        """Flags with every list read; a `ValueError` says what cannot be."""
        device = check_device(options.device)
        settings = cls(
            strategy=options.strategy, benchmark=options.benchmark, seeds=parse_seeds(options.seeds),
            tasks=options.tasks, class_order=options.class_order,
            hidden=parse_widths(options.hidden, "hidden", "400,400"),
            channels=parse_widths(options.channels, "channels", "32,64", least=0), norm=options.norm,
            data_root=_absolute(options.data_root), joint=_absolute(options.joint),
            device=device, threads=options.threads,
            backend=options.backend or ("csr" if device == "cpu" else "gemm"),
            checkpoint_every=options.checkpoint_every,
            **{name: getattr(options, name) for name in _GIVEN},
        )  # fmt: skip
        settings.check()
        return settings

    @classmethod
    def from_config(cls, config: dict[str, Any], where: str) -> Settings:
        """The settings in a `config.json`, or a `UserError` for a damaged or foreign one."""
        settings = cls(**settings_in(config, where, "continual run", (FORMAT, VERSION), get_type_hints(cls), LATER))
        settings.check()
        return settings

    def check(self) -> None:
        """Raise a `ValueError` for what can be seen to be wrong without data."""
        strategy_summary(self.strategy)
        BENCHMARKS[self.benchmark]
        for name in ("tasks", "epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        if self.memory is not None and self.memory < 0:
            raise ValueError(f"`memory` must be at least 0, got {self.memory}")
        if self.learning_rate is not None and not 0 <= self.learning_rate < float("inf"):
            raise ValueError(f"`learning_rate` must be a finite number ≥ 0, got {self.learning_rate}")
        if not 0 <= self.checkpoint_every < float("inf"):
            raise ValueError(f"`checkpoint_every` must be a finite number of seconds ≥ 0, got {self.checkpoint_every}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not all(0 <= s < _MOST_SEED for s in self.seeds):
            raise ValueError(f"`seeds` must be different whole numbers from 0 to {_MOST_SEED - 1}, got {self.seeds}")
        if not self.hidden or min(self.hidden + self.channels) < 1:
            raise ValueError(f"`hidden` must hold widths, all of them positive, got {self.hidden} and {self.channels}")
        self._check_names()
        check_threads(self.threads)

    def _check_names(self) -> None:
        backends = tuple(name for name in BACKENDS if name != AUTO)
        if self.backend == AUTO:
            # It would settle anew in a run that is resumed, and add up in another order.
            raise ValueError(f"`backend` auto is not for continual runs; choose one of {', '.join(backends)}")
        BACKENDS[self.backend]
        choices = {
            "optimizer": tuple(OPTIMIZERS), "policy": POLICIES, "isolation": ("shared", "strict"), "norm": NORMS,
        }  # fmt: skip
        if self.initial_topology is not None:
            placing(self.initial_topology)
        for name, known in choices.items():
            if getattr(self, name) not in (None, *known):
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    def as_dict(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return asdict(self)

    def of_the_method(self) -> dict[str, Any]:
        """What `result.json` holds: without what belongs to a machine and changes no result."""
        return {name: value for name, value in self.as_dict().items() if name not in _MACHINE}


_GIVEN = (
    "epochs",
    "batch_size",
    "isolation",
    "head",
    "optimizer",
    "learning_rate",
    "policy",
    "memory",
    "initial_topology",
)
LATER: dict[str, Any] = {"initial_topology": None}


def default_directory(settings: Settings) -> Path:
    """results/continual/BENCHMARK/STRATEGY."""
    return Path("results") / "continual" / settings.benchmark / settings.strategy


def _absolute(path: Path | None) -> str | None:
    """So that the run can be resumed from another directory."""
    return None if path is None else str(path.expanduser().absolute())
