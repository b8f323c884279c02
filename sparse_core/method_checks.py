"""Whether a method's choices go together: said before anything is made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from numbers import Real
from typing import Any

from sparse_core.birth import BIRTHS
from sparse_core.courses import COURSES, CourseOfCounts, check_shares
from sparse_core.drop import DROP_RULES
from sparse_core.grow import GROW_RULES
from sparse_core.layers import SparseLinear, learning
from sparse_core.maskings import MASKINGS
from sparse_core.presets import NOT_CHOSEN, Preset
from sparse_core.redistribution import REDISTRIBUTIONS
from sparse_core.registry import Registry, hint
from sparse_core.schedules import SCHEDULES
from sparse_core.steps import STEP_RULES


def check_keywords(given: Collection[str], usual: Collection[str]) -> None:
    """Raise a `TypeError` for keyword arguments that are neither fields of `Preset` nor among the usual ones."""
    known = dict.fromkeys([*(each.name for each in fields(Preset) if each.name != "summary"), *usual])
    del known["choices"], known["model"], known["optimizer"]  # not by name
    for name in given:
        if name not in known:
            choices = [each for each in known if each not in NOT_CHOSEN or each in usual]
            raise TypeError(f"a `Sparsifier` has no argument {name!r}; {hint(name, choices)}")


def check_single_weights(method: Preset, layers: Mapping[str, SparseLinear]) -> None:
    """Raise a `ValueError` where connections are whole kernels and a method gives single weights their values."""
    if not method.changes or not (isinstance(method.birth, str) or method.step_rule):
        return
    for name, layer in learning(layers).items():
        if layer.connection_shape:
            raise ValueError(
                f"a birth by name and a rule for every step need connections of one weight, but those of {name!r} are "
                "whole kernels; make it with `conv_unit='weight'`, or choose another method"
            )


def check_method(method: Preset, capture_stride: int, total_steps: int | None, sparsity: float | None) -> None:
    """Raise a `ValueError` for choices that cannot be."""
    check_choices(method)
    plans = method.drop is not None and DROP_RULES[method.drop].plans
    if (method.drop is None) != (method.grow is None) and not plans:
        raise ValueError(
            f"give both `drop` and `grow`, or neither for a static topology; got {method.drop!r} and {method.grow!r}"
        )
    if min(method.capture_batches, capture_stride) < 1:
        got = f"{method.capture_batches} and {capture_stride}"
        raise ValueError(f"`capture_batches` and `capture_stride` must be at least 1, got {got}")
    _check_regrow(method)
    _check_course(method, total_steps, sparsity)
    if method.pruned_neurons and method.neurons_from and total_steps is None:
        raise ValueError("`pruned_neurons` needs `total_steps`, the length of training, or `neurons_from=0`")


_NUMBERS = (
    "drop_fraction", "stop", "period", "warmup", "drop_mix", "grow_mix", "pruned_neurons", "neurons_from",
    "drop_temperature", "final_drop_temperature", "grow_temperature",
)  # fmt: skip


def check_choices(method: Preset) -> None:
    """Raise a `ValueError` for a name that is not known or a number out of range, whatever the model and training."""
    parts: list[tuple[str | float | None, Registry[Any]]] = [
        (method.drop, DROP_RULES), (method.grow, GROW_RULES), (method.prune, DROP_RULES), (method.masking, MASKINGS),
        (method.redistribute, REDISTRIBUTIONS), (method.course, COURSES), (method.step_rule, STEP_RULES),
        (method.schedule, SCHEDULES), (method.birth, BIRTHS),
    ]  # fmt: skip
    for name, registry in parts:
        if isinstance(name, str):
            registry[name]
    for each in _NUMBERS:
        given = getattr(method, each)
        if given is not None and (isinstance(given, bool) or not isinstance(given, Real)):
            raise ValueError(f"`{each}` must be a number, got {given!r}")
    for number, what, is_right in (
        ("drop_fraction", "in [0, 1]", 0 <= method.drop_fraction <= 1),
        ("stop", "a share of the training steps in [0, 1]", 0 <= method.stop <= 1),
        ("period", "at least 1 step between two topology changes", method.period >= 1),
        ("warmup", "a whole number of steps ≥ 0", method.warmup >= 0 and method.warmup % 1 == 0),
        ("drop_mix", "a share in [0, 1]", 0 <= method.drop_mix <= 1),
        ("grow_mix", "a share in [0, 1]", 0 <= method.grow_mix <= 1),
        ("drop_temperature", "a number ≥ 0", _is_temperature(method.drop_temperature)),
        ("final_drop_temperature", "a number ≥ 0", _is_temperature(method.final_drop_temperature)),
        ("grow_temperature", "a number ≥ 0", _is_temperature(method.grow_temperature)),
    ):
        if not is_right:
            raise ValueError(f"`{number}` must be {what}, got {getattr(method, number)!r}")
    check_neurons(method)


def _is_temperature(given: float | None) -> bool:
    return given is None or 0 <= given < float("inf")


def _check_regrow(method: Preset) -> None:
    if method.regrow not in ("no", "kept", "fresh"):
        raise ValueError(f"`regrow` must be 'no', 'kept' or 'fresh', got {method.regrow!r}")
    if method.grow is not None and GROW_RULES[method.grow].in_place and method.regrow != "fresh":
        raise ValueError(
            f"grow rule {method.grow!r} grows what was dropped, anew; give `regrow='fresh'`, got {method.regrow!r}"
        )


def check_neurons(method: Preset) -> None:
    """Raise a `ValueError` for neurons that cannot be pruned along training."""
    if not 0 <= method.pruned_neurons < 1:
        raise ValueError(f"`pruned_neurons` must be a share in [0, 1), got {method.pruned_neurons!r}")
    if not 0 <= method.neurons_from <= 1:
        raise ValueError(f"`neurons_from` must be a share of the way in [0, 1], got {method.neurons_from!r}")
    if method.pruned_neurons and method.begins_wider:
        raise ValueError(
            "`pruned_neurons` is for methods that begin with as many connections as they end with, as 'set'; this one "
            "begins with more"
        )


def _check_course(method: Preset, total_steps: int | None, sparsity: float | None) -> None:
    if (method.prune is None) != (method.course is None):
        raise ValueError(f"give both `prune` and `course`, or neither; got {method.prune!r} and {method.course!r}")
    if method.course is not None:
        check_shares(method.distribution)
        if sparsity is None:
            raise ValueError(
                f"course {method.course!r} of the sparsity needs `sparsity`, that of the whole model at the end"
            )
    if total_steps is None and (method.schedule != "constant" or method.stop < 1 or method.course is not None):
        raise ValueError(
            f"schedule {method.schedule!r} with `stop` {method.stop:g} needs `total_steps`, the length of training"
        )


def slip(
    method: Preset, layers: Mapping[str, SparseLinear], course: CourseOfCounts | None, followed: bool
) -> str | None:
    """Why nothing will ever change, though the method would; None where something can."""
    if not method.changes:
        return None
    if not layers:
        if followed:  # an agent's network, which may be dense on purpose
            return None
        return "the model has no sparse layer; give the `Sparsifier` what `sparsify` returned"
    now = sum(layer.values.shape[0] for layer in layers.values())
    end = now if course is None else course(1.0)
    end = end if isinstance(end, int) else sum(end.values())
    if course is not None and now == end and method.drop is None:
        return (
            f"the model begins with {now:,} connections, and is to end with {end:,}; make it with the method's name, "
            "`sparsify(model, sparsity, topology=…)`, for it to begin with more"
        )
    full = method.searches and course is None and not method.pruned_neurons
    if full and all(layer.connections == layer.cells for layer in layers.values()):
        return "every sparse layer has all its connections; make the model with this method's name and a sparsity"
    return None
