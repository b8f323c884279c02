"""One run of a study as a job: what a worker is told, does, and says of it. Jobs and reports are plain JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runs.checkpoints import CheckpointStore
from runs.failure import UserError
from runs.files import read_json
from runs.studies.plan import Cell, Study, differing

# What holds on one machine only, or is filled in for each run.
_ELSEWHERE = ("seed", "seeds", "topology_from", "data_root", "joint", "checkpoint_every")


def job(study: Study, cell: Cell, directory: Path) -> dict[str, Any]:
    """What a worker needs to know to begin or continue a run."""
    source = None
    if cell.arm.of is not None:
        source = str((directory / cell.path).parent.parent / cell.arm.of / f"seed-{cell.seed}")
    return {
        "kind": study.kind,
        "directory": str(directory / cell.path),
        "settings": cell.settings,
        "seed": cell.seed,
        "backends": cell.arm.backends.get(cell.group),
        "topology_from": source,
    }


def perform(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job: `{"outcome": "finished"}`, `"stopped"` (saved, to go on later) or `"failed"` with its `"error"`."""
    directory = Path(job["directory"])
    try:
        _check(directory, job)
        directory.parent.mkdir(parents=True, exist_ok=True)
        code = _run(directory, job)
        if code == 0:
            drop_replay(directory)
    except MemoryError as error:
        return {"outcome": "failed", "error": f"not enough memory: {error or 'no more to be had'}"}
    except KeyboardInterrupt:
        return {"outcome": "stopped"}
    except Exception as error:  # a worker goes on with the next run, whatever became of this one
        if os.environ.get("SPARSE_AGENTS_DEBUG"):
            raise
        known = isinstance(error, UserError | ValueError | FloatingPointError | OSError)
        text = " ".join(str(error).split())
        return {"outcome": "failed", "error": text if known else f"{type(error).__name__}: {text}"}
    return {"outcome": "finished" if code == 0 else "stopped"}


def _run(directory: Path, job: Mapping[str, Any]) -> int:
    if job["kind"] == "continual":
        from runs.studies import learners

        return learners.run(directory, job["settings"], job["seed"])
    from runs.studies import agents

    return agents.run(directory, job["settings"], job["seed"], job["backends"], job["topology_from"])


def _check(directory: Path, job: Mapping[str, Any]) -> None:
    """Raise a `UserError` if another run lies where this one is to be."""
    if not (directory / "config.json").exists():
        return
    found = read_json(directory / "config.json", "config of a run").get("settings")
    if not isinstance(found, dict):
        raise UserError(f"{directory} holds something else than a run; move it away")
    wrong = differing({**job["settings"], **found}, {**found, **job["settings"]}, _ELSEWHERE)
    seeds = found.get("seeds", [found.get("seed")])
    if wrong or seeds != [job["seed"]]:
        what = ", ".join(wrong) or "seed"
        raise UserError(f"{directory} holds a run with another {what} than the study's; move it away")


def drop_replay(directory: Path) -> None:
    """Keep a finished run without its replay rows, which nobody needs any more."""
    if (directory / "checkpoints").is_dir():
        CheckpointStore(directory / "checkpoints", keep=1, run=directory).drop_replay()
