"""Stopped anywhere at the end of an epoch, packed, unpacked and continued: to the bit what it would have been."""

import json
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin

from continual.benchmarks import make_benchmark
from continual.catalogue import build_strategy, strategy_names
from continual.learner import Setup
from continual.scenario import ContinualBenchmark
from runs.snapshot import pack, unpack

pytestmark = pytest.mark.end_to_end

TASKS, EPOCHS = 3, 2


@pytest.fixture(scope="module")
def digits() -> ContinualBenchmark:
    return make_benchmark("split-digits")


class Stopped(Exception):
    pass


class Stop(SupervisedPlugin):
    """Raises at the end of one epoch, or of one task, with what had been packed then."""

    def __init__(self, task: int, epoch: int | None) -> None:
        super().__init__()
        self.task, self.epoch = task, epoch
        self.packed: Any = None

    def _stop(self, strategy: Any) -> None:
        tensors, rest = pack(strategy.state())
        self.packed = {key: tensor.clone() for key, tensor in tensors.items()}, json.dumps(rest)
        raise Stopped

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.clock.train_exp_counter == self.task and strategy.epochs_done == self.epoch:
            self._stop(strategy)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.clock.train_exp_counter == self.task and self.epoch is None:
            self._stop(strategy)


def made(benchmark: ContinualBenchmark, name: str, choices: dict[str, Any], *plugins: Any) -> Any:
    given = {"hidden": (30, 30), "seed": 4, **choices}
    if name != "spacenet-slda":
        given |= {"epochs": EPOCHS, "batch_size": 48}
    return build_strategy(name, Setup(benchmark, plugins=plugins, **given))


def resumable() -> list[str]:
    # What the class of a learner says, so that a new one is looked at without being named here.
    benchmark = make_benchmark("split-digits")
    found = []
    for name in strategy_names():
        learner = build_strategy(name, Setup(benchmark, hidden=(8, 8)))
        if all(hasattr(learner, wanted) for wanted in ("state", "load_state", "epochs_done")):
            found.append(name)
    return found


CASES = [
    *((name, {}) for name in resumable()),
    ("spacenet", {"isolation": "strict"}),
    ("spacenet", {"isolation": "strict", "norm": "batch", "options": {"reads": "earlier"}}),
    ("spacenet", {"norm": "batch", "optimizer": "momentum", "learning_rate": 0.05}),
    ("spacenet", {"channels": (16, 8), "hidden": (20,), "optimizer": "adamw", "learning_rate": 0.01}),
    ("sparse-finetune", {"optimizer": "momentum", "learning_rate": 0.05}),
    ("sparse-finetune", {"optimizer": "adam", "learning_rate": 0.01, "options": {"topology": "rigl"}}),
    ("sparse-finetune", {"optimizer": "adam", "learning_rate": 0.01, "options": {"topology": "trainable-threshold"}}),
]


def test_whoever_can_resume_is_tested() -> None:
    names = {name for name, _ in CASES}
    assert names >= {
        "afaf", "spacenet", "spacenet-2021", "spacenet-ood", "spacenet-rehearsal", "spacenet-slda", "spacenet-static",
        "sparse-finetune",
    }  # fmt: skip


# One of each kind of store; the others are slow ones.
EACH = {"afaf", "spacenet-2021", "spacenet-rehearsal", "spacenet-slda", "sparse-finetune"}


def is_slow(name: str, choices: dict[str, Any]) -> bool:
    return choices != {"isolation": "strict"} if choices else name not in EACH


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        pytest.param(name, choices, id=f"{name}-{index}", marks=pytest.mark.slow if is_slow(name, choices) else ())
        for index, (name, choices) in enumerate(CASES)
    ],
)
def test_as_if_it_had_never_stopped(digits: ContinualBenchmark, name: str, choices: dict[str, Any]) -> None:
    x = torch.cat([digits.tensors("test", task)[0] for task in range(TASKS)])
    experiences = list(digits.train)[:TASKS]
    whole = made(digits, name, choices)
    for experience in experiences:
        whole.train(experience, [])
    expected = [whole.class_scores(x), *(whole.task_scores(x, task) for task in range(TASKS))]
    epochs = [1] if name == "spacenet-slda" else [*range(1, EPOCHS + 1)]
    for task, epoch in [(task, epoch) for task in range(TASKS) for epoch in [*epochs, None]]:
        stop = Stop(task, epoch)
        with pytest.raises(Stopped):
            made(digits, name, choices, stop).train(experiences, [])
        tensors, rest = stop.packed
        torch.manual_seed(task)  # nothing may come from the global generator
        again = made(digits, name, choices)
        again.load_state(unpack(json.loads(rest), tensors))
        if task == 1:  # packed once more before it goes on
            tensors, plain = pack(again.state())
            again = made(digits, name, choices)
            again.load_state(unpack(json.loads(json.dumps(plain)), tensors))
        assert again.epochs_done == (epochs[-1] if epoch is None else epoch)
        for experience in experiences[task + (epoch is None) :]:
            again.train(experience, [])
        found = [again.class_scores(x), *(again.task_scores(x, each) for each in range(TASKS))]
        for one, two in zip(found, expected, strict=True):
            assert torch.equal(one, two), (task, epoch)
        assert again.costs() == whole.costs()
