"""Every method of the core moves the connections of a learner that reserves nothing."""

import pytest
import torch
from synthetic import blobs

from continual.benchmarks import make_benchmark
from continual.catalogue import build_strategy
from continual.finetune import SparseFinetune, sparse_network
from continual.learner import NoChoice, Setup
from sparse_core import PRESETS, Adam, sparse_layers
from sparse_core.initial_topologies import draw
from sparse_core.meters import nnz


def learner(topology: str) -> SparseFinetune:
    model = sparse_network(16, (24, 24), 6, 400, seed=0, backend="gemm", topology=topology)
    optimizer = Adam(model.parameters(), lr=0.01)
    return SparseFinetune(
        model=model, optimizer=optimizer, topology=topology, train_mb_size=16, train_epochs=10, seed=0
    )


KINDS = {"set", "rigl", "deepr", "srigl", "wast", "snfs", "top-kast"}  # the others are slow ones
AMONG_TASKS = [name for name, preset in PRESETS.items() if preset.changes and not preset.prune]


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
