"""A whole run: its seeds one after the other, and what comes of them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import torch

from continual.benchmarks import make_benchmark
from runs.continual.pictures import draw_accuracy, draw_matrices
from runs.continual.progress import View
from runs.continual.records import Examiner, Record
from runs.continual.results import Facts, read_reference, result
from runs.continual.seeds import SeedRun, Stopped, build_learner
from runs.continual.settings import Settings
from runs.continual.tables import print_result
from runs.failure import UserError
from runs.files import write_json
from runs.machine import machine
from sparse_core import SparseLinear


class Run:
    """Everything a run needs, made before anything is written: what cannot be is an error here."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        torch.set_num_threads(settings.threads)
        self.settings, self.directory = settings, directory
        self.benchmark = make_benchmark(
            settings.benchmark,
            tasks=settings.tasks,
            class_order=settings.class_order,
            data_root=settings.data_root,
        )
        # One that is only looked at: a choice that cannot be shows itself here.
        self.facts = Facts.of(build_learner(settings, self.benchmark, settings.seeds[0]))
        self.reference = read_reference(settings, self.benchmark.task_classes)
        _load_kernels(settings.backend, settings.device)

    def finish(self, stop: list[int], step: int | None = None) -> None:
        """Do what is left of the seeds, write the result and draw it; `step`: the checkpoint to begin from."""
        tasks = self.benchmark.task_classes
        label = f"{self.settings.strategy} on {self.settings.benchmark}"
        examiner = Examiner(self.benchmark, self.settings.device)
        records: list[Record] = []
        with View(label, tasks, len(self.settings.seeds), joint=self.facts.joint, stop=stop) as view:
            for seed in self.settings.seeds:
                seed_run = SeedRun(seed, self.settings, self.benchmark, self.directory, view, stop)
                record = seed_run.finished()
                if record is None:
                    if stop:
                        raise Stopped(f"the beginning of seed {seed}")
                    record, step = seed_run.run(examiner, step), None
                records.append(record)
                view.seed_done(record)
        if step is not None:
            raise UserError(f"{self.directory} has no seed that is not finished; resume without --step")
        self._write(records)

    def _write(self, records: list[Record]) -> None:
        measured = {
            "seconds": [record.seconds for record in records],
            "machine": machine(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "directory": str(self.directory),
        }
        outcome = result(self.settings, self.benchmark, self.facts, records, self.reference, measured)
        # Pictures first: where there is a result, there is nothing left to do.
        draw_matrices(self.directory, outcome)
        draw_accuracy(self.directory, outcome)
        write_json(self.directory / "result.json", outcome, f"`sparse-agents resume {self.directory}`")
        print_result(outcome, str(self.directory))


def _load_kernels(backend: str, device: str) -> None:
    """Have compiled what multiplies, so that the first seed's seconds are those of the others."""
    layer = SparseLinear(8, 8, sparsity=0.5, backend=backend).to(device)
    layer(torch.zeros(1, 8, device=device)).sum().backward()
