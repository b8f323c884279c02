"""What every strategy keeps to: it learns, scores as it should, says what it holds, and works in users' scripts."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, confusion_matrix_metrics
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    GDumbPlugin,
    MASPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
)
from learned import IMAGE
from synthetic import foreign

from continual.archive import Archive
from continual.baselines import bytes_of
from continual.benchmarks import make_benchmark
from continual.catalogue import build_strategy, strategy_names, strategy_summary
from continual.evaluation import accuracy_rows
from continual.learner import Setup
from continual.networks import SubspaceNetwork
from continual.options import Sizes
from continual.scenario import ContinualBenchmark, wrap
from continual.spacenet import SpaceNet
from continual.subspaces import SubspaceStrategy

OURS = (
    "afaf", "random-sparse-slda", "spacenet", "spacenet-2021", "spacenet-ood", "spacenet-rehearsal", "spacenet-slda",
    "spacenet-static", "sparse-finetune",
)  # fmt: skip
SUBSPACES = tuple(name for name in OURS if "slda" not in name and name != "sparse-finetune")
NO_EPOCHS = ("ncm", "slda", "random-sparse-slda", "spacenet-slda")
# One of each kind; the others are slow ones.
EACH = [
    name if name in ("spacenet", "afaf", "naive", "ncm", "replay") else pytest.param(name, marks=pytest.mark.slow)
    for name in strategy_names()
]
RATES = {"spacenet-ood": 0.01, "spacenet-rehearsal": 0.01, "mas": 0.01, "sparse-finetune": 0.02}


@pytest.fixture(scope="module")
def digits() -> ContinualBenchmark:
    return make_benchmark("split-digits")


def quiet(*metrics: Any, loggers: Any = None) -> EvaluationPlugin:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has no loggers
        return EvaluationPlugin(*metrics, loggers=loggers)


def made(benchmark: ContinualBenchmark, name: str, **choices: Any) -> Any:
    given: dict[str, Any] = {"hidden": (60, 60), "seed": 1}
    if name not in NO_EPOCHS:
        given |= {"epochs": 8, "batch_size": 16, "learning_rate": RATES.get(name, 0.1)}
    if name == "sparse-finetune":
        given["optimizer"] = "adam"
    return build_strategy(name, Setup(benchmark, **given | choices))


def learn(learner: Any, benchmark: ContinualBenchmark, tasks: int = 2) -> Any:
    if getattr(learner, "joint", False):
        learner.train_all(benchmark.train)
        return learner
    for experience in list(benchmark.train)[:tasks]:
        learner.train(experience, [])
    return learner


@pytest.mark.parametrize("name", EACH)
def test_contract(digits: ContinualBenchmark, name: str) -> None:
    state = torch.get_rng_state()
    learner = learn(made(digits, name), digits)
    joint = getattr(learner, "joint", False)
    x, y = digits.tensors("test", 1)
    before = x.clone()
    scores = {
        "class": None if learner_needs_task(learner) else learner.class_scores(x),
        "task": learner.task_scores(x, 1),
    }
    assert torch.equal(x, before)
    for kind, given in scores.items():
        if given is None:
            continue
        assert given.shape == (len(x), 10)
        assert given.dtype.is_floating_point
        assert not given.requires_grad
        assert not given.isnan().any()
        known = range(10) if joint and kind == "class" else range(4) if kind == "class" else (2, 3)
        expected = torch.tensor([label in known for label in range(10)])
        assert torch.equal(given.isfinite(), expected.expand_as(given)), kind
        assert given[:, ~expected].isneginf().all()
    assert (learner.task_scores(x, 1).argmax(1) == y).float().mean() > 0.85
    # The same seed gives the same learner, whatever the global generator does.
    torch.rand(5)
    again = learn(made(digits, name), digits)
    assert torch.equal(again.task_scores(x, 1), scores["task"])
    # Nothing is drawn where nothing is trained.
    other = learn(made(digits, name, seed=2), digits)
    alike = torch.allclose(other.task_scores(x, 1), scores["task"], rtol=1e-9)
    assert alike == (name in ("ncm", "slda"))
    torch.set_rng_state(state)


def learner_needs_task(learner: Any) -> bool:
    return tuple(getattr(learner, "scenarios", ())) == ("task-il",)


@pytest.mark.parametrize("name", strategy_names())
def test_every_strategy_says_what_it_is(name: str) -> None:
    assert 20 < len(strategy_summary(name)) <= 120


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"no strategy called 'spacenett'; did you mean 'spacenet'.* known: afaf, ewc"):
        strategy_summary("spacenett")
    with pytest.raises(ValueError, match="no strategy called 'spacenet_2021'"):
        build_strategy("spacenet_2021", Setup(ContinualBenchmark("", "", None, (1, 8, 8), 10, ((0, 1),), "class-il")))


@pytest.mark.parametrize("name", OURS)
def test_choices_a_strategy_has_not(digits: ContinualBenchmark, name: str) -> None:
    with pytest.raises(ValueError, match="unknown option 'lambda'; this strategy's options: "):
        made(digits, name, options={"lambda": 3})
    if name != "spacenet-rehearsal":
        with pytest.raises(ValueError, match="no choice of 'memory'"):
            made(digits, name, memory=3)


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("spacenet", {"head": "wide"}, "wide"),
        ("spacenet", {"isolation": "loose"}, "`isolation` must be one of shared, strict, got 'loose'"),
        ("spacenet", {"policy": "beg"}, "`policy` must be one of error, shrink, reclaim, got 'beg'"),
        ("spacenet", {"options": {"period": 0}}, "`period` must be a whole number of steps, at least 1, got 0"),
        ("spacenet", {"options": {"period": 2.5}}, "`period` must be a whole number of steps, at least 1, got 2.5"),
        ("spacenet", {"options": {"isolation": "strict"}}, "give it as a choice of its own, not as an option"),
        ("spacenet", {"options": {"head_bias": True}}, "`calibrate` scales weights of outputs, which have no bias"),
        ("spacenet", {"options": {"sizes": Sizes((4,), (2,), (9, 9))}}, "`sizes` is for 2 layers, the model has 3"),
        ("spacenet-slda", {"options": {"share": (2.0, 0.1)}}, r"`share` must be two shares in \(0, 1\]"),
        ("spacenet", {"options": {"drop": None}}, "give both `drop` and `grow`, or neither"),
        ("spacenet", {"options": {"reads": "own"}}, "`reads='own'` needs `isolation='strict'`"),
        ("spacenet-ood", {"head": "zeroed"}, "outliers belong to no class, .* got 'zeroed'"),
        ("spacenet-ood", {"options": {"outliers": -1}}, "`outliers` must be a number ≥ 0"),
        ("afaf", {"options": {"reuse": 1.5}}, r"`reuse` must be a share in \(0, 1\), got 1.5"),
    ],
)
def test_choices_that_cannot_be(digits: ContinualBenchmark, name: str, choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(digits, name, **choices)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (((4,), (2,), (9,)), "got 1, 1 and 1"),
        (((4,), (2,), (9, -5)), "counts ≥ 0"),
    ],
)
def test_sizes_that_cannot_be(counts: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sizes(*counts)


def test_a_task_still_to_come_is_all_wrong(digits: ContinualBenchmark) -> None:
    """Its classes have no scores, so that none of them is found, the first one neither."""
    tasks = [digits.tensors("test", task) for task in range(5)]
    learner = learn(made(digits, "spacenet"), digits, tasks=1)
    without, within = accuracy_rows(learner, tasks)
    assert without[0] > 0.5
    assert without[1:] == within[1:] == [0] * 4
    learner = made(digits, "spacenet")
    assert accuracy_rows(learner, tasks) == ([0] * 5, [0] * 5)


# ---- costs


@pytest.mark.end_to_end
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("name", SUBSPACES)
def test_costs_are_what_is_held(digits: ContinualBenchmark, name: str, norm: str) -> None:
    learner = learn(made(digits, name, norm=norm, epochs=1), digits, tasks=3)
    costs, table = learner.costs(), learner.ledger.table()
    layers = learner.network.chain.values()
    connections = sum(row.connections for row in table)
    assert costs.nnz == connections
    assert connections <= 3 * 3 * sum(learner.options.sizes.connections)  # rehearsal brings some to all classes
    if name != "spacenet-rehearsal":
        assert connections <= 3 * sum(learner.options.sizes.connections)
    assert costs.neurons == sum(row.used for row in table[:-1])
    norms = 4 * 4 * 120 if norm == "batch" else 0
    if learner.strict:
        held = [part.values for task in learner.tasks for part in task.connections.values()]
        assert costs.parameter_bytes == bytes_of(held) + 3 * (4 * 130 + norms)
        assert costs.index_bytes == 4 * connections
        assert costs.flops == 2 * connections  # each task reads its own
    else:
        assert costs.parameter_bytes == sum(layer.frozen_values.nbytes for layer in layers) + 4 * 130 + norms
        assert costs.index_bytes == sum(layer.columns.nbytes + layer.row_pointer.nbytes for layer in layers)
        assert sum(layer.connections for layer in layers) == connections
        assert costs.flops == 2 * connections
    assert costs.memory_bytes == (len(learner.memory) * (4 * 64 + 8) if name == "spacenet-rehearsal" else 0)
    assert costs.bytes == costs.parameter_bytes + costs.index_bytes + costs.statistic_bytes + costs.memory_bytes
    assert [dict(row)["layer"] for row in costs.capacity] == learner.ledger.names


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", EACH)
def test_costs_are_sane(digits: ContinualBenchmark, name: str) -> None:
    learner = learn(made(digits, name), digits)
    costs = learner.costs()
    assert costs.flops >= 2 * costs.nnz > 0
    assert costs.parameter_bytes + costs.statistic_bytes >= 4 * costs.nnz
    assert costs.memory_bytes % IMAGE == 0 or name == "spacenet-rehearsal"
    assert learner.costs() == costs
    if name in SUBSPACES or name == "sparse-finetune":
        assert costs.nnz < 64 * 60 + 60 * 60 + 600


# ---- in Avalanche's own scripts


class Watch(SupervisedPlugin):
    """What a plugin of the user's sees, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int, int]] = []

    def _note(self, what: str, strategy: Any) -> None:
        self.seen.append((what, len(strategy.tasks), strategy.epochs_done))

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._note("begin", strategy)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self._note("epoch", strategy)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._note("end", strategy)
        assert strategy._current is None
        assert strategy.sparsifier is None
        assert strategy.ledger.tasks == len(strategy.tasks)


