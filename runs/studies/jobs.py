"""One run of a study as a job: what a worker is told, does, and says of it. Jobs and reports are plain JSON."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runs.checkpoints import CheckpointStore
from runs.failure import UserError
from runs.files import read_json
from runs.lock import LockHeld
from runs.studies.plan import Cell, Study, differing

# What holds on one machine only, or is filled in for each run.
_ELSEWHERE = ("seed", "seeds", "topology_from", "data_root", "joint", "checkpoint_every")
_PATIENCE, _OFTEN = 120.0, 0.5  # seconds: for a run that another process still saves, and between two looks


def job(study: Study, cell: Cell, directory: Path) -> dict[str, Any]:
    """What a worker, wherever it stands, needs to know to begin or continue a run."""
    directory, source = directory.absolute(), None
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
    """Do a job: `{"outcome": "finished"}`, `"stopped"` (saved, to go on later), or `"failed"` with its `"error"`.

    The outcome `"full"` is a failure, too: of the disk, which other runs would meet as well.
    """
    directory = Path(job["directory"])
    try:
        _check(directory, job)
        directory.parent.mkdir(parents=True, exist_ok=True)
        code = _run_when_free(directory, job)
        if code == 0:
            drop_replay(directory)
    except MemoryError as error:
        return {"outcome": "failed", "error": f"not enough memory: {error or 'no more to be had'}"}
    except KeyboardInterrupt:
        return {"outcome": "stopped"}
    except Exception as error:  # a worker goes on with the next run, whatever became of this one
        if os.environ.get("SPARSE_AGENTS_DEBUG"):
            raise
        if (full := _full_disk(error)) is not None:
            return {"outcome": "full", "error": f"{full.strerror} at {directory}"}
        known = isinstance(error, UserError | ValueError | FloatingPointError | OSError)
        text = " ".join(str(error).split())
        return {"outcome": "failed", "error": text if known else f"{type(error).__name__}: {text}"}
    return {"outcome": "finished" if code == 0 else "stopped"}


def _run_when_free(directory: Path, job: Mapping[str, Any]) -> int:
    """Do the run once whoever had it before, and was told to stop, has saved it."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return _run(directory, job)
        except LockHeld:
            if time.monotonic() > deadline:
                raise
            time.sleep(_OFTEN)


def _full_disk(error: BaseException | None) -> OSError | None:
    """The refusal of a full disk that an error goes back to, if it does."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        error = error.__cause__
    return None


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
