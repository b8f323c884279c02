"""How long a continual learner trains and how much disk it takes, from an epoch of its first task."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from continual.benchmarks import make_benchmark
from continual.learner import epochs_of, is_joint
from runs.continual.records import Examiner, Record
from runs.continual.seeds import build_learner, is_resumable
from runs.continual.settings import Settings
from runs.snapshot import pack

_BESIDE = 700_000  # bytes of a run beside its checkpoint: pictures, result, records
_LONG = 5.0  # seconds beside which the first use of anything is nothing


@dataclass(frozen=True)
class Speed:
    """Of one run."""

    tasks: int
    epochs: int
    seconds: float
    kept_bytes: int


def measure(settings: Settings) -> Speed:
    """Train a learner for one epoch of its first task (all of them, where it learns them at once) and examine it."""
    seed = settings.seeds[0]
    benchmark = make_benchmark(
        settings.benchmark, tasks=settings.tasks, class_order=settings.class_order, data_root=settings.data_root
    )
    learner = build_learner(settings, benchmark, seed)
    epochs, joint = epochs_of(learner), is_joint(learner)
    short = settings if epochs == 1 else replace(settings, epochs=1)
    tasks, elapsed = list(benchmark.train), 0.0
    for _ in range(2):
        learner, began = build_learner(short, benchmark, seed), time.perf_counter()
        if joint:
            learner.train_all(benchmark.train)
        else:
            learner.train(tasks[0])
        elapsed = time.perf_counter() - began
        if elapsed > _LONG:  # else much of it may have been loading kernels
            break
    share = 1.0 if joint else len(tasks[0].dataset) / sum(len(task.dataset) for task in tasks)
    training = elapsed / share * epochs
    began = time.perf_counter()
    Examiner(benchmark, settings.device).examine(learner, Record(seed))
    looks = (time.perf_counter() - began) * (1 if joint else len(tasks))
    kept = sum(tensor.nbytes for tensor in pack(learner.state())[0].values()) if is_resumable(learner) else 0
    return Speed(len(tasks), epochs, training + looks, kept + _BESIDE)
