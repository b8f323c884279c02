"""The strategies by name: each is a file in `continual/strategies`, found there and imported when it is built."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continual.learner import Setup

_FOLDER = Path(__file__).parent / "strategies"


def strategy_names() -> list[str]:
    """Every strategy, alphabetically; imports nothing."""
    return sorted(path.stem.replace("_", "-") for path in _FOLDER.glob("[!_]*.py"))


def strategy_summary(name: str) -> str:
    """The first line of a strategy's docstring; imports nothing."""
    docstring = ast.get_docstring(ast.parse(_file(name).read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def build_strategy(name: str, setup: Setup) -> Any:
    """The learner called `name`, made for a benchmark; a `ValueError` for an unknown name or a choice it has not."""
    module = import_module(f"continual.strategies.{_file(name).stem}")
    return module.build(setup)


def _file(name: str) -> Path:
    names = strategy_names()
    if name not in names:
        from sparse_core.registry import hint

        raise ValueError(f"no strategy called {name!r}; {hint(name, names)}")
    return _FOLDER / f"{name.replace('-', '_')}.py"
