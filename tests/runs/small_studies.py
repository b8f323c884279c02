"""Studies that nobody ran: plans and results with a truth that the test knows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runs.files import write_json
from runs.studies.plan import Arm, Study

ENV = "Hopper-v5"
EVALUATIONS = 12
MOVING = ("set", "rigl", "reset-in-place")


def arm(name: str, groups: Sequence[str], **settings: Any) -> Arm:
    """An arm named METHOD-SPARSITY."""
    method, _, sparsity = name.rpartition("-") if name != "dense" else ("dense", "", "0")
    large = float(sparsity) if method == "small-dense" else None
    sparse = 0.0 if "dense" in method else float(sparsity)
    given = {"sparsity": sparse, "hidden": [64, 64], "norm": "none", "preset": "td3", "steps": 1200, **settings}
    of = f"set-{sparsity}" if method == "final-topology" else None
    return Arm(name, method, {group: given for group in groups}, of=of, as_large_as=large)


def result(method: str, level: float, seed: int) -> dict[str, Any]:
    """A run whose every evaluation is `level`, so that this is each of its endpoints, too."""
    steps = [100 * number for number in range(1, EVALUATIONS + 1)]
    sparse = "dense" not in method
    layer = {"fan_in": [[2, 4], [3, 4]], "fan_out": [[2, 4], [3, 4]]}
    return {
        "format": "sparse-agents-result", "version": 1, "seed": seed, "steps": 1200, "topology": method,
        "curve": [[step, level] for step in steps],
        "eval": {"mean_return": level, "std_return": 0.0, "episodes": 10},
        "final": {"mean_return": level, "std_return": 0.0, "episodes": 5, "seed": 10_000, "returns": [level] * 5},
        "dormant": [[step, {"actor": 0.25, "critic": 0.5}] for step in steps],
        "topology_distance": [
            [step, {"actor": step / 2400, "critic.qf0": 0.2, "critic.qf1": 0.4}, {"actor": 0.1, "critic.qf0": 0.1}]
            for step in steps
        ] if method in MOVING else [],
        "gradient_flow": [[step, {"actor.mu.0": 2.0, "critic.qf0.0": 3.0, "critic.qf0.2": 1.0}] for step in steps],
        "small_world": {"actor": {"sigma": 1.5, "clustering": 0.3, "path_length": 2.0}, "critic.qf0": {"sigma": None}}
        if sparse else {},
        "topology_course": [[500, 0.3, 0.2], [1000, 0.3, 0.4]] if method in MOVING else [],
        "degrees": {f"{network}.{number}": layer for network in ("actor.mu", "critic.qf0") for number in (0, 2)}
        if sparse else {},
        "input_connections": {"actor": [1, 2, 3], "critic.qf0": [4, 3, 2, 1]},
        "nnz_total": 100 if sparse else 1000, "train_flops": 10**9, "bytes": {"total": 5000},
        "measured": {
            "seconds": 24.0, "curve_seconds": [[step, step / 50] for step in steps],
            "machine": {"processor": "abacus", "cores": 2, "gpu": None, "host": "desk"}, "directory": "/home/me/run",
        },
    }  # fmt: skip


def write_study(
    directory: Path, levels: Mapping[str, Sequence[float]], groups: Sequence[str] = (ENV,), **settings: Any
) -> Path:
    """A finished study of agents: for each arm one run of each level, seeds 0, 1, 2, …, the same in every group."""
    seeds = range(max(len(each) for each in levels.values()))
    arms = [arm(name, groups, **settings) for name in levels]
    directory.mkdir(parents=True, exist_ok=True)
    Study("agents", [*groups], arms, [*seeds], [["sparse-agents", "compare", "--out", "/home/me/study"]]).write(
        directory, ""
    )
    for group in groups:
        for name, each in levels.items():
            for seed, level in enumerate(each):
                folder = directory / group / name / f"seed-{seed}"
                folder.mkdir(parents=True)
                write_json(folder / "result.json", result(arm(name, groups).method, level, seed))
    return directory


def spread(mean: float, deviation: float, runs: int) -> list[float]:
    """Levels with exactly this mean and (ddof=1) deviation."""
    values = np.arange(runs, dtype=float)
    values = (values - values.mean()) / values.std(ddof=1)
    return [float(mean + deviation * value) for value in values]


def _summary(value: float | None) -> dict[str, Any]:
    return {"mean": value, "ci95": None, "per_seed": [value]}


def learner_result(accuracy: float, forgetting: float, seed: int) -> dict[str, Any]:
    """A learner of three tasks, as accurate on each."""
    rows = [[accuracy] * 3 for _ in range(3)]
    scores = {
        "acc": _summary(accuracy), "bwt": _summary(-forgetting), "forgetting": _summary(forgetting),
        "fwt": _summary(None), "la": _summary(accuracy),
    }  # fmt: skip
    return {
        "format": "sparse-agents-continual-result", "version": 1, "scenario": "class-il", "joint": False,
        "benchmark": "split-digits", "benchmark_scenario": "class-il", "seeds": [seed],
        "task_classes": [[0, 1], [2, 3], [4, 5]], "class_il": scores, "task_il": scores, **scores,
        "R": {"class_il": [rows], "task_il": [rows]}, "final": {"class_il": [rows[-1]], "task_il": [rows[-1]]},
        "nnz": [[10, 20, 30]], "bytes": [[{"total": 100}] * 3], "measured": {"seconds": [1.0], "machine": {}},
    }  # fmt: skip


def write_learners(directory: Path, accuracies: Mapping[str, Sequence[float]]) -> Path:
    """A finished study of continual learners."""
    group, seeds = "split-digits", range(max(len(each) for each in accuracies.values()))
    arms = [Arm(name, name, {group: {"strategy": name, "benchmark": group, "tasks": None}}) for name in accuracies]
    directory.mkdir(parents=True)
    Study("continual", [group], arms, [*seeds], [["sparse-agents", "compare"]]).write(directory, "")
    for name, each in accuracies.items():
        for seed, accuracy in enumerate(each):
            folder = directory / group / name / f"seed-{seed}"
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(learner_result(accuracy, 0.1, seed)))
    return directory
