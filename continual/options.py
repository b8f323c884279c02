"""What a sparse continual learner may be told, checked at the door."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from continual.heads import HEADS
from continual.ledger import POLICIES, Demand, Policy
from sparse_core import DROP_RULES, GROW_RULES, SCHEDULES

Isolation = Literal["shared", "strict"]

CROWDED = 0.9
"""Share of the cells open to the last task that may be taken when it is done; the rest is slack for chance."""


@dataclass(frozen=True)
class Sizes:
    """What each task gets: neurons selected and reserved in each hidden layer, connections into every layer."""

    selected: tuple[int, ...]
    reserved: tuple[int, ...]
    connections: tuple[int, ...]

    def __post_init__(self) -> None:
        hidden = len(self.connections) - 1
        if not hidden == len(self.selected) == len(self.reserved):
            raise ValueError(
                "`Sizes` wants connections for every layer, and selected and reserved neurons for every layer but the "
                f"last; got {len(self.connections)}, {len(self.selected)} and {len(self.reserved)}"
            )
        if min(*self.selected, *self.reserved, *self.connections) < 0:
            raise ValueError(f"`Sizes` wants counts ≥ 0, got {self}")

    @classmethod
    def fitting(
        cls,
        shapes: Sequence[tuple[int, int]],
        classes: int,
        tasks: int,
        *,
        densities: Sequence[float] = (0.16, 0.256, 0.5),
        share: float = 0.2,
        reserve: float = 0.5,
        fill: float = 0.5,
    ) -> Sizes:
        """Sizes with which `tasks` tasks of `classes` classes fit.

        Args:
            shapes: (outputs, inputs) of each layer, the output layer last (`SubspaceNetwork.shapes`).
            classes: classes of one task.
            tasks: tasks to come.
            densities: of the connections between the neurons a task selects: first layer, layers between,
                output layer. The defaults are those of the SpaceNet release (784-80-80-2: 10,000, 1,640, 80).
            share: of a hidden layer's neurons that one task selects.
            reserve: share of the selected neurons that are reserved afterwards, while that leaves enough for all.
            fill: share of a hidden layer's cells that all tasks together may take.
        """
        widths = [outputs for outputs, _ in shapes[:-1]]
        selected = tuple(max(1, round(share * width)) for width in widths)
        room = [(width - count) // max(tasks - 1, 1) for width, count in zip(widths, selected, strict=True)]
        reserved = tuple(
            max(0, min(round(reserve * count), most)) for count, most in zip(selected, room, strict=True)
        )  # fmt: skip
        # What a task reads: all inputs first, then its own neurons, each of which may feed several inputs.
        below = zip(selected, shapes[1:], widths, strict=True)
        inputs = [shapes[0][1], *(count * (fan_in // width) for count, (_, fan_in), width in below)]
        first, between, last = densities
        wanted = [first, *[between] * (len(shapes) - 2), last]
        connections = [
            max(1, round(density * fan_in * fan_out))
            for density, fan_in, fan_out in zip(wanted, inputs, (*selected, classes), strict=True)
        ]  # fmt: skip
        limits = [max(1, int(fill * outputs * fan_in / tasks)) for outputs, fan_in in shapes[:-1]]
        pools = [_Pool(*each) for each in zip(widths, selected, reserved, strict=True)]
        first_inputs = _Pool(inputs[0], inputs[0], 0)
        for index, (rows, columns) in enumerate(zip(pools, [first_inputs, *pools], strict=False)):
            spread = inputs[index] // columns.selected
            limits[index] = min(limits[index], max(1, int(CROWDED * spread / _crowding(rows, columns, tasks) + 1e-6)))
        return cls(selected, reserved, (*map(min, connections[:-1], limits), connections[-1]))

    def demands(self, names: Sequence[str]) -> dict[str, Demand]:
        """By layer name, the output layer last."""
        rows = zip((*self.selected, 0), self.connections, (*self.reserved, 0), strict=True)
        return {name: Demand(*row) for name, row in zip(names, rows, strict=True)}


@dataclass(frozen=True)
class _Pool:
    """Neurons that tasks select from: each leaves some to the next."""

    width: int
    selected: int
    reserved: int

    @property
    def stays(self) -> float:
        """Share of what a task selects that later tasks may select again."""
        return 1 - self.reserved / self.selected


def _crowding(rows: _Pool, columns: _Pool, tasks: int) -> float:
    """For each connection a task takes: the share of the last task's cells that all tasks' connections take up.

    Reserved neurons are out of reach for later tasks, so what tasks leave behind crowds between those that remain.
    """
    left = sum(
        1 / ((rows.width - done * rows.reserved) * (columns.width - done * columns.reserved))
        for done in range(1, tasks)
    )  # fmt: skip
    return rows.stays * columns.stays * left + 1 / (rows.selected * columns.selected)


@dataclass(frozen=True)
class SubspaceOptions:
    """How tasks share a network and how their connections move."""

    sizes: Sizes
    isolation: Isolation = "shared"
    """shared: one network that all tasks read; strict: a task reads what stood when it ended, and no more."""
    reads: Literal["earlier", "own"] = "earlier"
    """Whether a task reads earlier tasks' connections, or its own only (strict isolation)."""
    head: str = "zeroed"
    """How other classes take part in the loss; see `HEADS`."""
    drop: str | None = "importance"
    grow: str | None = "gradient"
    drop_fraction: float = 0.2
    schedule: str = "cosine"
    period: int | None = None
    """Steps between two changes; left out, one change after every epoch but the last."""
    stop: float = 1.0
    """Share of a task's steps after which its connections stay."""
    capture_batches: int = 1
    """Batches before a change that gradient growth looks at."""
    rate_schedule: str = "constant"
    """Course of the learning rate over each task; see `SCHEDULES`."""
    head_bias: bool = True
    """Whether outputs have a bias; without, only connections speak for a class."""
    calibrate: bool = False
    """Whether a finished task's output rows are scaled, class by class, to be comparable; see `SpaceNet`."""
    regrow: Literal["no", "kept", "fresh"] = "no"
    """Whether a connection dropped in a change may grow again in it; see `Sparsifier`."""
    init: Literal["xavier", "he"] = "xavier"
    """New connections: uniform as in Glorot & Bengio for the dense shape, or as in He et al. for the actual fan-in."""
    biases: Literal["reserved", "used"] = "used"
    """Biases frozen when a task ends (shared isolation)."""
    read_reserved: bool = True
    """Whether later tasks may read reserved neurons."""
    policy: Policy = "error"
    """When a task does not fit: error, shrink or reclaim; see `TaskLedger.plan`."""

    def __post_init__(self) -> None:
        HEADS[self.head]
        SCHEDULES[self.schedule], SCHEDULES[self.rate_schedule]
        if not isinstance(self.sizes, Sizes):
            raise TypeError(f"`sizes` must be `Sizes`, such as `Sizes.fitting(…)`, got {type(self.sizes).__name__}")
        if self.period is not None and (not isinstance(self.period, int) or self.period < 1):
            raise ValueError(f"`period` must be a whole number of steps, at least 1, got {self.period!r}")
        if self.calibrate and self.head_bias:
            raise ValueError("`calibrate` scales weights of outputs, which have no bias then; give `head_bias=False`")
        if (self.drop is None) != (self.grow is None):
            raise ValueError(
                f"give both `drop` and `grow`, or neither for static connections; got {self.drop!r}, {self.grow!r}"
            )
        if self.drop is not None and self.grow is not None:
            DROP_RULES[self.drop], GROW_RULES[self.grow]
        choices = {"isolation": get_args(Isolation), "policy": POLICIES, "reads": ("earlier", "own")}
        choices |= {"init": ("xavier", "he"), "biases": ("reserved", "used"), "regrow": ("no", "kept", "fresh")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.reads == "own" and self.isolation != "strict":
            raise ValueError("`reads='own'` needs `isolation='strict'`: in a shared network every task reads all")
        if not 0 <= self.drop_fraction <= 1:
            raise ValueError(f"`drop_fraction` must be in [0, 1], got {self.drop_fraction!r}")


def accepting(options: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: the signature of an `__init__` names the fields of `options` where it says `**`.

    People see them in `help`, and Avalanche looks there for misspelt keywords.
    """

    def sign(init: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for parameter in inspect.signature(init).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        more = [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for field in fields(options)
        ]
        given: Any = init
        given.__signature__ = inspect.Signature([*own, *more])
        return init

    return sign
