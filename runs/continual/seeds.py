"""One seed: built, trained task by task, kept in checkpoints, examined after each task."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from avalanche.training.plugins import SupervisedPlugin

from continual.baselines import silent_evaluator
from continual.catalogue import build_strategy
from continual.learner import Setup, epochs_of, is_joint
from continual.scenario import ContinualBenchmark
from runs.checkpoints import Checkpoint, CheckpointStore
from runs.continual.progress import View
from runs.continual.records import Examiner, Record, read_record, write_record
from runs.continual.settings import Settings
from runs.failure import UserError
from runs.files import writing
from runs.global_draws import generator_states, restore_generators, seed_generators
from runs.snapshot import pack, unpack


class Stopped(Exception):
    """The run was told to stop; the message says where it stands."""


class _EpochEnds(SupervisedPlugin):  # type: ignore[misc]
    """Says when an epoch ends, to whoever wants to know by then."""

    def __init__(self) -> None:
        super().__init__()
        self.then: Any = lambda: None

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.then()


_CHOSEN = (
    "norm", "epochs", "batch_size", "optimizer", "learning_rate", "isolation", "head", "policy", "memory",
    "initial_topology", "device", "backend",
)  # fmt: skip


def build_learner(settings: Settings, benchmark: ContinualBenchmark, seed: int, plugins: tuple[Any, ...] = ()) -> Any:
    """A new learner; the same seed makes the same one. What cannot be is a `ValueError`."""
    seed_generators(seed)
    setup = Setup(
        benchmark, seed=seed, hidden=tuple(settings.hidden), channels=tuple(settings.channels), plugins=plugins,
        evaluator=silent_evaluator(), **{name: getattr(settings, name) for name in _CHOSEN},
    )  # fmt: skip
    return build_strategy(settings.strategy, setup)


def is_resumable(learner: Any) -> bool:
    """Whether a learner can be stored and go on from there."""
    return all(hasattr(learner, name) for name in ("state", "load_state", "epochs_done"))


class SeedRun:
    """Trains one seed in a folder of its own, from its newest checkpoint on; a finished one is only read."""

    def __init__(
        self, seed: int, settings: Settings, benchmark: ContinualBenchmark, directory: Path, view: View, stop: list[int]
    ) -> None:
        self.seed, self.settings, self.benchmark, self.view, self.stop = seed, settings, benchmark, view, stop
        self.folder = directory / f"seed-{seed}"
        self.directory = directory
        self._then = f"`sparse-agents resume {directory}`"
        self._store = CheckpointStore(self.folder / "checkpoints", run=directory)
        self._file = self.folder / "rows.json"

    def finished(self) -> Record | None:
        """The record of this seed, if it is done."""
        record = read_record(self._file, self.seed)
        return record if record is not None and record.finished else None

    def run(self, examiner: Examiner, step: int | None = None) -> Record:
        """Train what is left of the seed; raises `Stopped` where it is told to."""
        ends = _EpochEnds()
        self.learner = build_learner(self.settings, self.benchmark, self.seed, (ends,))
        self.joint = is_joint(self.learner)
        self.resumable = is_resumable(self.learner)
        self.epochs = epochs_of(self.learner)
        self.parts = 1 if self.joint else len(self.benchmark.task_classes)
        self.epoch, self.record = 0, Record(self.seed)
        with writing(self.folder, self._then):
            self.folder.mkdir(exist_ok=True)
        if self.resumable and (step is not None or self._store.steps()):
            self._restore(self._store.load(step))
            self.view.say(f"continuing {self.directory} from {self._where()}")
        elif step is not None:
            raise UserError(
                f"{self.settings.strategy} has no checkpoints; resume without --step: the seed begins again"
            )
        ends.then = self._epoch_ends
        self._clock = self._saved = time.monotonic()
        self.view.begin(self.record, self.epochs * self.parts)
        self.view.at(self._position())
        if not self.record.tasks_done and not self.epoch:
            examiner.begin(self.learner, self.record)
        while self.record.tasks_done < self.parts:
            self._learn_a_task(examiner)
        write_record(self._file, self.record, self._then)  # also one that was killed before its last was written
        return self.record

    def _learn_a_task(self, examiner: Examiner) -> None:
        number = self.record.tasks_done
        if self.joint:
            self.learner.train_all(self.benchmark.train)
        else:
            self.learner.train(self.benchmark.train[number])
        examiner.examine(self.learner, self.record)
        self.epoch = 0
        self._count_seconds()
        self.view.at(self._position())
        self.view.row(self.record)
        done = self.record.tasks_done == self.parts
        self.record.finished = done
        if self.resumable:
            self._save()
        if not done:
            write_record(self._file, self.record, self._then)
        if self.stop and not done:
            raise Stopped(self._where())
        self._clock = time.monotonic()

    def _position(self) -> int:
        """Epochs trained, over all tasks."""
        return self.record.tasks_done * self.epochs + self.epoch

    def _epoch_ends(self) -> None:
        self.epoch += 1
        last = self.epoch >= self.epochs
        self.view.at(self._position())
        if last and (self.resumable or self.record.tasks_done + 1 == self.parts):
            return  # the end of the task follows, with a checkpoint of its own
        if self.stop:
            if self.resumable:
                self._count_seconds()
                self._save()
            raise Stopped(self._where())
        if self.resumable and time.monotonic() - self._saved >= self.settings.checkpoint_every:
            self._count_seconds()
            self._save()
            self._clock = time.monotonic()

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.record.seconds += now - self._clock
        self._clock = now

    def _save(self) -> None:
        state = {
            "learner": self.learner.state(),
            "record": self.record.as_dict(),
            "epoch": self.epoch,
            "generators": generator_states(),
        }
        tensors, rest = pack(state)
        self._store.save(self._position(), tensors, rest)
        self._saved = time.monotonic()

    def _restore(self, checkpoint: Checkpoint) -> None:
        try:
            state = unpack(checkpoint.state, checkpoint.tensors)
            self.learner.load_state(state["learner"])
            self.record, self.epoch = Record.from_dict(state["record"]), int(state["epoch"])
            if self.record.seed != self.seed or self._position() != checkpoint.step:
                raise ValueError(f"it is of seed {self.record.seed}, step {self._position()}")
            restore_generators(state["generators"])
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise UserError(
                f"{checkpoint.path} does not fit the run in {self.directory}: {error}; was it made by another version?"
            ) from error
        self._store.rewind(checkpoint.step)

    def _where(self) -> str:
        where = f"seed {self.seed}, task {self.record.tasks_done + 1}, epoch {self.epoch}"
        return where if self.resumable else f"{where} (this strategy keeps no state: the seed will begin again)"