@pytest.mark.parametrize(
    "plugin", [EWCPlugin(1.0), MASPlugin(), SynapticIntelligencePlugin(0.1), GDumbPlugin(10), RWalkPlugin()]
)
def test_plugins_that_want_parameters_to_stay_are_refused(digits: ContinualBenchmark, plugin: Any) -> None:
    for name in ("spacenet", "sparse-finetune"):
        with pytest.raises(ValueError, match=rf"{type(plugin).__name__} wants the same parameters in every task"):
            made(digits, name, plugins=(plugin,))


def test_a_confusion_matrix(digits: ContinualBenchmark) -> None:
    learner = made(digits, "spacenet", evaluator=quiet(confusion_matrix_metrics(stream=True, save_image=False)))
    strategy = learn(learner, digits)
    (matrix,) = strategy.eval(digits.avalanche.test_stream).values()
    assert matrix.shape == (10, 10)
    assert matrix.sum() == 355  # of the test images
    assert matrix.diag().sum() > 355 / 5


@pytest.mark.parametrize("name", SUBSPACES)
def test_plugins_see_a_task_begun_and_closed(digits: ContinualBenchmark, name: str) -> None:
    watch = Watch()
    learn(made(digits, name, epochs=2, plugins=(watch,)), digits)
    assert watch.seen == [
        ("begin", 0, 0), ("epoch", 0, 1), ("epoch", 0, 2), ("end", 1, 2),
        ("begin", 1, 0), ("epoch", 1, 1), ("epoch", 1, 2), ("end", 2, 2),
    ]  # fmt: skip


