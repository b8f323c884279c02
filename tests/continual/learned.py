"""Learners after some tasks of a small benchmark, for the tests of several of them."""

from typing import Any

from continual.catalogue import build_strategy
from continual.evaluation import accuracy_rows
from continual.learner import Setup
from continual.scenario import ContinualBenchmark

PARAMETERS = 4 * (64 * 60 + 60 + 60 * 60 + 60 + 60 * 10 + 10)  # bytes of the network that digits are learned with
IMAGE = 64 + 8  # bytes of a stored digit and its label


def made(benchmark: ContinualBenchmark, name: str, **choices: Any) -> Any:
    defaults: dict[str, Any] = {"hidden": (60, 60), "learning_rate": 0.1, "epochs": 4, "batch_size": 128}
    return build_strategy(name, Setup(benchmark, **{**defaults, **choices}))


def learn(benchmark: ContinualBenchmark, name: str, tasks: int = 5, **choices: Any) -> tuple[Any, list[list[float]]]:
    """The learner after some tasks, and its accuracies after each: with the task not known, and with it known."""
    learner, rows = made(benchmark, name, **choices), []
    test = [benchmark.tensors("test", task) for task in range(len(benchmark.task_classes))]
    for experience in list(benchmark.train)[:tasks]:
        learner.train(experience, [])
        rows.append([*accuracy_rows(learner, test)])
    return learner, rows


def mean(row: list[float]) -> float:
    return sum(row) / len(row)


def quick(name: str) -> dict[str, Any]:
    return {"epochs": 8} if name in ("gdumb", "naive-small") else {}
