"""What every run directory asks for: a place that is free, unchanged versions, and an end when it is told to stop."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runs.failure import UserError

# What a process that was killed before it wrote its config leaves behind.
_LEFTOVER = re.compile(r"lock|topology\.safetensors|\.(config\.json|topology\.safetensors)\.\d+\.tmp")


def refuse_existing(directory: Path) -> None:
    """Raise unless `directory` is free for a new run."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; choose another --out")
    if directory.is_dir() and any(not _LEFTOVER.fullmatch(path.name) for path in directory.iterdir()):
        is_run = (directory / "config.json").exists()
        instead = f", or continue the run there with `sparse-agents resume {directory}`" if is_run else ""
        raise UserError(f"{directory} is not empty; choose another --out{instead}")


def warn_of_changes(written: dict[str, Any], now: dict[str, str]) -> None:
    """Say which of the versions `now` are not those in the config that a run began with."""
    then = written.get("versions")
    then = then if isinstance(then, dict) else {}
    changed = [f"{name} {then.get(name)} → {now[name]}" for name in now if then.get(name) != now[name]]
    if changed:
        print(
            f"sparse-agents: versions have changed ({', '.join(changed)}): the run may not go on bit for bit",
            file=sys.stderr,
        )


@contextmanager
def stop_signals(after: str, *, silent: bool = False) -> Iterator[list[int]]:
    """Within this block the first Ctrl-C or SIGTERM fills the list; the second one ends at once.

    `after` is what is still finished, for the message; `silent` where something else shows it.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        if not silent:
            # Not `print`: the signal may have come in the middle of one.
            os.write(2, f"\nstopping after this {after} (again: at once, without saving)\n".encode())

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
