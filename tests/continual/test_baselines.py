"""The dense baselines: that they learn, draw from their seed alone, say their bytes, and do what their names say."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from learned import IMAGE, PARAMETERS, learn, made, mean, quick
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from continual.benchmarks import make_benchmark
from continual.evaluation import accuracy_rows
from continual.learner import Setup
from continual.scenario import ContinualBenchmark, build, wrap
from continual.strategies.naive_small import narrowed
from continual.tensors import ImageTask

TASK_AFTER_TASK = ("naive", "naive-small", "ewc", "si", "lwf", "mas", "replay", "gdumb", "packnet")


@pytest.fixture(scope="module")
def digits() -> ContinualBenchmark:
    return make_benchmark("split-digits")


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", TASK_AFTER_TASK)
@pytest.mark.parametrize("head", [pytest.param("full", marks=pytest.mark.slow), "current"])
def test_learns_the_same_from_the_same_seed(digits: ContinualBenchmark, name: str, head: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, rows = learn(digits, name, head=head, seed=1, **quick(name))
    torch.rand(3)  # the global generator is elsewhere now
    _, again = learn(digits, name, head=head, seed=1, **quick(name))
    other, _ = learn(digits, name, tasks=1, head=head, seed=2, **quick(name))
    assert str(again) == str(rows)  # as text, where NaN equals NaN
    weights, others = (dict(learner.model.named_parameters()) for learner in (first, other))
    assert all(not torch.equal(weights[key], others[key]) for key in weights)
    assert rows[0][1][0] > 0.9
    torch.set_rng_state(before)


@pytest.mark.parametrize("name", [*TASK_AFTER_TASK, "joint"])
def test_the_global_generator_is_left_alone(digits: ContinualBenchmark, name: str) -> None:
    before = torch.get_rng_state()
    made(digits, name, **quick(name)).train(digits.train[0], [])
    assert torch.equal(torch.get_rng_state(), before)


def test_fine_tuning_forgets_and_joint_training_does_not(digits: ContinualBenchmark) -> None:
    _, full = learn(digits, "naive", epochs=16)
    _, current = learn(digits, "naive", head="current", epochs=16)
    joint = made(digits, "joint", epochs=32)
    joint.train_all(digits.train)
    row, within = accuracy_rows(joint, [digits.tensors("test", task) for task in range(5)])
    assert full[0][0][0] > 0.9  # the first task, when it has just been learned
    assert mean(full[-1][0]) < 0.3
    assert mean(current[-1][0]) > mean(full[-1][0]) + 0.1
    assert mean(row) > 0.9
    assert mean(within) > 0.97


def test_rehearsal_forgets_less(digits: ContinualBenchmark) -> None:
    _, rows = learn(digits, "replay", epochs=16)
    assert mean(rows[-1][0]) > 0.6
    _, rows = learn(digits, "gdumb", epochs=32)
    assert mean(rows[-1][0]) > 0.8


def test_scores_say_what_cannot_be(digits: ContinualBenchmark) -> None:
    learner, _ = learn(digits, "naive", tasks=2)
    x, _ = digits.tensors("test", 0)
    assert torch.isneginf(learner.class_scores(x)[:, 4:]).all()
    assert torch.isfinite(learner.class_scores(x)[:, :4]).all()
    finite = torch.isfinite(learner.task_scores(x, 1))
    assert finite[:, 2:4].all()
    assert finite.sum() == 2 * len(x)


def test_avalanche_evaluates_too(digits: ContinualBenchmark) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has no loggers
        evaluator = EvaluationPlugin(accuracy_metrics(stream=True))
    learner = made(digits, "naive", head="current", evaluator=evaluator)
    learner.train(digits.train[0], [])
    (accuracy,) = [value for key, value in learner.eval(digits.test).items() if "test" in key]
    # The first task of five is known, and there may be chance hits on others.
    assert 0.15 < accuracy < 0.4


# ---- costs and choices


@pytest.mark.parametrize(
    ("name", "copies"), [("naive", 0), ("ewc", 4), ("si", 3), ("lwf", 1), ("mas", 2), ("replay", 0), ("gdumb", 1)]
)
def test_statistics_are_copies_of_the_parameters(digits: ContinualBenchmark, name: str, copies: int) -> None:
    learner, _ = learn(digits, name, tasks=2, **quick(name))
    costs = learner.costs()
    assert costs.statistic_bytes == copies * PARAMETERS
    assert costs.parameter_bytes == PARAMETERS
    assert (costs.nnz, costs.neurons, costs.flops) == (PARAMETERS // 4 - 130, 120, 2 * (PARAMETERS // 4 - 130))


def test_small_network_has_the_connections_of_the_sparse_one() -> None:
    pairs = tuple((label, label + 1) for label in range(0, 10, 2))
    setup = Setup(ContinualBenchmark("mnist", "", None, (1, 28, 28), 10, pairs, "class-il"))
    first, second = narrowed(setup)
    assert first == second
    assert 784 * first + first * second + 10 * second == pytest.approx(5 * (10_035 + 1_638 + 80), rel=0.01)


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("naive", {"head": "zeroed"}, "`head` must be one of full, current, got 'zeroed'"),
        ("naive", {"memory": 10}, "no choice of 'memory'; leave it out"),
        ("ewc", {"isolation": "strict"}, "no choice of 'isolation'"),
        ("ewc", {"options": {"lambda": 3}}, "unknown option 'lambda'; this strategy's options: 'ewc_lambda'"),
        ("naive", {"options": {"alpha": 3}}, "this strategy's options: none"),
        ("replay", {"memory": 0}, "at least 1 image a class, got 0"),
        ("si", {"optimizer": "lion"}, "`optimizer` must be one of"),
        ("ncm", {"epochs": 2}, "no choice of 'epochs'"),
    ],
)
def test_choices_a_strategy_has_not(
    digits: ContinualBenchmark, name: str, choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made(digits, name, **choices)


# ---- other benchmarks


def permuted_digits() -> ContinualBenchmark:
    pixels = torch.from_numpy(load_digits().images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(load_digits().target)
    gain, shift = torch.tensor([1 / 16]), torch.tensor([0.0])

    def tasks(rows: torch.Tensor) -> Iterator[ImageTask]:
        for seed in range(2):
            moved = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
            yield ImageTask(pixels, labels, rows, gain, shift, moved)

    streams = {"train": [*tasks(torch.arange(1500))], "test": [*tasks(torch.arange(1500, 1797))]}
    return build("permuted-digits", "", streams, (tuple(range(10)),) * 2, 10, "domain-il")


@pytest.mark.parametrize("name", ["naive", "replay", "gdumb", "lwf"])
def test_tasks_that_share_their_classes(name: str) -> None:
    benchmark = permuted_digits()
    learner, rows = learn(benchmark, name, tasks=2, head="current", **quick(name))
    assert rows[-1][0] == rows[-1][1]
    assert learner.costs().memory_bytes == (500 * IMAGE if name in ("replay", "gdumb") else 0)


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", TASK_AFTER_TASK)
def test_data_that_is_not_ours_goes_through_avalanches_loader(name: str) -> None:
    from avalanche.benchmarks import nc_benchmark

    generator = torch.Generator().manual_seed(0)

    def samples(count: int) -> "_Labelled":
        y = torch.arange(count) % 4
        return _Labelled(torch.eye(4)[y] + torch.rand(count, 4, generator=generator) / 4, y)

    # Few samples in small batches have large gradients: a penalty made for 10,000 of them would blow up.
    weak = {"ewc": "ewc_lambda", "mas": "lambda_reg"}
    choices: dict[str, Any] = {"head": "current", "options": {weak[name]: 0.1} if name in weak else {}}
    streams = nc_benchmark(samples(128), samples(32), 2, task_labels=False, fixed_class_order=[0, 1, 2, 3])
    learner, rows = learn(wrap(streams), name, tasks=2, batch_size=8, epochs=8, learning_rate=0.2, **choices)
    assert rows[-1][1][1] > 0.9
    # All 32 images of each class: four floats and a label.
    assert learner.costs().memory_bytes == (128 * (16 + 8) if name in ("replay", "gdumb") else 0)


class _Labelled(TensorDataset):
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        super().__init__(x, y)
        self.targets = y.tolist()

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.tensors[0][index], self.targets[index]
