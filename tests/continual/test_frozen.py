"""What belongs to a finished task stays what it was, to the bit, whatever the optimizer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.benchmarks import make_benchmark
from continual.catalogue import build_strategy
from continual.learner import OPTIMIZERS, Setup
from continual.scenario import ContinualBenchmark
from sparse_core import Adam

OF_TORCH: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd+momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "our adamw": lambda p: Adam(p, lr=0.01, weight_decay=0.1, decoupled=True),
}
SUBSPACES = (
    ("spacenet", "shared"), ("spacenet", "strict"), ("spacenet-2021", "shared"), ("spacenet-2021", "strict"),
    ("spacenet-static", "shared"), ("spacenet-ood", "strict"), ("spacenet-rehearsal", "shared"), ("afaf", "shared"),
)  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> ContinualBenchmark:
    return make_benchmark("split-digits")


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's optimizers can be chosen by name, as ours can."""
    for name, make in OF_TORCH.items():
        monkeypatch.setitem(OPTIMIZERS, name, lambda parameters, rate, make=make: make(parameters))


def made(benchmark: ContinualBenchmark, name: str, **choices: Any) -> Any:
    return build_strategy(name, Setup(benchmark, **{"hidden": (30, 30), "epochs": 2, "batch_size": 64, **choices}))


def by_position(layer: Any) -> dict[int, list[float]]:
    positions = torch.cat([layer.positions, layer.frozen_positions]).tolist()
    return dict(zip(positions, torch.cat([layer.values, layer.frozen_values]).detach().tolist(), strict=True))


def kept(strategy: Any) -> dict[str, Any]:
    """Everything that the finished tasks own, as plain numbers."""
    found: dict[str, Any] = {}
    for name, layer in strategy.network.chain.items():
        found[name] = by_position(layer)
        bias = layer.effective_bias().detach()
        fixed = set(layer.frozen_bias.tolist())
        if name == strategy.ledger.names[-1]:  # those of classes to come wait, and are nobody's yet
            fixed = {unit for task in strategy.tasks for unit in task.units.tolist()}
        found[f"{name}.bias"] = {unit: float(bias[unit]) for unit in fixed}
    for name, norm in strategy.network.norm_of.items():
        frozen = norm.frozen.nonzero().squeeze(1).tolist()
        for part, tensor in norm.content().items():
            found[f"{name}.norm.{part}"] = {neuron: float(tensor[neuron]) for neuron in frozen}
    return found


def archived(strategy: Any, number: int) -> list[Tensor]:
    plain = strategy.tasks[number].plain()
    parts = [tensor for part in plain["connections"].values() for tensor in part]
    return [
        tensor.clone()
        for tensor in [
            *parts,
            *plain["biases"].values(),
            *(t for norm in plain["norms"].values() for t in norm.values()),
        ]
    ]


def check_all_is_kept(strategy: Any, benchmark: ContinualBenchmark) -> None:
    experiences = list(benchmark.train)[:4]
    strategy.train(experiences[0], [])
    x, _ = benchmark.tensors("test", 0)
    before, scores = kept(strategy), strategy.task_scores(x, 0)
    own = archived(strategy, 0)
    assert scores[:, :2].isfinite().all()
    for experience in experiences[1:]:
        strategy.train(experience, [])
    after = kept(strategy)
    if strategy.strict:
        assert len(own) > 3
        assert all(torch.equal(one, two) for one, two in zip(own, archived(strategy, 0), strict=True))
        assert torch.equal(strategy.task_scores(x, 0), scores)
        return
    rehearsed = len(strategy._trained_units(strategy.tasks[-1])) > 2
    for name, entries in before.items():
        if rehearsed and name == f"{strategy.ledger.names[-1]}.bias":
            continue  # biases of classes that are rehearsed go on learning
        assert entries
        assert {key: after[name][key] for key in entries} == entries, name
        assert len(after[name]) > len(entries) or "norm" in name or "bias" in name


@pytest.mark.parametrize(
    "optimizer", [name if "adamw" in name else pytest.param(name, marks=pytest.mark.slow) for name in OF_TORCH]
)
@pytest.mark.parametrize(("name", "isolation"), SUBSPACES)
def test_connections_and_biases_stay(digits: ContinualBenchmark, name: str, isolation: str, optimizer: str) -> None:
    check_all_is_kept(made(digits, name, isolation=isolation, optimizer=optimizer), digits)


@pytest.mark.end_to_end
@pytest.mark.parametrize("optimizer", ["sgd+momentum", pytest.param("adamw", marks=pytest.mark.slow)])
@pytest.mark.parametrize("channels", [(), (16, 8)])
@pytest.mark.parametrize(("name", "isolation"), SUBSPACES)
def test_normalisation_stays_too(
    digits: ContinualBenchmark, name: str, isolation: str, channels: tuple[int, ...], optimizer: str
) -> None:
    choices = {"hidden": (20,)} if channels else {}
    learner = made(
        digits, name, isolation=isolation, optimizer=optimizer, norm="batch", channels=channels, epochs=1, **choices
    )  # fmt: skip
    check_all_is_kept(learner, digits)


def test_reading_earlier_tasks_keeps_their_scores(digits: ContinualBenchmark) -> None:
    # In strict isolation a task may read what came before it, but never what comes after.
    for norm in ("none", "batch"):
        learner = made(
            digits, "spacenet", isolation="strict", optimizer="adamw", norm=norm, options={"reads": "earlier"}
        )  # fmt: skip
        check_all_is_kept(learner, digits)
        first = learner.network.chain["layers.0"]
        assert first.frozen_positions.numel() > 0


def test_nothing_of_slda_moves_after_the_first_task(digits: ContinualBenchmark) -> None:
    learner = build_strategy("spacenet-slda", Setup(digits, hidden=(30, 30)))
    learner.train(digits.train[0], [])
    before = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
    for experience in list(digits.train)[1:4]:
        learner.train(experience, [])
    assert all(layer.values.numel() == 0 for layer in learner.network.chain.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.network.state_dict().items())


def test_an_interrupted_task_can_be_begun_again(digits: ContinualBenchmark) -> None:
    from avalanche.core import SupervisedPlugin

    class Interruption(SupervisedPlugin):
        wanted = True

        def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            if self.wanted and strategy.clock.train_exp_counter == 1:
                self.wanted = False
                raise KeyboardInterrupt

    for name in ("spacenet", "sparse-finetune"):
        learner = made(digits, name, plugins=(Interruption(),))
        learner.train(digits.train[0], [])
        with pytest.raises(KeyboardInterrupt):
            learner.train(digits.train[1], [])
        learner.train(digits.train[1], [])
        assert len(learner.tasks) == 2
        # Nothing of the interrupted call still listens to the optimizer.
        assert not learner.optimizer._optimizer_step_pre_hooks
        assert not learner.optimizer._optimizer_step_post_hooks
