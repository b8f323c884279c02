"""A study as small files to keep: plan, results, numbers and page, without what tells of the machine's owner."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from runs.failure import UserError
from runs.files import read_json, write_json, writing
from runs.report.loading import Evidence
from runs.studies.plan import FILE, Cell
from runs.studies.states import attempts, write_failure

_PART = re.compile(
    r"study\.json|report\.html|report/[^/]+\.(csv|png)|[^/]+/[^/]+/(seed-\d+/result\.json|seed-\d+\.failed\.json)"
)


def record(evidence: Evidence, target: Path) -> None:
    """Copy a reported study into `target`, new or an earlier record of it; `report` reads it like the study itself.

    A `UserError` where `target` holds anything that a record does not: what is there is replaced.
    """
    if target.resolve() == evidence.directory.resolve():
        raise UserError(f"{target} is the study itself; choose another --record")
    strange = _strange(target)
    if strange is not None:
        raise UserError(f"{target} is no record of a study: it holds {strange}; choose another --record")
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
        for cell, problem in evidence.lost:
            (target / cell.folder).mkdir(parents=True, exist_ok=True)
            write_failure(target, cell, problem, max(1, attempts(evidence.directory, cell)))


def _strange(target: Path) -> Path | None:
    """The first file there that no record has."""
    if not target.exists():
        return None
    if not target.is_dir():
        return target
    files = sorted(path for path in target.rglob("*") if not path.is_dir())
    return next(
        (path.relative_to(target) for path in files if not _PART.fullmatch(str(path.relative_to(target)))), None
    )


def _without_folders(word: str) -> str:
    """A word of a command without the folders of a path: they tell of whose machine it was."""
    flag, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    return flag + equals + (Path(value).name if value.startswith(("/", "~", "..")) else value)


def _nameless(machine: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in machine.items() if name != "host"}


def _without_paths(result: dict[str, Any]) -> dict[str, Any]:
    measured = {name: value for name, value in result["measured"].items() if name != "directory"}
    return {**result, "measured": {**measured, "machine": _nameless(measured.get("machine") or {})}}