def plain(benchmark: ContinualBenchmark, **choices: Any) -> SpaceNet:
    """As in a user's script, without a `Setup`."""
    network = SubspaceNetwork(64, (60, 60), 10)
    return SpaceNet(
        model=network, optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9), train_epochs=5,
        train_mb_size=16, seed=0, sizes=Sizes.fitting([*network.shapes.values()], 2, 5), **choices,
    )  # fmt: skip


def found(metrics: dict[str, Any], *parts: str) -> list[float]:
    return [value for key, value in metrics.items() if all(part in key for part in parts)]


@pytest.mark.end_to_end
@pytest.mark.parametrize("isolation", ["shared", pytest.param("strict", marks=pytest.mark.slow)])
def test_a_script_with_metrics_and_tensorboard(digits: ContinualBenchmark, tmp_path: Path, isolation: str) -> None:
    from avalanche.benchmarks import task_incremental_benchmark

    stream = task_incremental_benchmark(digits.avalanche, reset_task_labels=True)
    assert [set(each.task_labels) for each in stream.test_stream] == [{0}, {1}, {2}, {3}, {4}]
    for told, benchmark in ((False, digits.avalanche), (True, stream)):
        evaluator = quiet(accuracy_metrics(experience=True, stream=True), loggers=[TensorboardLogger(tmp_path)])
        strategy = plain(digits, isolation=isolation, evaluator=evaluator)
        for experience in list(benchmark.train_stream)[:3]:
            strategy.train(experience)
        results = strategy.eval(list(benchmark.test_stream)[:3])
        accuracies = found(results, "Top1_Acc_Exp", "test_stream")
        rows = accuracy_rows(strategy, [digits.tensors("test", task) for task in range(3)])
        assert accuracies == pytest.approx(rows[told])
        if told:
            assert sum(accuracies) / 3 > 0.75
    assert any(path.stat().st_size > 200 for path in tmp_path.rglob("events*"))


