"""Studies of continual learners: from flags to arms, and one run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import tyro

from runs.continual.running import begin, getting_ready, resume_continual
from runs.continual.settings import FORMAT, VERSION, Settings
from runs.files import read_json
from runs.flags import LearnerFlags
from runs.options import Continual, Resume
from runs.studies.options import CompareContinual
from runs.studies.plan import Arm
from runs.values import names_in, words


@dataclass(frozen=True)
class _ArmFlags(LearnerFlags):
    """What an --arm may say: every flag of `continual` but those that all runs of a study share."""

    strategy: str = "spacenet"


def arms(options: CompareContinual) -> list[Arm]:
    """Every arm with its settings on every benchmark; a `ValueError` says what cannot be."""
    shared = {field.name: getattr(options, field.name) for field in fields(LearnerFlags)}
    base = _ArmFlags(**shared)
    wanted = [(name, replace(base, strategy=name)) for name in names_in(options.strategies, "strategies")]
    for text in options.arm:
        name, *arguments = words(text)
        config = (tyro.conf.OmitArgPrefixes,)
        wanted.append((name, tyro.cli(_ArmFlags, prog=f"--arm {name}", args=arguments, default=base, config=config)))
    groups = names_in(options.benchmark, "benchmark")
    made = [
        Arm(name, flags.strategy, {group: _settings(flags, group, options.threads_per_worker) for group in groups})
        for name, flags in wanted
    ]
    if any(flags != replace(_ArmFlags(), strategy=flags.strategy) for _, flags in wanted):
        return _with_own_choices(made, groups)
    return made


def _with_own_choices(arms: list[Arm], groups: list[str]) -> list[Arm]:
    """Arms without the shared flags that their strategies have no choice of, which is said."""
    for group in groups:
        first = for_seed(arms[0].settings[group], 0)
        with getting_ready(first):
            from continual.benchmarks import make_benchmark
            from continual.learner import NoChoice
            from runs.continual.seeds import build_learner

            benchmark = make_benchmark(
                group, tasks=first.tasks, class_order=first.class_order, data_root=first.data_root
            )
        for arm in arms:
            left_out: list[str] = []
            while True:
                try:
                    build_learner(for_seed(arm.settings[group], 0), benchmark, 0)
                    break
                except NoChoice as refusal:
                    if {*refusal.names} <= {*left_out}:
                        raise
                    left_out += refusal.names
                    defaults = asdict(for_seed(_settings(replace(_ArmFlags(), strategy=arm.method), group, 1), 0))
                    arm.settings[group].update({name: defaults[name] for name in refusal.names})
            if left_out:
                print(f"{arm.name} has no choice of {', '.join(left_out)}: left out for it", file=sys.stderr)
    return arms


def for_seed(settings: Mapping[str, Any], seed: int) -> Settings:
    """The settings of one run."""
    config = {"format": FORMAT, "version": VERSION, "settings": {**settings, "seeds": [seed]}}
    return Settings.from_config(config, "the plan of the study")


def _settings(flags: _ArmFlags, group: str, threads: int) -> dict[str, Any]:
    """Settings as a plan holds them: without what differs from seed to seed."""
    given = {field.name: getattr(flags, field.name) for field in fields(_ArmFlags)}
    settings = Settings.resolve(Continual(benchmark=group, seeds="1", threads=threads, **given))
    return {name: value for name, value in settings.as_dict().items() if name != "seeds"}


def run(directory: Path, settings: Mapping[str, Any], seed: int) -> int:
    """Begin or continue one run of one seed; the exit code of `continual`."""
    if (directory / "config.json").exists():
        return resume_continual(Resume(directory), read_json(directory / "config.json", "config of a run"))
    return begin(for_seed(settings, seed), directory)
