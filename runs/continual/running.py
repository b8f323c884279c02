"""`continual` and its `resume`: a run directory, from its first file to its result."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from runs.continual.settings import FORMAT, VERSION, Settings, default_directory
from runs.continual.tables import seed_names
from runs.directories import refuse_existing, stop_signals, warn_of_changes
from runs.files import write_json, writing
from runs.lock import RunLock
from runs.machine import PACKAGES, provenance, versions
from runs.options import Continual, Resume
from runs.values import check_device

_ALSO = ("avalanche-lib", "torchvision", "scikit-learn")
_UNUSED = ("gymnasium", "mujoco", "stable-baselines3")


def continual(options: Continual) -> int:
    """Begin a run in a new directory and see it to its end; nothing is written before all of it is known to be."""
    settings = Settings.resolve(options)
    return begin(settings, default_directory(settings) if options.out is None else options.out)


def begin(settings: Settings, directory: Path) -> int:
    """Begin a run with these settings."""
    refuse_existing(directory)
    with getting_ready(settings):
        from runs.continual.whole import Run

        run = Run(settings, directory)
    then = "run the command again"
    with writing(directory, then):
        directory.mkdir(parents=True, exist_ok=True)
    with RunLock(directory):
        refuse_existing(directory)
        write_json(directory / "config.json", _config(settings), then)
        return _finish(run, directory)


def resume_continual(options: Resume, written: dict[str, Any]) -> int:
    """Continue a run: seeds that are done stay, and the one that was going on goes on from its newest checkpoint."""
    directory = options.directory
    settings = Settings.from_config(written, str(directory / "config.json"))
    if (directory / "result.json").exists():
        print(f"{directory} is finished: {seed_names(settings.seeds)}; see result.json there")
        return 0
    check_device(settings.device)
    with RunLock(directory):
        warn_of_changes(written, versions(_packages()))
        with getting_ready(settings):
            from runs.continual.whole import Run

            run = Run(settings, directory)
        return _finish(run, directory, options.step)


def _finish(run: Any, directory: Path, step: int | None = None) -> int:
    from runs.continual.seeds import Stopped

    try:
        with stop_signals("epoch", silent=Console(stderr=True).is_terminal) as stop:
            run.finish(stop, step)
        return 0
    except Stopped as stopped:
        print(f"stopped at {stopped}; continue with `sparse-agents resume {directory}`", file=sys.stderr)
        return 130


@contextmanager
def getting_ready(settings: Settings) -> Iterator[None]:
    """Say at a terminal what takes seconds; a download speaks for itself."""
    console = Console(stderr=True)
    status = console.status(f"loading {settings.benchmark}") if console.is_terminal else nullcontext()
    with status, warnings.catch_warnings():
        # Of Avalanche's import; none of the strategies solves quadratic programs.
        warnings.filterwarnings("ignore", "no QP solver found")
        yield


def _config(settings: Settings) -> dict[str, Any]:
    """What `config.json` holds: settings, and with what and where they were run."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "settings": settings.as_dict(),
        **provenance(_packages()),
    }


def _packages() -> list[str]:
    return [name for name in (*PACKAGES, *_ALSO) if name not in _UNUSED]