@pytest.mark.end_to_end
def test_the_whole_stream_at_once(digits: ContinualBenchmark) -> None:
    one, two = plain(digits, evaluator=quiet()), plain(digits, evaluator=quiet())
    one.train(list(digits.train)[:3])
    for experience in list(digits.train)[:3]:
        two.train(experience)
    x, _ = digits.tensors("test", 1)
    assert torch.equal(one.class_scores(x), two.class_scores(x))


@pytest.mark.parametrize(
    "name",
    [
        "spacenet",
        pytest.param("spacenet-ood", marks=pytest.mark.slow),
        pytest.param("spacenet-rehearsal", marks=pytest.mark.slow),
    ],
)
def test_looking_on_changes_nothing(digits: ContinualBenchmark, name: str) -> None:
    class Look(SupervisedPlugin):
        def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            x = strategy.mb_x
            strategy.class_scores(x), strategy.costs(), strategy.state()

    choices: dict[str, Any] = {"epochs": 3, "norm": "batch"}
    unseen = learn(made(digits, name, **choices), digits)
    seen = made(
        digits, name, **choices, plugins=(Look(),), evaluator=quiet(accuracy_metrics(epoch=True, experience=True))
    )
    learn(seen, digits)
    x, _ = digits.tensors("test", 0)
    assert torch.equal(seen.class_scores(x), unseen.class_scores(x))


@pytest.mark.end_to_end
def test_evaluation_while_training_changes_nothing(digits: ContinualBenchmark) -> None:
    without = plain(digits, evaluator=quiet())
    often = plain(digits, evaluator=quiet(accuracy_metrics(experience=True)), eval_every=3)
    results = {}
    for experience, test in list(zip(digits.train, digits.test, strict=True))[:2]:
        without.train(experience, [])
        results = often.train(experience, [test])
    x, y = digits.tensors("test", 1)
    assert torch.equal(without.class_scores(x), often.class_scores(x))
    # With five epochs and every third, Avalanche evaluates once more when the task has been closed.
    accuracy = (often.class_scores(x).argmax(1) == y).float().mean()
    assert found(results, "Top1_Acc_Exp", "test_stream", "Exp001") == [pytest.approx(float(accuracy))]


@pytest.mark.end_to_end
@pytest.mark.parametrize("labels", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "name", [name if name == "spacenet" else pytest.param(name, marks=pytest.mark.slow) for name in OURS]
)
def test_data_that_is_not_ours_goes_through_avalanches_loader(name: str, labels: bool) -> None:
    streams = nc_benchmark(*foreign(8), 2, task_labels=labels, fixed_class_order=[0, 1, 2, 3])
    benchmark = wrap(streams)
    choices = {} if name in NO_EPOCHS else {"epochs": 40, "batch_size": 8}
    learner = learn(made(benchmark, name, **choices), benchmark)
    _, within = accuracy_rows(learner, [benchmark.tensors("test", task) for task in range(2)])
    assert within[1] > 0.9


def test_heads_of_their_own_for_the_same_labels() -> None:
    torch.manual_seed(0)  # Avalanche's loader draws the order of foreign data from the global generator
    streams = nc_benchmark(
        *foreign(8), 2, task_labels=True, class_ids_from_zero_in_each_exp=True, fixed_class_order=[0, 1, 2, 3]
    )
    benchmark = wrap(streams)
    assert (benchmark.scenario, benchmark.task_classes) == ("domain-il", ((0, 1), (0, 1)))
    evaluator = quiet(accuracy_metrics(experience=True))
    learner = learn(made(benchmark, "spacenet", evaluator=evaluator, epochs=30), benchmark)
    assert isinstance(learner, SubspaceStrategy)
    assert [task.units.tolist() for task in learner.tasks] == [[0, 1], [2, 3]]
    # Evaluation is told the task, and asks its own units.
    assert min(found(learner.eval(streams.test_stream), "Top1_Acc_Exp", "test_stream")) > 0.9


@pytest.mark.end_to_end
def test_afaf_of_one_hidden_layer_has_something_to_read(digits: ContinualBenchmark) -> None:
    learner = learn(made(digits, "afaf", hidden=(60,)), digits, tasks=4)
    assert min(learner.ledger.table()[-1].by_task) > 0
    x, y = digits.tensors("test", 3)
    assert (learner.task_scores(x, 3).argmax(1) == y).float().mean() > 0.85


def test_archive_forgets_its_views_with_what_they_showed(digits: ContinualBenchmark) -> None:
    learner = learn(made(digits, "spacenet", isolation="strict"), digits)
    archive: Archive = learner.archive
    view = archive.network_of(0)
    assert archive.network_of(0) is view
    name = learner.ledger.names[0]
    some = archive.tasks[0].connections[name].positions[:3]
    archive.keep_only(name, some)
    assert archive.network_of(0).chain[name].topology.positions.tolist() == some.tolist()
