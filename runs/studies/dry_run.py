"""`compare --dry-run`: the grid with what it will take, from a few seconds of each arm; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from runs.continual.running import getting_ready
from runs.studies.learners import for_seed
from runs.studies.options import StudyFlags
from runs.studies.plan import Arm, Cell, Study
from runs.studies.running import outcome_counts
from runs.studies.states import state_of

_COLUMNS = {
    "agents": ["steps", "hidden", "sparsity", "s a run", "MB kept", "MB while it runs"],
    "continual": ["strategy", "tasks", "epochs", "s a run", "MB kept"],
}
_TO_THE_LEFT = ("group", "arm", "strategy")


@dataclass(frozen=True)
class _Estimate:
    """Of one run of an arm."""

    shown: list[str]
    seconds: float
    kept: float
    """Bytes that stay."""
    passing: float = 0.0
    """Bytes that it needs beside those until it is finished."""


def show_plan(study: Study, options: StudyFlags, known: Study | None) -> None:
    """Print the grid; what is finished in the study's directory is not done again, nor are steps found anew."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ["group", "arm", *_COLUMNS[study.kind]]:
        table.add_column(column, justify="left" if column in _TO_THE_LEFT else "right")
    settled = {(arm.name, group) for arm in known.arms for group in arm.settings} if known else set()
    total = kept = passing = 0.0
    for group in study.groups:
        for arm in study.arms:
            if study.kind == "continual":
                each = _of_learner(arm, group, study)
            else:
                each = _of_agent(arm, group, study, (arm.name, group) in settled)
            left = sum(state_of(options.out, Cell(group, arm, seed)) != "finished" for seed in study.seeds)
            total, kept = total + each.seconds * left, kept + each.kept * left
            passing = max(passing, each.passing if left else 0)
            table.add_row(group, arm.name, *each.shown)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    console.print(table)
    cells = list(study.cells())
    finished = outcome_counts(options.out, cells)["finished"]
    print(
        f"{len(cells)} runs: {len(study.groups)} × {len(study.arms)} arms × {len(study.seeds)} seeds"
        + (f", {finished} of them finished" if finished else "")
    )
    count = options.processes
    print(
        f"about {_time(total / count)} with {count} workers (measured one at a time: busy cores are "
        f"slower), {(kept + count * passing) / 1e6:,.0f} MB of disk"
    )


def _time(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{seconds / 3600:.1f} hours" if minutes >= 60 else f"{minutes} minute{'s' if minutes > 1 else ''}"


def _of_agent(arm: Arm, group: str, study: Study, is_settled: bool) -> _Estimate:
    from runs.studies.speed import measure

    settings, speed = arm.settings[group], measure(arm, group, study.seeds[0])
    if study.seconds is not None and not is_settled:
        settings = {**settings, "steps": speed.steps_in(study.seconds, settings)}
    seconds, hidden = speed.seconds(settings), "-".join(map(str, settings["hidden"]))
    shown = [f"{settings['steps']:,}", hidden, f"{settings['sparsity']:g}", f"{seconds:,.0f}"]
    shown += [f"{size / 1e6:.1f}" for size in (speed.kept_bytes, speed.replay_bytes)]
    return _Estimate(shown, seconds, speed.kept_bytes, speed.replay_bytes)


def _of_learner(arm: Arm, group: str, study: Study) -> _Estimate:
    settings = for_seed(arm.settings[group], study.seeds[0])
    with getting_ready(settings):
        from runs.studies.learner_speed import measure

        speed = measure(settings)
    shown = [arm.method, str(speed.tasks), str(speed.epochs), f"{speed.seconds:,.0f}", f"{speed.kept_bytes / 1e6:.1f}"]
    return _Estimate(shown, speed.seconds, speed.kept_bytes)
