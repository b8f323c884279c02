"""A study as a value: groups × arms × seeds, and the file that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from runs.failure import UserError
from runs.files import read_json, write_json
from runs.studies.shapes import RESULTS, fault, plan_shape

FORMAT, VERSION = "sparse-agents-study", 1
FILE = "study.json"
Kind = Literal["agents", "continual"]
FIRST_SEEDS = 5  # of every arm before any arm gets another: what is done early can be compared early


_FREE = ("checkpoint_every", "data_root")  # settings that no result depends on: the latest hold


@dataclass(frozen=True)
class Arm:
    """One thing that is compared: the same settings in every run but for the seed, by group."""

    name: str
    method: str
    """The topology or strategy, or `small-dense`."""
    settings: dict[str, dict[str, Any]]
    """By group, as in a run's `config.json`, less `seed`."""
    backends: dict[str, dict[str, str]] = field(default_factory=dict)
    """By group, what multiplies in each layer: settled once for all seeds."""
    of: str | None = None
    """The arm whose last topology this one takes."""
    as_large_as: float | None = None
    """The sparsity of the network this one has as many weights as."""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    group: str
    arm: Arm
    seed: int

    @property
    def path(self) -> Path:
        """Its run directory below that of the study."""
        return self.folder / f"seed-{self.seed}"

    @property
    def folder(self) -> Path:
        """Where the runs of its arm are."""
        return Path(folder_name(self.group)) / self.arm.name

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.group} {self.arm.name} seed {self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """Those of its arm."""
        return self.arm.settings[self.group]


def folder_name(group: str) -> str:
    """A group as the name of a folder."""
    return group.replace("/", "_").replace(":", "_")


@dataclass(frozen=True)
class Study:
    """What `study.json` holds."""

    kind: Kind
    groups: list[str]
    arms: list[Arm]
    seeds: list[int]
    commands: list[list[str]]
    seconds: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    machine: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> Iterator[Cell]:
        """All runs in the order in which they are begun: every arm's first seeds before any arm's later ones."""
        for first in (True, False):
            for number, seed in enumerate(self.seeds):
                if (number < FIRST_SEEDS) == first:
                    yield from (Cell(group, arm, seed) for group in self.groups for arm in self.arms)

    def write(self, directory: Path, then: str) -> None:
        """Write it into a study directory."""
        write_json(directory / FILE, {"format": FORMAT, "version": VERSION, **asdict(self)}, then)

    def extended(self, other: Study, where: Path) -> Study:
        """This study with the groups, arms and seeds of `other`, too; a `UserError` where the two disagree."""
        if self.kind != other.kind:
            raise UserError(f"{where} is a study of {self.kind}, not of {other.kind}; choose another --out")
        if self.seconds != other.seconds:
            then, now = ("equal steps" if s is None else f"--seconds {s:g}" for s in (self.seconds, other.seconds))
            raise UserError(f"{where} is a study with {then}, now it is {now}; choose another --out")
        arms = {arm.name: arm for arm in self.arms}
        for arm in other.arms:
            arms[arm.name] = arm if arm.name not in arms else _merged(arms[arm.name], arm, where)
        seen = self.commands
        return replace(
            self,
            groups=[*self.groups, *(group for group in other.groups if group not in self.groups)],
            arms=list(arms.values()),
            seeds=[*self.seeds, *(seed for seed in other.seeds if seed not in self.seeds)],
            commands=seen if other.commands[0] in seen else [*seen, *other.commands],
        )

    def completed(self, later: Mapping[str, Any]) -> Study:
        """This study with what settings of its time did not have and held then, by name."""
        arms = [
            replace(arm, settings={group: {**later, **each} for group, each in arm.settings.items()})
            for arm in self.arms
        ]
        return replace(self, arms=arms)

    def narrowed(self, other: Study) -> Study:
        """The part of this study that `other` names."""
        wanted = {arm.name for arm in other.arms}
        arms = [arm for arm in self.arms if arm.name in wanted]
        return replace(self, groups=other.groups, arms=arms, seeds=other.seeds)


def _merged(known: Arm, given: Arm, where: Path) -> Arm:
    """An arm with further groups, if its settings are the same where both have them."""
    for group in known.settings.keys() & given.settings.keys():
        then, now = known.settings[group], given.settings[group]
        wrong = [(name, then.get(name), now.get(name)) for name in differing(then, now, _FREE)]
        own = [("method", known.method, given.method), ("the last topology of", known.of, given.of)]
        for name, before, after in [*wrong, *(each for each in own if each[1] != each[2])]:
            hint = f" and --device {before}" if name == "device" else ""  # auto may be another elsewhere
            raise UserError(
                f"arm {known.name!r} of {where} was begun with {name} = {before!r}, now it is {after!r}; "
                f"give the command it was begun with{hint}, or choose another --out"
            )
    latest = {
        group: {**then, **{name: given.settings[group][name] for name in _FREE if name in then}}
        for group, then in known.settings.items()
        if group in given.settings
    }
    settings = {**given.settings, **known.settings, **latest}
    return replace(known, settings=settings, backends={**given.backends, **known.backends})


def read_study(directory: Path) -> Study:
    """The study in a directory, or a `UserError`."""
    path = directory / FILE
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give the --out of a `sparse-agents compare`")
    if not path.exists():
        raise UserError(f"{directory} is no study (it has no {FILE}); give the --out of a `sparse-agents compare`")
    written = read_json(path, "plan of a study")
    if written.get("format") != FORMAT or written.get("version") != VERSION:
        raise UserError(f"{path} is not a plan of this program's version; use the sparse-agents that wrote it")
    try:
        fields = {name: written[name] for name in Study.__dataclass_fields__}
        study = Study(**{**fields, "arms": [Arm(**arm) for arm in written["arms"]]})
        wrong = _fault(study)
    except (KeyError, TypeError) as error:
        wrong = str(error)
    if wrong is not None:
        raise UserError(f"{path} is damaged ({wrong}); put back a copy of it, or compare in a new directory")
    return replace(study, seeds=[*dict.fromkeys(study.seeds)])


def _fault(study: Study) -> str | None:
    """What is wrong with a plan, if anything is."""
    if study.kind not in RESULTS:
        return f"`kind` must be one of {', '.join(RESULTS)}, got {study.kind!r}"
    bare = [arm.name for arm in study.arms if arm.settings == {}]
    return fault(asdict(study), plan_shape(study.kind)) or (f"arm {bare[0]!r} has no settings" if bare else None)


def check_names(names: Sequence[str], what: str) -> None:
    """Raise a `ValueError` unless these differ and can be names of folders."""
    for name in names:
        if not name or name.startswith((".", "-")) or not all(c.isalnum() or c in "-_.+" for c in name):
            raise ValueError(f"{what} {name!r} must be made of letters, digits and -_.+; choose another name")
    if len(set(names)) < len(names):
        raise ValueError(f"{what}s must differ, got {', '.join(names)}; name each once")


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any], but: Sequence[str]) -> list[str]:
    """Names of the settings that are not as wanted."""
    return [
        name for name in sorted(found.keys() | wanted.keys()) if name not in but and found.get(name) != wanted.get(name)
    ]
