"""`sparse-agents list`: what there is to choose from."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from runs.options import List


def _first_line(entry: Any) -> str:
    return (getattr(entry, "__doc__", None) or "").strip().splitlines()[0]


def _options(rule: Any) -> str:
    """The options that are given with a name, with their defaults: ` [std=0.1]`; nothing where there are none."""
    from sparse_core.registry import options_of

    given = [f"{name}={default}" for name, default in options_of(rule).items()]
    return f" [{':'.join(given)}]" if given else ""


def _parts(registry: str) -> dict[str, str]:
    """Of a registry of `sparse_core` whose entries are functions, or have one to choose or to multiply."""
    import sparse_core

    found = {}
    for name, entry in getattr(sparse_core, registry).items():
        part = getattr(entry, "choose", None) or getattr(entry, "product", None) or entry
        found[name] = _first_line(part) + (_options(entry) if hasattr(entry, "choose") else "")
    return found


def _algos() -> dict[str, str]:
    """Read from the sources, as `_benchmarks`."""
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").rstrip(".")
        for path in sorted((Path(__file__).parent / "algos").glob("[!_]*.py"))
    }


def _topologies() -> dict[str, str]:
    from sparse_core import PRESETS

    return {name: preset.summary for name, preset in PRESETS.items()}


def _envs() -> dict[str, str]:
    import envs

    return {name: "MuJoCo benchmark" for name in envs.names()}


def _presets() -> dict[str, str]:
    from agents.presets import AGENT_PRESETS

    return {name: preset.summary for name, preset in AGENT_PRESETS.items()}


def _strategies() -> dict[str, str]:
    from continual.catalogue import strategy_names, strategy_summary

    return {name: strategy_summary(name) for name in strategy_names()}


def _benchmarks() -> dict[str, str]:
    """Read from the source: importing it takes torch, and seconds."""
    import continual

    source = Path(continual.__path__[0]) / "benchmarks.py"
    return {
        str(decorator.args[0].value): (ast.get_docstring(node) or "").partition("\n")[0]
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Name)
        and decorator.func.id == "benchmark"
        and isinstance(decorator.args[0], ast.Constant)
    }


_REGISTRIES = {
    "drop": "DROP_RULES",
    "grow": "GROW_RULES",
    "distributions": "DISTRIBUTIONS",
    "initial-topologies": "INITIAL_TOPOLOGIES",
    "schedules": "SCHEDULES",
    "courses": "COURSES",
    "births": "BIRTHS",
    "redistributions": "REDISTRIBUTIONS",
    "maskings": "MASKINGS",
    "backends": "BACKENDS",
}

TABLES: Mapping[str, Callable[[], dict[str, str]]] = {
    "algos": _algos,
    "topologies": _topologies,
    **{kind: partial(_parts, registry) for kind, registry in _REGISTRIES.items()},
    "envs": _envs,
    "presets": _presets,
    "strategies": _strategies,
    "benchmarks": _benchmarks,
}


def show(options: List) -> int:
    """Print names and what they mean; names alone where nobody is looking."""
    entries = TABLES[options.what]()
    if not sys.stdout.isatty():
        print("\n".join(entries))
        return 0
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, summary in entries.items():
        table.add_row(f"[bold]{name}", escape(summary))
    Console().print(table)
    return 0
