"""Every method of the core moves the connections of a learner that reserves nothing."""

from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import ReplayPlugin
from synthetic import blobs

from continual.benchmarks import make_benchmark
from continual.catalogue import build_strategy
from continual.finetune import SparseFinetune, sparse_network
from continual.learner import NoChoice, Setup
from sparse_core import PRESETS, Adam, sparse_layers
from sparse_core.initial_topologies import draw
from sparse_core.meters import nnz


def learner(topology: str, **choices: Any) -> SparseFinetune:
    model = sparse_network(16, (24, 24), 6, 400, seed=0, backend="gemm", topology=topology)
    optimizer = Adam(model.parameters(), lr=0.01)
    return SparseFinetune(
        model=model, optimizer=optimizer, topology=topology, train_mb_size=16, train_epochs=10, seed=0, **choices
    )


KINDS = {"set", "rigl", "deepr", "srigl", "wast", "snfs", "top-kast"}  # the others are slow ones
AMONG_TASKS = [name for name, preset in PRESETS.items() if preset.changes and not preset.prune]


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in AMONG_TASKS]
)
def test_learns_task_after_task(name: str) -> None:
    made = learner(name)
    before = [layer.topology for layer in sparse_layers(made.model).values()]
    benchmark = blobs(2)
    made.train(benchmark.train[0])
    x, y = benchmark.tensors("test", 0)
    assert (made.task_scores(x, 0).argmax(1) == y).float().mean() > 0.9
    made.train(benchmark.train[1])
    if PRESETS[name].exact and PRESETS[name].own_sparsity is None:
        assert nnz(made.model) == 400
    after = [layer.topology for layer in sparse_layers(made.model).values()]
    assert not PRESETS[name].searches or before != after
    assert all(torch.isfinite(parameter).all() for parameter in made.model.parameters())


@pytest.mark.parametrize(
    "name", [*(name for name, preset in PRESETS.items() if preset.prune), "set:pruned_neurons=0.1"]
)
def test_a_method_with_one_end_has_no_place_among_tasks(name: str) -> None:
    with pytest.raises(ValueError, match=f"topology '{name}' comes down to its sparsity once, over one training"):
        learner(name)


def test_connections_begin_where_the_initial_topology_says() -> None:
    digits = make_benchmark("split-digits")
    setup = Setup(digits, hidden=(60, 60), initial_topology="small-world:beta=0", backend="gemm")
    made = build_strategy("sparse-finetune", setup)
    for layer in sparse_layers(made.model).values():
        assert layer.topology == draw("small-world:beta=0", layer.shape, layer.nnz, torch.Generator())
    for name in ("spacenet", "naive", "slda"):
        with pytest.raises(NoChoice, match="this strategy has no choice of 'initial_topology'"):
            build_strategy(name, setup)


def test_what_a_plugin_replays_keeps_its_labels() -> None:
    """With the head "full" both tasks are known in the end; a head of one task's classes refuses the others."""
    benchmark = blobs(2)
    made = learner("set", plugins=[ReplayPlugin(mem_size=32)])
    for experience in benchmark.train:
        made.train(experience)
    for x, y in (benchmark.tensors("test", task) for task in (0, 1)):
        assert (made.class_scores(x).argmax(1) == y).float().mean() > 0.9
    other = learner("set", head="current", plugins=[ReplayPlugin(mem_size=32)])
    other.train(benchmark.train[0])
    with pytest.raises(ValueError, match=r"not of the current task .* take the head 'full'"):
        other.train(benchmark.train[1])


class Stop(SupervisedPlugin):
    """Ends a training in the middle of a task, as Ctrl-C does."""

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("within", [False, True])
def test_a_state_goes_into_a_learner_that_was_interrupted(within: bool) -> None:
    benchmark = blobs(2)
    given = learner("set", plugins=[Stop()] if within else [])
    if within:
        with pytest.raises(KeyboardInterrupt):
            given.train(benchmark.train[0])
    else:
        given.train(benchmark.train[0])
    taking = learner("set", plugins=[Stop()])
    with pytest.raises(KeyboardInterrupt):
        taking.train(benchmark.train[1])
    taking.load_state(given.state())
    taking.plugins = [plugin for plugin in taking.plugins if not isinstance(plugin, Stop)]
    if within:
        with pytest.raises(
            ValueError, match=r"within the task of classes \(0, 1\), got .* \(2, 3\); go on with the same"
        ):
            taking.train(benchmark.train[1])
        taking.train(benchmark.train[0])
    taking.train(benchmark.train[1])
    assert taking.tasks == [(0, 1), (2, 3)]
