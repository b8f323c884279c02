"""PackNet: earlier tasks stay to the bit, all tasks get a share, and there is no class-IL."""

from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from learned import PARAMETERS, learn, made, mean

from continual.benchmarks import make_benchmark
from continual.scenario import ContinualBenchmark


@pytest.fixture(scope="module")
def digits() -> ContinualBenchmark:
    return make_benchmark("split-digits")


class Asks(SupervisedPlugin):
    """Scores all tasks after every epoch, between pruning and freezing too."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        for number in range(len(strategy.learned)):
            strategy.task_scores(torch.zeros(1, 1, 8, 8), number)
            self.asked += 1


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_packnet_keeps_earlier_tasks_to_the_bit(digits: ContinualBenchmark, optimizer: str) -> None:
    asks = Asks()
    learner = made(digits, "packnet", optimizer=optimizer, learning_rate=0.01, plugins=(asks,))
    x, _ = digits.tensors("test", 0)
    kept: list[tuple[torch.Tensor, ...]] = []
    for number, experience in enumerate(digits.train):
        learner.train(experience, [])
        for layer, (mask, weights, bias) in zip(learner.layers, kept, strict=bool(kept)):
            assert torch.equal(layer.wrappee.weight[mask], weights)
            assert torch.equal(layer.wrappee.bias, bias)
        if number == 0:
            scores = learner.task_scores(x, 0)
            masks = [layer.task_index == 0 for layer in learner.layers]
            kept = [
                (mask, layer.wrappee.weight[mask].detach().clone(), layer.wrappee.bias.detach().clone())
                for mask, layer in zip(masks, learner.layers, strict=True)
            ]
    assert torch.equal(learner.task_scores(x, 0), scores)
    assert asks.asked == 4 * (1 + 2 + 3 + 4 + 5)


def test_packnet_shares_the_weights_evenly(digits: ContinualBenchmark) -> None:
    learner, rows = learn(digits, "packnet", epochs=16)
    for layer in learner.layers:
        counts = torch.bincount(layer.task_index.flatten().long(), minlength=5)
        assert counts.sum() == layer.wrappee.weight.numel()
        assert counts.max() - counts.min() <= 5
    assert mean(rows[-1][1]) > 0.9
    assert all(value != value for value in rows[-1][0])  # class-IL: none
    costs = learner.costs()
    assert (costs.nnz, costs.neurons) == (PARAMETERS // 4 - 130, 120)
    assert costs.index_bytes == costs.nnz


def test_packnet_says_what_it_cannot(digits: ContinualBenchmark) -> None:
    with pytest.raises(NotImplementedError, match="known task only"):
        made(digits, "packnet").class_scores(torch.zeros(1, 64))
    with pytest.raises(ValueError, match="at least 2 epochs"):
        made(digits, "packnet", epochs=1)
