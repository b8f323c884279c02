"""Continual runs as small as they get, and what two equal ones have in common."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_runs import in_a_fork, main

TINY = {
    "strategy": "spacenet",
    "benchmark": "split-digits",
    "seeds": 2,
    "hidden": "60,60",
    "epochs": 3,
    "batch-size": 32,
    "learning-rate": 0.1,
    "checkpoint-every": 0,
}
"""2 seeds of 5 tasks of 3 epochs, each epoch's end a checkpoint; a second or two."""
EPOCHS, TASKS = 3, 5


def flags(out: Path, **changes: Any) -> list[str]:
    """Arguments of `continual` for a tiny run into `out`; a flag that is None is left out."""
    chosen = TINY | {name.replace("_", "-"): value for name, value in changes.items()}
    given = [[f"--{name}", str(value)] for name, value in chosen.items() if value is not None]
    return ["continual", "--out", str(out), *(word for pair in given for word in pair)]


def learn(out: Path, **changes: Any) -> Path:
    """A finished tiny run in `out`."""
    assert main(*flags(out, **changes)) == 0
    return out


def result_of(directory: Path) -> dict[str, Any]:
    """`result.json` without what may differ."""
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    assert result.pop("measured")
    return result


def steps_of(directory: Path, seed: int) -> list[int]:
    """Epochs at which a seed has checkpoints."""
    folder = directory / f"seed-{seed}" / "checkpoints"
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def in_a_fork_before(owner: Any, name: str, number: int, then: Callable[[], None], arguments: list[str]) -> int:
    """The exit code of the command in a copy of this process; at its n-th call of this, `then` comes first."""
    original, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            then()
        return original(*args, **kwargs)

    def work() -> None:
        setattr(owner, name, wrapped)
        os._exit(main(*arguments))

    return in_a_fork(work)


def kill() -> None:
    """As `kill -9` would."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    """As Ctrl-C would."""
    os.kill(os.getpid(), signal.SIGINT)
