"""Learners of statistics alone, against scikit-learn on the same samples."""

import warnings
from typing import Any

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid
from torch import Tensor

from continual.benchmarks import make_benchmark
from continual.catalogue import build_strategy
from continual.evaluation import accuracy_rows
from continual.learner import Setup
from continual.means import NearestMeans
from continual.scenario import ContinualBenchmark

NAMES = ("ncm", "slda", "random-sparse-slda")


@pytest.fixture(scope="module")
def digits() -> ContinualBenchmark:
    return make_benchmark("split-digits")


def learned(benchmark: ContinualBenchmark, name: str, tasks: int = 5, **choices: Any) -> Any:
    learner = build_strategy(name, Setup(benchmark, hidden=(100, 50), **choices))
    for experience in list(benchmark.train)[:tasks]:
        learner.train(experience, [])
    return learner


def everything(benchmark: ContinualBenchmark, stream: str) -> tuple[Tensor, Tensor]:
    x, y = zip(*(benchmark.tensors(stream, task) for task in range(5)), strict=True)
    return torch.cat(x), torch.cat(y)


def test_nearest_mean_is_scikit_learns(digits: ContinualBenchmark) -> None:
    x, y = everything(digits, "train")
    test, _ = everything(digits, "test")
    known = NearestCentroid().fit(x.flatten(1).double().numpy(), y.numpy())
    mine = learned(digits, "ncm").class_scores(test).argmax(1)
    assert mine.tolist() == known.predict(test.flatten(1).double().numpy()).tolist()


def test_slda_of_pixels_is_scikit_learns(digits: ContinualBenchmark) -> None:
    x, y = everything(digits, "train")
    test, _ = everything(digits, "test")
    known = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.03).fit(x.flatten(1).double().numpy(), y.numpy())
    mine = learned(digits, "slda", options={"shrinkage": 0.03}).class_scores(test).log_softmax(1)
    expected = torch.from_numpy(known.predict_log_proba(test.flatten(1).double().numpy()))
    assert torch.allclose(mine, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "least"), [("ncm", 0.85), ("slda", 0.9), ("random-sparse-slda", 0.93)])
def test_learns_whatever_the_batches(digits: ContinualBenchmark, name: str, least: float) -> None:
    test = [digits.tensors("test", task) for task in range(5)]
    row, within = accuracy_rows(learned(digits, name, seed=1), test)
    assert sum(row) / 5 > least
    assert sum(within) / 5 > 0.97
    x, _ = test[0]
    scores = [learned(digits, name, seed=1, batch_size=size).class_scores(x) for size in (16, 1024)]
    assert torch.allclose(*scores, rtol=1e-4, atol=1e-3)
    seeds = [learned(digits, name, seed=seed).class_scores(x) for seed in (1, 2)]
    assert torch.allclose(*seeds) == (name != "random-sparse-slda")  # the others draw nothing but the order


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_scores_and_the_global_generator_is_left_alone(digits: ContinualBenchmark, name: str) -> None:
    x, _ = digits.tensors("test", 0)
    before = torch.get_rng_state()
    first = learned(digits, name, seed=3).class_scores(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(learned(digits, name, seed=3).class_scores(x), first)


@pytest.mark.parametrize("name", NAMES)
def test_classes_to_come_are_never_chosen(digits: ContinualBenchmark, name: str) -> None:
    x, _ = digits.tensors("test", 3)
    learner = learned(digits, name, tasks=2)
    assert torch.isfinite(learner.class_scores(x)).sum(1).tolist() == [4] * len(x)
    assert torch.isfinite(learner.task_scores(x, 1))[:, 2:4].all()
    assert torch.isneginf(learner.task_scores(x, 3)).all()


def test_costs_are_those_of_the_statistics(digits: ContinualBenchmark) -> None:
    means, covariance = 8 * (10 + 10 * 64), 8 * 64 * 64
    costs = {name: learned(digits, name, options={}).costs() for name in NAMES}
    assert (costs["ncm"].bytes, costs["ncm"].nnz, costs["ncm"].neurons) == (means, 640, 0)
    assert (costs["slda"].bytes, costs["slda"].flops) == (means + covariance, 1280)
    sparse = costs["random-sparse-slda"]
    connections = sparse.nnz - 10 * 100
    assert connections == 5 * round(0.16 * 64 * 20)
    assert sparse.parameter_bytes == 4 * (connections + 100)
    assert sparse.statistic_bytes == 8 * (10 + 10 * 100 + 100 * 100)
    assert sparse.index_bytes > 4 * connections


def test_means_go_on_where_they_were(digits: ContinualBenchmark) -> None:
    x, y = everything(digits, "train")
    whole, first, resumed = (NearestMeans(64, 10) for _ in range(3))
    for means, cut in ((whole, slice(0, 500)), (whole, slice(500, None)), (first, slice(0, 500))):
        means.update(x[cut], y[cut])
    resumed.load_state(first.state())
    resumed.update(x[500:], y[500:])
    assert torch.equal(resumed.scores(x), whole.scores(x))


def test_avalanche_measures_it(digits: ContinualBenchmark) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has no loggers
        evaluator = EvaluationPlugin(accuracy_metrics(epoch=True, stream=True))
    learner = learned(digits, "slda", evaluator=evaluator)
    (accuracy,) = [value for key, value in learner.eval(digits.test).items() if "Acc_Stream" in key]
    x, y = everything(digits, "test")
    assert accuracy == pytest.approx(float((learner.class_scores(x).argmax(1) == y).float().mean()))
