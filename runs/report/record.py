"""A study as small files to keep: plan, results, numbers and page, without what tells of the machine's owner."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from runs.failure import UserError
from runs.files import read_json, write_json, writing
from runs.report.loading import Evidence
from runs.studies.plan import FILE, Cell
from runs.studies.states import failure_file


def record(evidence: Evidence, target: Path) -> None:
    """Copy a reported study into `target`, new or an earlier record of it; `report` reads it like the study itself."""
    if target.exists() and any(target.iterdir()) and not (target / FILE).exists():
        raise UserError(f"{target} is not empty and no record of a study; choose another --record")
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        for name in ("report", *{str(Cell(run.group, run.arm, run.seed).path.parts[0]) for run in evidence.runs}):
            shutil.rmtree(target / name, ignore_errors=True)
        plan = read_json(evidence.directory / FILE, "plan of a study")
        plan["commands"] = [[_without_folders(word) for word in command] for command in plan["commands"]]
        write_json(target / FILE, {**plan, "machine": _nameless(plan["machine"])})
        for run in evidence.runs:
            folder = target / Cell(run.group, run.arm, run.seed).path
            folder.mkdir(parents=True)
            write_json(folder / "result.json", _without_paths(run.result))
        for cell in evidence.study.cells():
            failure = failure_file(evidence.directory, cell)
            if failure.exists():
                (target / cell.folder).mkdir(parents=True, exist_ok=True)
                shutil.copy(failure, target / cell.folder)


def _without_folders(word: str) -> str:
    return Path(word).name if word.startswith("/") else word


def _nameless(machine: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in machine.items() if name != "host"}


def _without_paths(result: dict[str, Any]) -> dict[str, Any]:
    measured = {name: value for name, value in result["measured"].items() if name != "directory"}
    return {**result, "measured": {**measured, "machine": _nameless(measured.get("machine") or {})}}
