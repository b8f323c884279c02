"""What a `study.json` and a `result.json` must look like, and the first place where one does not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Shape = Any
"""`float` (a finite number), `str`, `bool` or `object` (anything); `[shape]` a list of those; a tuple a list of exactly
those; a dict an object that has at least these; or one of the three below."""


@dataclass(frozen=True)
class Maybe:
    """May be left out or null."""

    shape: Shape


@dataclass(frozen=True)
class Some:
    """A list of at least one."""

    shape: Shape


@dataclass(frozen=True)
class Each:
    """An object whose names are free."""

    shape: Shape


_POINTS = Some((float, float))
_MACHINE = Maybe(Each(object))
_SCORES = {name: {"mean": Maybe(float)} for name in ("acc", "bwt", "forgetting", "fwt", "la")}
_MATRICES = {kind: Maybe((Some(Some(float)),)) for kind in ("class_il", "task_il")}
RESULTS: dict[str, Shape] = {
    "agents": {
        "seed": float,
        "steps": float,
        "curve": _POINTS,
        "final": Maybe({"mean_return": float}),
        "dormant": Maybe([(float, Each(float))]),
        "topology_course": Maybe([(float, float, float)]),
        "topology_distance": Maybe([(float, Each(float), Each(float))]),
        "gradient_flow": Maybe([(float, Each(Maybe(float)))]),
        "small_world": Maybe(Each(Each(Maybe(float)))),
        "degrees": Maybe(Each({"fan_in": _POINTS, "fan_out": _POINTS})),
        "input_connections": Maybe(Each(Some(float))),
        "real_features": Maybe(Some(float)),
        "input_course": Maybe([(float, Each((float, float, float)))]),
        "nnz_total": float,
        "train_flops": float,
        "bytes": {"total": float},
        "measured": {
            "seconds": float,
            "curve_seconds": Maybe([(float, float)]),
            "machine": _MACHINE,
            "processor_seconds": Maybe(float),
            "curve_processor_seconds": Maybe([(float, float)]),
        },
    },
    "continual": {
        "seeds": (float,),
        "scenario": str,
        "benchmark_scenario": str,
        "joint": bool,
        "task_classes": Some([float]),
        "class_il": _SCORES,
        "task_il": _SCORES,
        "R": _MATRICES,
        "final": {kind: Maybe((Some(float),)) for kind in ("class_il", "task_il")},
        "nnz": (Some(float),),
        "bytes": (Some({"total": float}),),
        "measured": {"seconds": (float,), "machine": _MACHINE},
    },
}
_SETTINGS = {
    "agents": {"steps": float, "sparsity": float, "hidden": [float], "norm": str, "preset": str},
    "continual": {"strategy": str},
}


def plan_shape(kind: str) -> Shape:
    """Of the plan of a study."""
    arm = {"name": str, "method": str, "settings": Each(_SETTINGS[kind]), "of": Maybe(str), "as_large_as": Maybe(float)}
    return {
        "groups": Some(str),
        "seeds": Some(float),
        "arms": Some(arm),
        "commands": [[str]],
        "versions": Each(str),
        "commit": Maybe(str),
    }


def fault(value: Any, shape: Shape) -> str | None:
    """The first place where `value` is not of this shape, in words; None where it is."""
    return next(_faults(value, shape, ""), None)


def _faults(value: Any, shape: Shape, place: str) -> Iterator[str]:
    if shape is object or (isinstance(shape, Maybe) and value is None):
        return
    if isinstance(shape, Maybe):
        yield from _faults(value, shape.shape, place)
    elif isinstance(shape, type):
        if not _is(value, shape):
            yield f"`{place}` must be {_NAMES[shape]}, got {_short(value)}"
    elif isinstance(shape, Mapping | Each):
        yield from _in_object(value, shape, place)
    else:
        yield from _in_list(value, shape, place)


def _in_object(value: Any, shape: Mapping[str, Shape] | Each, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"`{place}` must be an object, got {_short(value)}"
        return
    inner = {name: shape.shape for name in value} if isinstance(shape, Each) else shape
    for name, each in inner.items():
        where = f"{place}.{name}" if place else name
        if name in value or isinstance(each, Maybe):
            yield from _faults(value.get(name), each, where)
        else:
            yield f"it has no `{where}`"


def _in_list(value: Any, shape: list[Shape] | tuple[Shape, ...] | Some, place: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"`{place}` must be a list, got {_short(value)}"
    elif isinstance(shape, tuple) and len(value) != len(shape):
        yield f"`{place}` must have length {len(shape)}, got {len(value)}"
    elif isinstance(shape, Some) and not value:
        yield f"`{place}` must not be empty"
    else:
        one = shape.shape if isinstance(shape, Some) else shape[0]
        shapes = shape if isinstance(shape, tuple) else [one] * len(value)
        for number, (each, wanted) in enumerate(zip(value, shapes, strict=True)):
            yield from _faults(each, wanted, f"{place}[{number}]")


_NAMES = {float: "a finite number", str: "text", bool: "true or false"}


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
