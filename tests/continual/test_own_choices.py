"""What makes each of our learners the method it is: what it reads, draws, adds, scales and counts."""

from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from learned import made
from synthetic import blobs

from continual.benchmarks import make_benchmark
from continual.catalogue import build_strategy
from continual.evaluation import accuracy_rows
from continual.learner import Setup
from continual.scenario import ContinualBenchmark
from continual.tensors import samples_of
from sparse_core import sparse_layers


@pytest.fixture(scope="module")
def digits() -> ContinualBenchmark:
    return make_benchmark("split-digits")


def learned(
    benchmark: ContinualBenchmark, name: str, *plugins: SupervisedPlugin, tasks: int = 2, **choices: Any
) -> Any:
    """The strategy after so many tasks, as plugins have seen it."""
    learner = made(benchmark, name, plugins=plugins, **{"seed": 1, "epochs": 2, "batch_size": 16} | choices)
    for experience in list(benchmark.train)[:tasks]:
        learner.train(experience, [])
    return learner


# SpaceNet


def test_the_rate_runs_its_course_anew_in_each_task() -> None:
    class Rates(SupervisedPlugin):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[float] = []

        def after_update(self, strategy: Any, **_: Any) -> None:
            self.seen.append(strategy.optimizer.param_groups[0]["lr"])

    rates = Rates()
    learned(blobs(2), "spacenet", rates, options={"rate_schedule": "linear"})  # 64 samples: four steps an epoch
    assert rates.seen == pytest.approx([0.1 * (1 - step / 8) for step in range(8)] * 2)


def test_a_finished_task_is_calibrated_by_rows(digits: ContinualBenchmark) -> None:
    plain, scaled = (
        learned(digits, "spacenet", tasks=1, options={"calibrate": each}).network.chain["layers.2"]
        for each in (False, True)
    )
    ratio, row = scaled.frozen_values / plain.frozen_values, plain.frozen_positions // plain.shape[1]
    for unit in (0, 1):
        own = ratio[row == unit]
        assert own.max() - own.min() < 1e-4 * own.mean()
        assert abs(own.mean() - 1) > 1e-3


