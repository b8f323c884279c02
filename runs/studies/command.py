"""`sparse-agents compare`: a grid of runs, done by several processes, continued until all are there."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from runs.continual.settings import LATER as LATER_OF_LEARNERS
from runs.directories import stop_signals
from runs.failure import UserError
from runs.files import writing
from runs.lock import RunLock
from runs.machine import command as this_command
from runs.machine import commit, machine, versions
from runs.seeds import parse_seeds
from runs.settings import LATER as LATER_OF_AGENTS
from runs.studies import agents, learners
from runs.studies.dry_run import show_plan
from runs.studies.options import Compare, CompareContinual, StudyFlags
from runs.studies.plan import FILE, Arm, Study, check_names, folder_name, read_study
from runs.studies.running import Runner, failures, outcome_counts
from runs.studies.speed import measure
from runs.studies.view import View
from runs.studies.workers import workers
from runs.values import check_threads, names_in

_LEFTOVER = re.compile(rf"\.{re.escape(FILE)}\.\d+\.tmp")  # of a process that was killed while it wrote the plan


def _say() -> Console:
    return Console(file=sys.stderr, highlight=False)


def compare(options: Compare) -> int:
    """A study of agents."""
    if options.seconds is not None and not 0 < options.seconds < float("inf"):
        raise ValueError(f"`seconds` must be a positive number, got {options.seconds}")
    arms = agents.arms(options)
    wanted = _study("agents", names_in(options.env, "env"), arms, options, options.seconds)
    return _compare(wanted, options)


def compare_learners(options: CompareContinual) -> int:
    """A study of continual learners."""
    groups = names_in(options.benchmark, "benchmark")
    return _compare(_study("continual", groups, learners.arms(options), options, None), options)


def _study(kind: Any, groups: list[str], arms: list[Arm], options: StudyFlags, seconds: float | None) -> Study:
    check_names([arm.name for arm in arms], "arm")
    check_names([folder_name(group) for group in groups], "group")
    check_threads(options.threads_per_worker)
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {options.workers}")
    seeds = parse_seeds(options.seeds)
    return Study(kind, groups, arms, seeds, [this_command()], seconds, versions(), commit(), machine())


def _compare(wanted: Study, options: StudyFlags) -> int:
    directory = options.out
    known = _known(directory, wanted)
    whole = wanted if known is None else known.extended(_with_known_steps(wanted, known), directory / FILE)
    _note_what_is_short(whole.narrowed(wanted))
    if options.dry_run:
        show_plan(whole.narrowed(wanted), options, known)
        return 0
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with RunLock(directory), stop_signals("step of every run", silent=_say().is_terminal) as stop:
        whole = _settled(whole, stop)
        if stop:
            return _say_how_to_go_on(directory)
        if known is None or whole != known:
            whole.write(directory, "run the command again")
        return _run(whole.narrowed(wanted), directory, options, stop)


def _note_what_is_short(study: Study) -> None:
    for arm in study.arms if study.kind == "agents" and study.seconds is None else []:
        for group, settings in arm.settings.items():
            note = agents.settings_of(settings, study.seeds[0], None).note
            if note is not None:
                _say().print(f"note: {group} {arm.name}: {note}", soft_wrap=True)


def _known(directory: Path, wanted: Study) -> Study | None:
    """The study that is there; None in a new or empty directory."""
    if (directory / FILE).exists():
        return read_study(directory).completed(LATER_OF_AGENTS if wanted.kind == "agents" else LATER_OF_LEARNERS)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; choose another --out")
    ours = {"lock", *(folder_name(group) for group in wanted.groups)}
    there = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    others = sorted(name for name in there if name not in ours and not _LEFTOVER.fullmatch(name))
    if others:
        raise UserError(f"{directory} is no study and not empty ({others[0]}); choose another --out")
    return None


def _with_known_steps(wanted: Study, known: Study) -> Study:
    """Where training time is given, the steps that were found for it before, which are not measured twice."""
    if wanted.seconds is None:
        return wanted
    then = {arm.name: arm for arm in known.arms}

    def steps(arm: Arm) -> Arm:
        found = then[arm.name].settings if arm.name in then else {}
        return replace(
            arm,
            settings={
                group: {**each, "steps": found[group]["steps"]} if group in found else each
                for group, each in arm.settings.items()
            },
        )

    return replace(wanted, arms=[steps(arm) for arm in wanted.arms])


def _settled(study: Study, stop: list[int]) -> Study:
    """What must be measured once, measured: backends, and the steps that a given time allows."""
    if study.kind == "continual":
        return study
    arms = []
    for arm in study.arms:
        for group in [group for group in arm.settings if group not in arm.backends]:
            if stop:
                return study
            arm = replace(arm, backends={**arm.backends, group: agents.settle(arm, group, study.seeds[0])})
            if study.seconds is not None:
                steps = measure(arm, group, study.seeds[0]).steps_in(study.seconds, arm.settings[group])
                settings = {**arm.settings, group: {**arm.settings[group], "steps": steps}}
                arm = replace(arm, settings=settings)
                _say().print(f"{group} {arm.name}: {steps:,} steps in {study.seconds:g} seconds")
        arms.append(arm)
    return replace(study, arms=arms)


def _run(study: Study, directory: Path, options: StudyFlags, stop: list[int]) -> int:
    cells = list(study.cells())
    with workers(min(options.processes, len(cells)), options.scheduler) as made, View(directory, cells) as view:
        Runner(study, directory, made, view).finish(cells, options.retry_failed, stop)
    counts = outcome_counts(directory, cells)
    _say().print(
        ", ".join(f"{number} {state}" for state, number in counts.items() if number) + f" of {len(cells)} runs"
    )
    if counts["half-done"] or counts["new"]:
        return _say_how_to_go_on(directory)
    failed = failures(directory, cells)
    for cell, error, attempts in failed:
        print(f"failed ({attempts}×): {cell.name}: {error}", file=sys.stderr)
    print(f"see `sparse-agents report {directory}`")
    if failed:
        raise UserError(f"{len(failed)} of {len(cells)} runs failed; mend it and try them again with --retry-failed")
    return 0


def _say_how_to_go_on(directory: Path) -> int:
    print(f"stopped; the same command continues the study in {directory}", file=sys.stderr)
    return 130
