"""A study back from its files: what is finished, and one line for everything that is not as it should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from runs.continual.pictures import SCENARIOS
from runs.failure import UserError
from runs.files import read_json
from runs.studies.plan import Arm, Cell, Study, folder_name, read_study
from runs.studies.shapes import RESULTS, fault
from runs.studies.states import error_of, state_of

FORMATS = {"agents": "sparse-agents-result", "continual": "sparse-agents-continual-result"}


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
    lost: list[tuple[Cell, str]] = field(default_factory=list)
    """Runs that failed, or whose result cannot be used, and why."""

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
    lost: list[tuple[Cell, str]] = []
    for cell in study.cells():
        found = _result(directory, cell, study.kind)
        if isinstance(found, str):
            lost.append((cell, found))
        elif found is None:
            state = "not finished" if state_of(directory, cell) == "half-done" else "missing"
            absent.setdefault(f"{state}: {cell.group} {cell.arm.name}", []).append(cell.seed)
        else:
            runs.append(Run(cell.group, cell.arm, cell.seed, found))
    problems += [f"failed: {cell.name}: {why}" if state_of(directory, cell) == "failed" else why for cell, why in lost]
    problems += [
        f"{what} seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" for what, seeds in absent.items()
    ]
    runs, odd = _alike(runs)
    problems += [*(why for _, why in odd), *_strangers(directory, study)]
    if not runs:
        raise UserError(
            f"{directory} has no finished run ({problems[0]}); finish the study by its `sparse-agents compare` first"
        )
    order = {arm.name: number for number, arm in enumerate(study.arms)}
    runs.sort(key=lambda run: (study.groups.index(run.group), order[run.arm.name], run.seed))
    evidence = Evidence(directory, study, runs, problems, [*lost, *odd])
    return replace(evidence, problems=problems + _unequal(evidence))


def _result(directory: Path, cell: Cell, kind: str) -> dict[str, Any] | str | None:
    """A run's result, None if there is none yet, or a line that says what is wrong with it."""
    state = state_of(directory, cell)
    if state == "failed":
        return _without(directory, error_of(directory, cell))
    if state != "finished":
        return None
    path = directory / cell.path / "result.json"
    try:
        result = read_json(path, "result of a run")
    except UserError as error:
        return f"damaged: {_without(directory, str(error))}"
    wrong = next(_faults(result, cell, kind), None)
    if wrong is not None:
        return f"damaged: {cell.path / 'result.json'}: {wrong}"
    if kind == "continual":  # what may be left out is none
        for name in ("R", "final"):
            result[name] = {"class_il": None, "task_il": None, **result[name]}
    return result


def _without(directory: Path, text: str) -> str:
    """A text that does not tell where on whose machine the study lay."""
    for name in (directory.absolute(), directory):
        text = text.replace(f"{name}/", "")
    return text


def _faults(result: dict[str, Any], cell: Cell, kind: str) -> Iterator[str]:
    """Why this cannot be what the plan wants there."""
    if result.get("format") != FORMATS[kind]:
        yield f"it is no result of such a run (`format` is {result.get('format')!r})"
    wrong = fault(result, RESULTS[kind])
    if wrong is not None:
        yield wrong
        return
    seed, group = (result["seed"], "env") if kind == "agents" else (result["seeds"][0], "benchmark")
    if seed != cell.seed:
        yield f"it is of seed {seed}"
    if result.get(group, cell.group) != cell.group:
        yield f"it is of {result[group]}"
    if kind == "agents":
        yield from _agent_faults(result, cell)
    else:
        yield from _learner_faults(result)


def _agent_faults(result: dict[str, Any], cell: Cell) -> Iterator[str]:
    if result["steps"] != cell.settings.get("steps", result["steps"]):
        yield f"it is of {result['steps']:,} steps, not {cell.settings['steps']:,}"
    steps = [step for step, _ in result["curve"]]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        yield "the steps of its curve do not increase"
    if steps[-1] != result["steps"]:
        yield f"its curve ends at step {steps[-1]:,} of {result['steps']:,}"
    networks = {name.partition(".")[0] for name in result.get("input_connections") or ("actor", "critic")}
    if networks != {"actor", "critic"}:
        yield "`input_connections` must be of actor and critics"
    features = len((result.get("input_connections") or {}).get("actor", []))
    if not all(0 <= each < features for each in result.get("real_features") or []):
        yield f"`real_features` must be numbers of the actor's {features} inputs"


def _learner_faults(result: dict[str, Any]) -> Iterator[str]:
    tasks, scenario = len(result["task_classes"]), result["benchmark_scenario"]
    if scenario not in SCENARIOS:
        yield f"`benchmark_scenario` must be one of {', '.join(SCENARIOS)}, got {scenario!r}"
    needed = "final" if result["joint"] else "R"
    if all(result[needed].get(kind) is None for kind in ("class_il", "task_il")):
        yield f"`{needed}` has accuracies neither with the task known nor with it not known"
    for kind in ("class_il", "task_il"):
        rows = (result["R"].get(kind) or [[]])[0]
        if rows and not all(len(row) == tasks for row in [*rows, rows]):
            yield f"`R.{kind}` is no matrix of {tasks} × {tasks}"
        if result["final"].get(kind) and len(result["final"][kind][0]) != tasks:
            yield f"`final.{kind}` is not of {tasks} tasks"


def _alike(runs: list[Run]) -> tuple[list[Run], list[tuple[Cell, str]]]:
    """Without the runs that cannot be averaged with most of their arm, and a line for each of those."""
    kept, problems = [], list[tuple[Cell, str]]()
    counts = {cell: Counter[str]() for cell in {(run.group, run.arm.name) for run in runs}}
    for run in runs:
        counts[run.group, run.arm.name][_form(run.result)] += 1
    for run in runs:
        usual, _ = counts[run.group, run.arm.name].most_common(1)[0]
        if _form(run.result) == usual:
            kept.append(run)
        else:
            cell = Cell(run.group, run.arm, run.seed)
            why = "other evaluations, inputs or tasks than most runs of its arm"
            problems.append((cell, f"left out: {cell.path / 'result.json'}: {why}"))
    return kept, problems


def _form(result: dict[str, Any]) -> str:
    """When a run was evaluated, and on what: the same for all runs of an arm."""
    if "curve" not in result:
        there = [[rows is None for rows in result[name].values()] for name in ("R", "final")]
        return repr((there, result["task_classes"]))
    inputs = {name: len(each) for name, each in (result.get("input_connections") or {}).items()}
    return repr(([step for step, _ in result["curve"]], sorted(inputs.items())))


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
        grids = _grids(evidence, group)
        if len(set(steps.values())) == 1 and len(set(grids.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, (count, _) in grids.items())
            latest = max(first for _, first in grids.values())
            problems.append(f"unequal evaluations on {group}: {counts}; means over training begin at step {latest:,}")
    return problems


def _grids(evidence: Evidence, group: str) -> dict[str, tuple[int, int]]:
    """How many evaluations each arm of agents has there, and the step of the first."""
    curves = {
        arm.name: [run.result["curve"] for run in evidence.of(group, arm.name) if "curve" in run.result]
        for arm in evidence.arms
    }
    return {name: (len(found[0]), int(found[0][0][0])) for name, found in curves.items() if found}
