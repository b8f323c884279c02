"""Agents and learners are what their settings say, and rows of accuracies are of the images they name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.benchmarks import make_benchmark
from continual.learner import Costs
from continual.scenario import ContinualBenchmark
from envs.noise import Noise
from runs.building import build
from runs.continual.records import Examiner, Record
from runs.continual.results import Facts
from runs.continual.seeds import build_learner
from runs.continual.settings import Settings as LearnerSettings
from runs.options import CompareContinual, Continual, Train
from runs.settings import Settings
from runs.studies import learners
from sparse_core import sparse_layers
from sparse_core.initial_topologies import draw

# Agents


@pytest.mark.parametrize("algo", ["td3", "sac"])
def test_an_agent_is_what_its_settings_say(algo: str) -> None:
    settings = Settings.resolve(
        Train(
            algo, env="Pendulum-v1", threads=1, device="cpu", topology="rigl", sparsity=0.6, hidden="24,16",
            backend="gemm", distribution="uniform", init="fan-in", initial_topology="brf", norm="layer",
            drop_fraction=0.11, schedule="linear", stop=0.4, period=7, capture_batches=3, learning_rate=2e-3,
            weight_decay=0.01, action_noise=0.3, batch_size=8, buffer_size=300, learning_starts=20, n_steps=3,
            n_step_onset=5, buffer_min=40, buffer_distance=0.5,
        )
    )  # fmt: skip
    settings = replace(
        settings, gamma=0.9, tau=0.1, policy_delay=3, target_policy_noise=0.3, target_noise_clip=0.4, ent_coef=0.3,
        target_update_interval=2,
    )  # fmt: skip
    model: Any = build(settings)
    of_algo = ["policy_delay", "target_policy_noise", "target_noise_clip"] if algo == "td3" else [
        "ent_coef", "target_update_interval",
    ]  # fmt: skip
    shared = ["learning_rate", "gamma", "tau", "batch_size", "buffer_size", "learning_starts", "n_steps"]
    for name in [*shared, *of_algo]:
        assert getattr(model, name) == getattr(settings, name), name
    for name in (
        "topology", "distribution", "init", "initial_topology", "norm", "drop_fraction", "schedule", "stop", "period",
        "capture_batches",
    ):  # fmt: skip
        assert getattr(model.sparse_options, name) == getattr(settings, name), name
    replay = model.replay_options
    assert (replay.onset, replay.minimum, replay.every, replay.distance) == (5, 40, settings.buffer_every, 0.5)
    groups = [group for each in (model.actor, model.critic) for group in each.optimizer.param_groups]
    assert {group["weight_decay"] for group in groups} == {0.01}
    assert model.action_noise._sigma.tolist() == [0.3]


def test_the_seed_of_a_run_is_that_of_its_noise() -> None:
    assert Settings.resolve(Train("td3", noise_features=0.5, seed=3, device="cpu")).noise == Noise(0.5, 3)


# Learners


@pytest.fixture(scope="module")
def digits() -> ContinualBenchmark:
    return make_benchmark("split-digits")


def resolve(**changes: Any) -> LearnerSettings:
    return LearnerSettings.resolve(Continual(**changes))


def test_a_learner_is_what_its_settings_say(digits: ContinualBenchmark) -> None:
    settings = resolve(
        hidden="20,16", channels="4", norm="batch", epochs=3, batch_size=7, optimizer="momentum", learning_rate=0.03,
        head="current", policy="shrink",
    )  # fmt: skip
    learner = build_learner(settings, digits, 5)
    network, (group,) = learner.network, learner.optimizer.param_groups
    assert (network.hidden, network.channels, network.norm) == ((20, 16), (4,), "batch")
    assert (learner.train_epochs, learner.train_mb_size, learner.seed) == (3, 7, 5)
    assert (group["lr"], group["momentum"]) == (0.03, 0.9)
    assert (learner.options.head, learner.options.policy) == ("current", "shrink")
    rehearsal = build_learner(resolve(strategy="spacenet-rehearsal", memory=7, hidden="20,16"), digits, 0)
    assert rehearsal.memory.per_class == 7


def test_a_learners_connections_begin_where_its_settings_say(digits: ContinualBenchmark) -> None:
    name = "small-world:beta=0"  # nothing is drawn
    learner = build_learner(resolve(strategy="sparse-finetune", hidden="60,60", initial_topology=name), digits, 0)
    for layer in sparse_layers(learner.model).values():
        assert layer.topology == draw(name, layer.shape, layer.nnz, torch.Generator())


@pytest.mark.parametrize(
    ("choices", "scenario"),
    [
        ({"strategy": "spacenet"}, "class-il"),
        ({"strategy": "spacenet", "isolation": "strict"}, "task-il"),
        ({"strategy": "spacenet-ood"}, "class-il"),  # strict, and yet for tasks that are not known
        ({"strategy": "packnet", "epochs": 2}, "task-il"),
        ({"strategy": "joint"}, "class-il"),
    ],
    ids=["shared", "strict", "outliers", "packnet", "joint"],
)
def test_whose_scores_stand_at_the_top(choices: dict[str, Any], scenario: str, digits: ContinualBenchmark) -> None:
    facts = Facts.of(build_learner(resolve(hidden="20,20", **choices), digits, 0))
    assert facts == Facts(scenario, choices["strategy"] == "joint")


class Zero:
    """Finds the label 0 everywhere, and knows how many images it was asked about."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def class_scores(self, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        return torch.eye(10)[[0] * len(x)]

    def task_scores(self, x: Tensor, number: int) -> Tensor:
        return torch.eye(10)[[0] * len(x)]

    def costs(self) -> Costs:
        return Costs(0, 0, 0, 0)


