"""`sparse-agents bench`: check what was asked for, measure, print the table, write the JSON."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile

from rich.console import Console

from runs.bench.report import document, notes, surroundings, table
from runs.failure import UserError
from runs.files import write_json, writing
from runs.machine import usable_cores
from runs.options import Bench

BUSY = 0.5  # load average per core from which on other work gets into the ratios


def bench(options: Bench) -> int:
    """Run one bench; whatever cannot be is an error before anything is measured."""
    cores = usable_cores()
    threads = cores if options.threads is None else options.threads
    if not 1 <= threads <= cores:
        raise UserError(
            f"`threads` must be from 1 to {cores}, the cores this process may use, got {threads}; leave it out for all"
        )
    if options.json is not None:
        _check_writable(options.json)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None

    import torch

    from runs.bench.session import Session

    case = import_module(f"runs.bench.cases.{options.name}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with Session(threads) as session:
            if load is not None and load / cores > BUSY:
                session.say(
                    f"warning: this machine is busy (load average {load:.2f} on {cores} cores), so the ratios may "
                    "mislead; measure again when it is idle"
                )
            rows = case.measure(session, case.QUICK if options.quick else case.FULL)
    finally:
        torch.set_num_threads(before)
    where = surroundings(threads, load)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 240  # a line per case, whoever reads it
    console.print(table(rows))
    for line in notes(rows):
        console.print(line, soft_wrap=True)
    console.print(f"\n{where['processor']}, {threads} of {cores} cores; medians, ± half the distance of the quartiles")
    if options.json is not None:
        write_json(options.json, document(options.name, options.quick, rows, where))
        console.print(f"written to {options.json}", soft_wrap=True)
    return 0


def _check_writable(path: Path) -> None:
    """Raise a `UserError` where a file could not be written, now rather than after the bench."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; give --json the name of a file")
    with writing(path), TemporaryFile(dir=path.parent):
        pass
