"""Values that come from flags and files: lists, devices, threads, and whether JSON holds the kind that is meant."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from types import MappingProxyType, UnionType
from typing import Any, get_args, get_origin

import torch

from runs.failure import UserError

MOST_THREADS = 1024  # OpenMP ends the process where the system has no more


def of_kind(value: Any, kind: Any) -> bool:
    """Whether a value from JSON is of a type; keys and values of an object are not looked at."""
    if get_origin(kind) is UnionType:
        return any(of_kind(value, one) for one in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(of_kind(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict)
    if kind is bool:
        return isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


def settings_in(
    config: dict[str, Any],
    where: str,
    kind: str,
    form: tuple[str, int],
    hints: dict[str, Any],
    later: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The settings in a `config.json`, all there and of their kinds; a `UserError` for a damaged or foreign file.

    Args:
        config: what the file holds.
        where: the file, for messages.
        kind: what a config of this `form` is of, for people.
        form: its `format` and `version`.
        hints: the type of each setting by name.
        later: settings that files of earlier versions lack, with the value that held then.
    """
    then = "restore the file as the run wrote it"
    given = config.get("settings")
    if config.get("format") != form[0] or not isinstance(given, dict):
        raise UserError(f"{where} is not the config of a {kind}; give the directory of one")
    if config.get("version") != form[1]:
        raise UserError(
            f"{where} has version {config.get('version')!r}, this program reads {form[1]}; "
            "use the program it was made with"
        )
    given = {**later, **given}
    if set(given) != set(hints):
        wrong = ", ".join(sorted(set(hints) ^ set(given)))
        raise UserError(f"{where} has missing or unknown settings ({wrong}); {then}")
    wrong = ", ".join(f"{name} = {given[name]!r}" for name in sorted(hints) if not of_kind(given[name], hints[name]))
    if wrong:
        raise UserError(f"{where} has settings of the wrong kind ({wrong}); {then}")
    return given


def parse_list(text: str | None, name: str, default: str) -> tuple[str | int, ...]:
    """A comma list; whole numbers become integers, `none` is the empty list."""
    text = default if text is None else text
    if text.strip().lower() in ("", "none"):
        return ()
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise ValueError(f"`{name}` must be a comma list without gaps, got {text!r}")
    return tuple(int(item) if item.lstrip("-").isdigit() else item for item in items)


def names_in(text: str, what: str) -> list[str]:
    """A comma list without gaps or repetitions."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"`{what}` must be a comma list of different names, got {text!r}")
    return names


def words(arm: str) -> list[str]:
    """The name of an --arm and its flags."""
    try:
        return shlex.split(arm) or [""]
    except ValueError as error:
        raise ValueError(f"`arm` must be a name and flags, got {arm!r}: {str(error).lower()}") from error


def parse_widths(text: str, name: str, example: str, least: int = 1) -> list[int]:
    """A comma list of at least so many positive widths."""
    widths = parse_list(text, name, "")
    if len(widths) < least or not all(isinstance(width, int) and width > 0 for width in widths):
        raise ValueError(f"`{name}` must be a comma list of positive widths such as {example}, got {text!r}")
    return [int(width) for width in widths]


def check_device(wanted: str) -> str:
    """The device that `wanted` means here, or a `ValueError` if there is none such."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"`device` must be cpu, cuda or auto, got {wanted!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`device` {wanted!r} wants a CUDA GPU, and torch sees none here; take --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"`device` {wanted!r} is not there: torch sees {torch.cuda.device_count()} here, from cuda:0 on"
        )
    return wanted


def check_threads(threads: int) -> None:
    """Raise a `ValueError` unless this many threads can be."""
    if threads < 1:
        raise ValueError(f"`threads` must be at least 1, got {threads}")
    if threads > MOST_THREADS:
        raise ValueError(f"`threads` must be at most {MOST_THREADS}, got {threads}")
