"""A study back from its files: what is finished, and one line for everything that is not as it should be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs.failure import UserError
from runs.files import read_json
from runs.studies.plan import Arm, Cell, Study, folder_name, read_study
from runs.studies.states import error_of, state_of

FORMATS = {"agents": "sparse-agents-result", "continual": "sparse-agents-continual-result"}
_NEEDED = {
    "agents": ("curve", "eval", "nnz_total", "bytes", "train_flops", "measured", "steps", "seed"),
    "continual": ("acc", "forgetting", "class_il", "task_il", "final", "nnz", "bytes", "measured", "seeds"),
}


@dataclass(frozen=True)
class Run:
    """One finished run."""

    group: str
    arm: Arm
    seed: int
    result: dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """All finished runs of a study in the order of its plan, and what is missing or odd."""

    directory: Path
    study: Study
    runs: list[Run]
    problems: list[str]

    def of(self, group: str, arm: str) -> list[Run]:
        """The finished runs of one arm in one group."""
        return [run for run in self.runs if (run.group, run.arm.name) == (group, arm)]

    @property
    def arms(self) -> list[Arm]:
        """Those with a finished run."""
        return [arm for arm in self.study.arms if any(run.arm.name == arm.name for run in self.runs)]

    @property
    def groups(self) -> list[str]:
        """Those with a finished run."""
        return [group for group in self.study.groups if any(run.group == group for run in self.runs)]

    @property
    def planned(self) -> int:
        """Runs that the plan has."""
        return sum(1 for _ in self.study.cells())


def load(directory: Path) -> Evidence:
    """The evidence in a study directory; a `UserError` for one that holds no study or no finished run."""
    study = read_study(directory)
    runs, problems = [], list[str]()
    absent: dict[str, list[int]] = {}
    for cell in study.cells():
        found = _result(directory, cell, study.kind)
        if isinstance(found, str):
            problems.append(found)
        elif found is None:
            state = "not finished" if state_of(directory, cell) == "half-done" else "missing"
            absent.setdefault(f"{state}: {cell.group} {cell.arm.name}", []).append(cell.seed)
        else:
            runs.append(Run(cell.group, cell.arm, cell.seed, found))
    problems += [
        f"{what} seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" for what, seeds in absent.items()
    ]
    problems += _strangers(directory, study)
    if not runs:
        raise UserError(
            f"{directory} has no finished run ({problems[0]}); finish the study by its `sparse-agents compare` first"
        )
    order = {arm.name: number for number, arm in enumerate(study.arms)}
    runs.sort(key=lambda run: (study.groups.index(run.group), order[run.arm.name], run.seed))
    evidence = Evidence(directory, study, runs, problems)
    return Evidence(directory, study, runs, problems + _unequal(evidence))


def _result(directory: Path, cell: Cell, kind: str) -> dict[str, Any] | str | None:
    """A run's result, None if there is none yet, or a line that says what is wrong with it."""
    state = state_of(directory, cell)
    if state == "failed":
        return f"failed: {cell.name}: {error_of(directory, cell)}"
    if state != "finished":
        return None
    path = directory / cell.path / "result.json"
    try:
        result = read_json(path, "result of a run")
    except UserError as error:
        return f"damaged: {cell.name}: {error}"
    absent = [name for name in _NEEDED[kind] if name not in result]
    if result.get("format") != FORMATS[kind] or absent:
        return f"damaged: {cell.name}: {path} is no result of such a run" + (f" (no {absent[0]})" if absent else "")
    seed = result["seed"] if kind == "agents" else result["seeds"]
    if seed != (cell.seed if kind == "agents" else [cell.seed]):
        return f"damaged: {cell.name}: {path} is of seed {seed}"
    return result


def _strangers(directory: Path, study: Study) -> list[str]:
    """Directories below a study that the plan does not have."""
    wanted = {cell.path for cell in study.cells()}
    known = {part for path in wanted for part in path.parents} | wanted
    problems = []
    for group in [directory, *(directory / folder_name(name) for name in study.groups)]:
        problems += _unknown(directory, group, known)
        for arm in study.arms if group != directory else []:
            problems += _unknown(directory, group / arm.name, known)
    return problems


def _unknown(directory: Path, folder: Path, known: set[Path]) -> list[str]:
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "report")
    return [
        f"not of this study, left out: {path.relative_to(directory)}{'' if any(path.iterdir()) else ' (empty)'}"
        for path in found
        if path.relative_to(directory) not in known
    ]


def _unequal(evidence: Evidence) -> list[str]:
    """Where arms of one group have other seeds, or steps, than each other."""
    problems = []
    for group in evidence.groups:
        seeds = {arm.name: [run.seed for run in evidence.of(group, arm.name)] for arm in evidence.arms}
        if len({tuple(each) for each in seeds.values()}) > 1:
            counts = ", ".join(f"{name} {len(each)}" for name, each in seeds.items())
            problems.append(f"unequal numbers of runs on {group}: {counts}")
        steps = {arm.name: arm.settings.get(group, {}).get("steps") for arm in evidence.arms}
        if len(set(steps.values())) > 1:
            counts = ", ".join(f"{name} {each:,}" for name, each in steps.items() if each)
            problems.append(f"unequal steps on {group}: {counts}")
    return problems
