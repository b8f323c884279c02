"""`sparse-agents methods`: every method on one task, one file a run, and a table of them all."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from continual.data import DIGITS, MNIST, ImageSet, Labelled, default_root, every_of_each_class
from runs.failure import UserError
from runs.files import read_json, write_atomically, write_json
from runs.machine import commit, machine, versions
from runs.methods.options import Methods
from runs.methods.table import Row, as_markdown, rows_of
from runs.methods.training import SMALL_DENSE, Task, Training, train
from runs.seeds import parse_seeds
from runs.values import parse_widths
from sparse_core import PRESETS
from sparse_core.distributions import check_sparsity
from sparse_core.initial_topologies import placing

FORMAT, VERSION = "sparse-agents methods run", 2
IMAGES = {"digits": DIGITS, "mnist": MNIST}


class Job(NamedTuple):
    """One run."""

    topology: str
    sparsity: float
    seed: int

    @property
    def file(self) -> str:
        """Its file's name."""
        return f"{self.topology.replace(':', '-')}-{self.sparsity:g}-seed{self.seed}.json"


_OURS = re.compile(r".+-seed\d+\.json|table\.(md|csv)|\..+\.tmp")  # files of a directory of runs


def methods(options: Methods) -> int:
    """Train what is not finished, then write and print the table."""
    training, jobs = _training(options), list(_jobs(options))
    out = options.out or Path("results") / "methods" / options.images
    finished = _finished(out, jobs, options.images, training)
    torch.set_num_threads(options.threads)
    left = [job for job in jobs if job not in finished]
    if left:
        task = _task(IMAGES[options.images])
        out.mkdir(parents=True, exist_ok=True)
        with _bar() as bar:
            line = bar.add_task("", total=len(left) * training.epochs)
            for job in left:
                bar.update(line, description=f"{job.topology} {job.sparsity:g} seed {job.seed}")
                result = train(task, training, job.topology, job.sparsity, job.seed, lambda: bar.advance(line))
                finished[job] = _written(out / job.file, job, options, training, result)
    rows = rows_of([(job.topology, job.sparsity, finished[job]) for job in jobs])
    write_atomically(out / "table.md", (as_markdown(rows) + "\n").encode())
    write_atomically(out / "table.csv", _as_csv(rows).encode())
    print(as_markdown(rows))
    print(f"\n{out / 'table.md'}, {out / 'table.csv'}")
    return 0


def _training(options: Methods) -> Training:
    hidden = tuple(parse_widths(options.hidden, "hidden", "400,400"))
    for name in ("epochs", "batch_size", "threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(options, name)}")
    if options.initial_topology not in (None, "correlated"):  # for that one there are images
        placing(options.initial_topology)
    return Training(
        hidden, options.epochs, options.batch_size, options.learning_rate, options.target, options.initial_topology
    )


def _jobs(options: Methods) -> Iterator[Job]:
    """Dense once, small-dense and every method at every sparsity; seed after seed, so that a table is soon whole."""
    chosen = [name for name, preset in PRESETS.items() if not (preset.dense or preset.given)]
    if options.topologies is not None:
        wanted = [name.strip() for name in options.topologies.split(",")]
        for name in wanted:
            if name not in ("dense", SMALL_DENSE) and PRESETS[name].given:
                raise ValueError(f"topology {name!r} takes its connections from another run; leave it out here")
        chosen = ["static", *(name for name in wanted if name not in ("static", "dense", SMALL_DENSE))]
    try:
        sparsities = [check_sparsity(float(text)) for text in options.sparsities.split(",")]
    except ValueError as error:
        raise ValueError(
            f"`sparsities` must be a comma list of numbers in [0, 1), got {options.sparsities!r}"
        ) from error
    for seed in parse_seeds(options.seeds):
        yield Job("dense", 0.0, seed)
        for sparsity in sparsities:
            for name in (SMALL_DENSE, *chosen):
                own = None if name == SMALL_DENSE else PRESETS[name].own_sparsity
                if own is None:
                    yield Job(name, sparsity, seed)
                elif sparsity == sparsities[0]:  # once, at the only one it has
                    yield Job(name, own, seed)


def _finished(out: Path, jobs: list[Job], images: str, training: Training) -> dict[Job, dict[str, Any]]:
    found = {}
    strange = sorted(path.name for path in out.iterdir() if not _OURS.fullmatch(path.name)) if out.is_dir() else []
    if strange or (out.exists() and not out.is_dir()):
        raise UserError(
            f"{out} holds {strange[0] if strange else 'no directory'}, no runs of `methods`; choose another --out"
        )
    for job in jobs:
        path = out / job.file
        if not path.exists():
            continue
        run = read_json(path, "run of a method")
        if run.get("format") != FORMAT or run.get("version") != VERSION:
            raise UserError(f"{path} is no run of this program's `methods`; name another directory with --out")
        if run["images"] != images or run["training"] != _plain(training):
            raise UserError(f"{path} was trained otherwise ({run['images']}, {run['training']}); name another --out")
        found[job] = run
    return found


def _written(path: Path, job: Job, options: Methods, training: Training, result: dict[str, Any]) -> dict[str, Any]:
    run = {
        "format": FORMAT,
        "version": VERSION,
        "images": options.images,
        "training": _plain(training),
        **job._asdict(),
        **result,
    }
    run["measured"] |= {"threads": options.threads, "machine": machine(), "versions": versions(), "commit": commit()}
    write_json(path, run)
    return run


def _plain(training: Training) -> dict[str, Any]:
    plain = {**asdict(training), "hidden": list(training.hidden)}
    return {name: value for name, value in plain.items() if value is not None}


def _task(images: ImageSet) -> Task:
    """Every tenth training image of each class is for validation."""
    train_images, test_images = images.read(default_root())
    apart = every_of_each_class(train_images.labels, 10)
    kept, held_back = (Labelled(train_images.pixels[rows], train_images.labels[rows]) for rows in (~apart, apart))
    return Task(_shown(images, kept), _shown(images, held_back), _shown(images, test_images), images.classes)


def _shown(images: ImageSet, part: Labelled) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = part.pixels.astype(np.float32) / images.white
    mean, std = (np.array(each, np.float32).reshape(-1, 1, 1) for each in (images.mean, images.std))
    return torch.from_numpy((pixels - mean) / std).flatten(1), torch.from_numpy(part.labels)


def _bar() -> Progress:
    """A bar over all epochs that are left, at a terminal."""
    console = Console(file=sys.stderr, highlight=False)
    return Progress(
        TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip


def _as_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(Row._fields)
    writer.writerows(rows)
    return text.getvalue()
