"""Whole runs as small as they get, other processes that do them, and what two equal ones have in common."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import runs.command
from runs.checkpoints import CheckpointStore

ROOT = Path(__file__).parents[2]
STEPS = 900
TINY = {
    "env": "Hopper-v5",  # which falls soon: an episode of HalfCheetah takes as long as all the rest
    "sparsity": 0.6,
    "topology": "set",
    "steps": STEPS,
    "seed": 0,
    "hidden": "16,16",
    "batch-size": 8,
    "learning-starts": 100,
    "buffer-size": 700,  # so that the ring goes round
    "period": 50,
    "eval-every": 400,
    "eval-episodes": 1,
    "checkpoint-every": 300,
    "threads": 1,
    "device": "cpu",
}
"""800 updates, 16 topology changes, three checkpoints of which two stay, about two seconds."""

# The child starts where the test stands; a fresh interpreter would take seconds for torch.
FORK = multiprocessing.get_context("fork")


def flags(out: Path, algo: str = "td3", **changes: Any) -> list[str]:
    """Arguments of `train` for a tiny run into `out`; a flag that is None is left out."""
    chosen = TINY | {name.replace("_", "-"): value for name, value in changes.items()}
    given = [[f"--{name}", str(value)] for name, value in chosen.items() if value is not None]
    return ["train", algo, "--out", str(out), *(word for pair in given for word in pair)]


def main(*arguments: str | Path) -> int:
    """The exit code of the command, run in this process."""
    try:
        return runs.command.main([str(argument) for argument in arguments])
    except SystemExit as exit:  # the parser's own
        return int(exit.code or 0)


def train(out: Path, **changes: Any) -> Path:
    """A finished tiny run in `out`."""
    assert main(*flags(out, **changes)) == 0
    return out


class Command(subprocess.Popen[str]):
    """A process that does not outlive a test that fails."""

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, *error)


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return Command(
        [sys.executable, "-m", "runs.command", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Return as soon as `there()`; the process must not end before."""
    deadline = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def checkpoint(directory: Path, step: int) -> Path:
    """Where the checkpoint of `step` is, once it is there."""
    return directory / "checkpoints" / f"step-{step:012d}"


def in_a_fork(work: Callable[[], None]) -> int:
    """The exit code of a copy of this process that does `work`; -9 if it was killed."""
    process = FORK.Process(target=work)
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError("it hangs")
    return process.exitcode


def result_of(directory: Path) -> dict[str, Any]:
    """`result.json` without what may differ."""
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    del result["measured"]
    return result


def metrics_of(directory: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without what may differ."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "measured"} for line in lines]


class Rows:
    """A replay buffer that only takes in."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.added = capacity, 0
        self.taken: list[dict[str, np.ndarray[Any, Any]]] = []

    def rows(self, start: int, stop: int) -> dict[str, np.ndarray[Any, Any]]:
        raise NotImplementedError

    def restore(self, start: int, rows: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self.taken.append(dict(rows))

    def finish_restore(self, added: int) -> None:
        self.added = added

    def bits(self) -> tuple[int, dict[str, bytes]]:
        names = self.taken[0]
        return self.added, {name: b"".join(part[name].tobytes() for part in self.taken) for name in names}


def state_of(directory: Path, step: int | None = None) -> dict[str, Any]:
    """Everything in a checkpoint, by default the last, in bits, but for times."""
    stored = CheckpointStore(directory / "checkpoints").load(step)
    state = json.loads(json.dumps(stored.state))
    for name in (
        "seconds",
        "evaluation_seconds",
        "metrics_offset",
        "curve_seconds",
        "processor_seconds",
        "curve_processor_seconds",
    ):  # seconds have more or fewer digits
        del state["journal"][name]
    del state["agent"]["monitor"]["age"], state["agent"]["monitor"]["episode_times"]
    for info in state["agent"]["episode_infos"]:
        del info["t"]
    rows = Rows(json.loads((directory / "config.json").read_text())["settings"]["buffer_size"])
    stored.restore_replay(rows)
    tensors = {
        name: (str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes())
        for name, tensor in stored.tensors.items()
    }
    return {"step": stored.step, "state": state, "tensors": tensors, "replay": rows.bits()}


def assert_equal_runs(one: Path, other: Path) -> None:
    """Both runs came to the same end on the same way, bit for bit."""
    assert result_of(one) == result_of(other)
    assert metrics_of(one) == metrics_of(other)
    first, second = state_of(one), state_of(other)
    assert first["tensors"].keys() == second["tensors"].keys()
    assert [name for name in first["tensors"] if first["tensors"][name] != second["tensors"][name]] == []
    assert first == second
