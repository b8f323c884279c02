"""What each of Avalanche's methods needs to be that method: penalties that hold, memories that hold what they say."""

from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from learned import IMAGE, learn, made, quick

from continual.benchmarks import make_benchmark
from continual.methods import EWC, MAS, SI, Beside, Replay
from continual.scenario import ContinualBenchmark
from continual.tensors import TensorBatches


@pytest.fixture(scope="module")
def digits() -> ContinualBenchmark:
    return make_benchmark("split-digits")


@pytest.mark.parametrize(
    ("name", "option"), [("ewc", "ewc_lambda"), ("si", "si_lambda"), ("mas", "lambda_reg"), ("lwf", "alpha")]
)
def test_a_penalty_of_nothing_is_fine_tuning_and_another_is_not(
    digits: ContinualBenchmark, name: str, option: str
) -> None:
    plain, _ = learn(digits, "naive", tasks=2, head="current")
    weights = dict(plain.model.named_parameters())
    for strength, alike in ((0.0, True), (1.0, False)):
        learner, _ = learn(digits, name, tasks=2, head="current", options={option: strength})
        same = [torch.equal(weights[key], value) for key, value in learner.model.named_parameters()]
        assert all(same) if alike else not any(same)


def test_a_penalty_too_strong_is_said(digits: ContinualBenchmark, caplog: pytest.LogCaptureFixture) -> None:
    learn(digits, "ewc", tasks=1, options={"ewc_lambda": 1e12})
    assert not caplog.records
    learn(digits, "ewc", tasks=2, options={"ewc_lambda": 1e12})
    assert "no longer finite after classes [2, 3]" in caplog.text


def test_fisher_information_is_of_the_head_that_is_trained(digits: ContinualBenchmark) -> None:
    for head, elsewhere in (("current", False), ("full", True)):
        learner, _ = learn(digits, "ewc", tasks=1, head=head)
        (method,) = [plugin for plugin in learner.plugins if isinstance(plugin, EWC)]
        (*_, last) = [each.data for name, each in method.importances[0].items() if name.endswith("weight")]
        assert (last[:2] > 0).any()
        assert bool((last[2:] > 0).any()) == elsewhere


def test_the_path_of_si_is_seen_on_the_cpu(digits: ContinualBenchmark) -> None:
    learner, _ = learn(digits, "si", tasks=1)
    (method,) = [plugin for plugin in learner.plugins if isinstance(plugin, SI)]
    _, importance = method.ewc_data
    assert all((each.data >= 0).all() and (each.data > 0).any() for each in importance.values())
    own = {parameter.data_ptr() for parameter in learner.model.parameters()}
    learner.train(digits.train[1], [])
    assert not own & {each.data.data_ptr() for each in method.ewc_data[0].values()}


def test_mas_goes_on_at_a_loss_of_zero(digits: ContinualBenchmark) -> None:
    learner, _ = learn(digits, "mas", tasks=1)
    (method,) = [plugin for plugin in learner.plugins if isinstance(plugin, MAS)]
    learner.clock.train_exp_counter, learner.loss = 1, torch.zeros(1)
    method.before_backward(learner)
    assert float(learner.loss.detach()) < 1e-6


# ---- memory


def test_gdumb_passes_over_its_memory_more_often(digits: ContinualBenchmark) -> None:
    assert made(digits, "gdumb", epochs=None).train_epochs == 64
    assert made(digits, "gdumb", epochs=3).train_epochs == 3
    assert made(digits, "naive", epochs=None).train_epochs == digits.epochs


@pytest.mark.parametrize("name", ["replay", "gdumb"])
def test_memory_holds_so_many_of_each_class(digits: ContinualBenchmark, name: str) -> None:
    for tasks in (1, 3):
        learner, _ = learn(digits, name, tasks=tasks, memory=7, **quick(name))
        (buffer,) = [plugin.storage_policy.buffer for plugin in learner.plugins if hasattr(plugin, "storage_policy")]
        counts = torch.bincount(torch.tensor([int(label) for label in buffer.targets]), minlength=10)
        assert counts.tolist() == [7] * 2 * tasks + [0] * (10 - 2 * tasks)
        assert learner.costs().memory_bytes == 2 * tasks * 7 * IMAGE
    assert made(digits, name).costs().memory_bytes == 0


def test_half_of_a_replayed_batch_is_memory(digits: ContinualBenchmark) -> None:
    class Seen(SupervisedPlugin):
        earlier: list[int] = []  # noqa: RUF012

        def before_forward(self, strategy: Any, **kwargs: Any) -> None:
            self.earlier.append(int((strategy.mb_y < 2).sum()))

    learner = made(digits, "replay", memory=20, batch_size=16, epochs=1, plugins=(Seen(),))
    assert any(isinstance(plugin, Replay) for plugin in learner.plugins)
    learner.train(digits.train[0], [])
    Seen.earlier.clear()
    learner.train(digits.train[1], [])
    # 40 stored images come as 16, 16 and 8, again and again.
    assert Seen.earlier[:5] == [16, 16, 8, 16, 16]
    assert len(Seen.earlier) == -(-len(digits.train[1].dataset) // 16)


def test_every_pass_over_the_memory_has_an_order_of_its_own() -> None:
    x, y = torch.arange(6), torch.zeros(6).long()
    generator = torch.Generator().manual_seed(0)
    beside = Beside(TensorBatches(x, y, y, 1), TensorBatches(x[:3] + 10, y[:3], y[:3], 3, True, generator))
    memory = [batch[0][1:].tolist() for batch in beside]
    assert len(beside) == len(memory) == 6
    assert len({tuple(each) for each in memory}) > 1
    assert all(sorted(each) == [10, 11, 12] for each in memory)