def test_connections_change_every_period_and_begin_within_hes_bound(digits: ContinualBenchmark) -> None:
    class Look(SupervisedPlugin):
        looks = 0

        def before_training_exp(self, strategy: Any, **_: Any) -> None:
            layer = strategy.network.chain["layers.0"]
            bound = (6 / layer.topology.fan_in[layer.positions // layer.shape[1]]).sqrt()
            assert 0.9 < (layer.values.detach().abs() / bound).max() <= 1

        def after_training_iteration(self, strategy: Any, **_: Any) -> None:
            steps, total = strategy.sparsifier.steps, len(strategy.dataloader) * strategy.train_epochs
            assert strategy.sparsifier.changes == min(steps, int(0.5 * total)) // 5
            self.looks += 1

    look, options = Look(), {"period": 5, "stop": 0.5, "schedule": "constant", "capture_batches": 2}
    learned(digits, "spacenet", look, tasks=1, isolation="strict", options=options)
    assert look.looks > 20


def test_costs_of_convolutions_by_hand(digits: ContinualBenchmark) -> None:
    learner = learned(digits, "spacenet", channels=(16, 8), hidden=(20,), epochs=1)
    places = {"layers.0": 64, "layers.1": 16, "layers.2": 1, "layers.3": 1}  # 8×8 and, pooled, 4×4 pixels
    assert learner.network.places == places
    values = [layer.frozen_values.numel() for layer in learner.network.chain.values()]
    costs, rows = learner.costs(), learner.ledger.table()
    # A connection of a convolution is a kernel of nine weights.
    assert costs.nnz == sum(values) == sum(row.connections * taps for row, taps in zip(rows, (9, 9, 1, 1), strict=True))
    assert costs.flops == 2 * sum(count * each for count, each in zip(values, places.values(), strict=True))


# Its relatives


def test_rehearsal_has_a_batch_for_each_task_and_is_jittered(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr("continual.rehearsal.jittered", lambda x, draws: seen.append(len(x)) or x)
    learned(blobs(3), "spacenet-rehearsal", tasks=3, epochs=1, batch_size=64)
    assert seen == [64, 128, 192]
    seen.clear()
    learned(blobs(2, shared_classes=True), "spacenet-rehearsal", epochs=1, batch_size=64)
    assert seen == []  # moved by a pixel, permuted ones would be others


def test_outliers_are_of_no_class_and_connections_lie_where_images_vary(digits: ContinualBenchmark) -> None:
    class Look(SupervisedPlugin):
        def before_training_exp(self, strategy: Any, **_: Any) -> None:
            still = samples_of(strategy.experience.dataset)[0].flatten(1).std(0) < 1e-6
            assert still.sum() > 5  # of 64 pixels
            share = still[strategy.grants["layers.0"].positions % 64].float().mean()
            assert share < 0.2 * still.float().mean()

        def before_backward(self, strategy: Any, **_: Any) -> None:
            count, wanted = len(strategy.mb_x), strategy._wanted
            assert len(wanted) == len(strategy._logits) == count + round(1.5 * count)
            assert (wanted[:count] >= 0).all()
            assert (wanted[count:] == -1).all()

    learner = learned(digits, "spacenet-ood", Look(), epochs=8, learning_rate=0.01)
    _, (first, second) = accuracy_rows(learner, [digits.tensors("test", task) for task in range(2)])
    assert min(first, second) > 0.85


def test_features_of_slda_are_patches_of_unit_spread(digits: ContinualBenchmark) -> None:
    learner = build_strategy("spacenet-slda", Setup(digits, hidden=(60, 60), seed=1))
    learner.train(next(iter(digits.train)), [])
    first = next(iter(learner.network.chain.values()))
    row, column = first.frozen_positions // 64, first.frozen_positions % 64
    for neuron in range(first.shape[0]):
        places = column[row == neuron]
        assert len(places) == 15  # 60 % of 5 × 5
        assert max(axis.max() - axis.min() for axis in (places // 8, places % 8)) < 5
    before = first(digits.tensors("train", 0)[0].flatten(1)).detach()
    torch.testing.assert_close(before.mean(0), torch.zeros(first.shape[0]), atol=1e-3, rtol=0)
    spread = before.std(0)
    assert spread.max() < 1.001
    assert (spread > 0.99).float().mean() > 0.8  # of the others the images say nothing


def test_afaf_reads_what_its_images_excite(digits: ContinualBenchmark) -> None:
    class Look(SupervisedPlugin):
        looks = 0

        def before_training_exp(self, strategy: Any, **_: Any) -> None:
            if len(strategy.tasks) < 2:
                return
            names = strategy.ledger.names
            x, y = samples_of(strategy.experience.dataset)
            with torch.no_grad():
                excited = next(iter(strategy.network.activations(x)))
            count = strategy.grants[names[0]].outputs.numel()
            assert count == 0  # the first layer gets nothing new from the third task on
            chosen = {*strategy.grants[names[1]].inputs.tolist()}
            for label in strategy._current.classes:
                order = excited[y == label].mean(0).argsort(descending=True).tolist()
                assert chosen >= {*order[:3]}  # the most excited ones of each class
            assert len(chosen) <= 2 * 4
            assert strategy.grants[names[2]].inputs.tolist() == strategy.grants[names[1]].outputs.tolist()
            self.looks += 1

    look = Look()
    learned(digits, "afaf", look, tasks=4)
    assert look.looks == 2


def test_sparse_finetune_counts_the_neurons_of_all_hidden_layers(digits: ContinualBenchmark) -> None:
    learner = learned(digits, "sparse-finetune", tasks=1, epochs=1, learning_rate=0.02)
    first, second = sparse_layers(learner.model).values()
    used = [int((each.topology.fan_in > 0).sum()) for each in (first, second)]
    assert learner.costs().neurons == sum(used) > 60  # two layers of 60


@pytest.mark.parametrize("name", ["naive", "sparse-finetune", "spacenet"])
def test_the_optimizer_begins_anew_with_each_task(digits: ContinualBenchmark, name: str) -> None:
    class Fresh(SupervisedPlugin):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

        def before_training_exp(self, strategy: Any, **_: Any) -> None:
            self.seen.append(len(strategy.optimizer.state))

        def after_update(self, strategy: Any, **_: Any) -> None:
            assert len(strategy.optimizer.state) > 0

    fresh = Fresh()
    learned(digits, name, fresh, optimizer="momentum", epochs=1, learning_rate=0.02)
    assert fresh.seen == [0, 0]
