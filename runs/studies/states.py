"""How far each run of a study is, told by its files alone, so that any process can ask."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runs.failure import UserError
from runs.files import read_json, write_json
from runs.studies.plan import Cell

State = Literal["new", "half-done", "finished", "failed"]
_TAIL = 16_384  # bytes at the end of a metrics file that are looked at


def state_of(directory: Path, cell: Cell) -> State:
    """Whether a run has a result, has failed, has begun, or has not."""
    run = directory / cell.path
    if (run / "result.json").exists():
        return "finished"
    if failure_file(directory, cell).exists():
        return "failed"
    return "half-done" if (run / "config.json").exists() else "new"


def failure_file(directory: Path, cell: Cell) -> Path:
    """Where a failure is written down."""
    return directory / cell.folder / f"seed-{cell.seed}.failed.json"


def write_failure(directory: Path, cell: Cell, error: str, attempts: int) -> None:
    """Write down why a run failed, and how often it was tried."""
    path = failure_file(directory, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"error": error, "attempts": attempts})


def attempts(directory: Path, cell: Cell) -> int:
    """How often a run has failed."""
    with suppress(UserError):
        count = read_json(failure_file(directory, cell), "failure of a run").get("attempts")
        return count if isinstance(count, int) else 1
    return 0


def error_of(directory: Path, cell: Cell) -> str:
    """Why a run failed."""
    with suppress(UserError):
        return str(read_json(failure_file(directory, cell), "failure of a run").get("error", "no reason given"))
    return "the file that says why is damaged"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps (tasks of a continual learner), and its last evaluation (accuracy)."""

    done: int
    total: int
    score: float | None


def progress_of(directory: Path, cell: Cell) -> Progress:
    """Read from what the run has written so far; nothing done if that is nothing."""
    run = directory / cell.path
    if "steps" not in cell.settings:
        return _learner_progress(run / f"seed-{cell.seed}" / "rows.json", cell.settings)
    done, score = 0, None
    for line in _last_lines(run / "metrics.jsonl"):
        done = max(done, int(line.get("step", 0)))
        if line.get("kind") == "eval":
            score = line.get("mean_return")
    return Progress(done, int(cell.settings["steps"]), score)


def _last_lines(path: Path) -> list[dict[str, Any]]:
    """The last whole lines of a file of JSON objects; none of a file that is not there, or half written."""
    lines = []
    with suppress(OSError, ValueError), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        for text in file.read().splitlines()[1 if size > _TAIL else 0 :]:
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict)]


def _learner_progress(path: Path, settings: Mapping[str, Any]) -> Progress:
    total = settings.get("tasks") or 1
    with suppress(UserError):
        rows = read_json(path, "record of a seed").get("task_il")
        if isinstance(rows, list) and rows:
            seen = rows[-1][: len(rows)]
            return Progress(len(rows), max(total, len(rows[-1])), sum(seen) / len(seen))
    return Progress(0, total, None)
