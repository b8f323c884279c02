"""Studies as small as they get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_runs import TINY, main, result_of

GRID = {
    **{name: value for name, value in TINY.items() if name not in ("sparsity", "topology", "seed", "threads")},
    "topologies": "dense,static,set",
    "sparsities": "0.6",
    "seeds": "2",
    "final-episodes": "1",
    "workers": 2,
}


def flags(out: Path, *more: str, **changes: Any) -> list[str]:
    """Arguments of `compare` for a tiny study in `out`; a flag that is None is left out."""
    chosen = GRID | {name.replace("_", "-"): value for name, value in changes.items()}
    given = [word for name, value in chosen.items() if value is not None for word in (f"--{name}", str(value))]
    return ["compare", "--out", str(out), *given, *more]


def compare(out: Path, *more: str, **changes: Any) -> int:
    """The exit code of a tiny study, run from this process by workers of its own."""
    return main(*flags(out, *more, **changes))


def results(study: Path) -> dict[str, dict[str, Any]]:
    """Every result of a study by its place in it, without what may differ."""
    return {str(path.parent.relative_to(study)): result_of(path.parent) for path in sorted(study.rglob("result.json"))}


def plan_of(study: Path) -> dict[str, Any]:
    """What `study.json` holds."""
    plan: dict[str, Any] = json.loads((study / "study.json").read_text())
    return plan