def test_every_row_is_of_its_own_images(digits: ContinualBenchmark) -> None:
    record, zero = Record(0), Zero()
    Examiner(digits, "cpu").examine(zero, record)
    labels = {stream: [digits.tensors(stream, task)[1] for task in range(5)] for stream in ("test", "valid")}
    assert zero.asked == [len(y) for stream in ("test", "valid") for y in labels[stream]]
    zeros = [float((labels[stream][0] == 0).float().mean()) for stream in ("test", "valid")]
    assert [record.class_il[0], record.validation_class_il[0]] == [pytest.approx([z, 0, 0, 0, 0]) for z in zeros]
    assert zeros[0] != zeros[1]


@pytest.mark.parametrize("strategy", ["spacenet", "sparse-finetune", "naive", "ncm"])
def test_before_learning_everybody_is_at_chance(strategy: str, digits: ContinualBenchmark) -> None:
    """So that what a task gains from those before it counts from the same place for all."""
    untold = replace(digits, scenario="domain-il")
    settings, record = resolve(strategy=strategy, hidden="60,60"), Record(0)
    Examiner(untold, "cpu").begin(build_learner(settings, untold, 0), record)
    assert record.initial is not None
    if strategy == "naive":  # outputs nobody has trained
        assert 0 < sum(record.initial) / 5 < 0.3
    else:
        assert record.initial == [0.1] * 5  # one class of ten
    record = Record(0)
    Examiner(digits, "cpu").begin(build_learner(settings, digits, 0), record)
    assert record.initial is None  # with new classes in each task it says nothing


def test_arms_go_without_the_choices_that_their_strategy_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    options = CompareContinual(
        strategies="spacenet,spacenet-rehearsal,sparse-finetune", memory=7, initial_topology="brf", epochs=3,
        hidden="60,60",
    )  # fmt: skip
    found = {
        arm.name: [arm.settings["split-digits"][name] for name in ("memory", "initial_topology", "epochs")]
        for arm in learners.arms(options)
    }
    assert found == {
        "spacenet": [None, None, 3], "spacenet-rehearsal": [7, None, 3], "sparse-finetune": [None, "brf", 3],
    }  # fmt: skip
    said = capsys.readouterr().err
    assert "spacenet has no choice of initial_topology, memory: left out for it" in said
    assert "spacenet-rehearsal has no choice of initial_topology: left out for it" in said
    assert "sparse-finetune has no choice of memory: left out for it" in said
