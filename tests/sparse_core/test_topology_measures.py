"""Topology distance, exploration and gradient flow: by hand, by law, and against sets in plain Python."""

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparse_core import (
    Rewiring,
    SparseConv2d,
    SparseLinear,
    SparseMLP,
    Topology,
    effective_gradient_flow,
    gradient_flow,
    in_time_overparameterisation,
    network_distance,
)
from sparse_core.topology_measures import adjacency, overlaps, topologies


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reading(inputs: int, *neurons: set[int]) -> Topology:
    """The layer whose neurons read these inputs."""
    mask = torch.zeros(len(neurons), inputs)
    for row, read in zip(mask, neurons, strict=True):
        row[list(read)] = 1
    return Topology.from_mask(mask)


def test_distance_by_hand() -> None:
    # Neuron 0 of the first network is most like neuron 1 of the second: of {0, 1} and {0, 2} two of three inputs
    # differ. Neuron 1 of the first is neuron 0 of the second.
    first, second = reading(3, {0, 1}, {2}), reading(3, {2}, {0, 2})
    assert network_distance({"a": first}, {"a": second}) == (pytest.approx(1 / 3), {"a": pytest.approx(1 / 3)})
    # So a neuron that reads neuron 0 there and one that reads neuron 1 here are the same.
    same = network_distance({"a": first, "b": reading(2, {1})}, {"a": second, "b": reading(2, {0})})
    assert same == (pytest.approx(1 / 6), {"a": pytest.approx(1 / 3), "b": 0})
    other = network_distance({"a": first, "b": reading(2, {0})}, {"a": second, "b": reading(2, {0})})
    assert other == (pytest.approx(2 / 3), {"a": pytest.approx(1 / 3), "b": 1})


def test_neurons_without_inputs_are_alike() -> None:
    assert network_distance({"a": reading(2, set(), {0})}, {"a": reading(2, {1}, set())}).mean == 1 / 2


def test_layers_that_do_not_read_each_other_keep_their_inputs() -> None:
    # As the twin critics of an agent: the second network's first layer reads inputs, not the first network's neurons.
    first, second = reading(2, {0}, {1}), reading(2, {1}, {0})
    assert network_distance({"p.0": first, "q.0": first}, {"p.0": second, "q.0": reading(2, {0}, {0})}).layers == {
        "p.0": 0, "q.0": 1 / 2,
    }  # fmt: skip


def test_channels_bring_their_taps() -> None:
    """A channel that changes places takes the pixels of its map along."""
    first, second = reading(2, {0}, {1}), reading(2, {1}, {0})
    taps = reading(6, {0, 1, 5}), reading(6, {2, 3, 4})  # three inputs a channel
    assert network_distance({"a": first, "b": taps[0]}, {"a": second, "b": taps[1]}).layers == {"a": 0, "b": 0}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), widths=st.lists(st.integers(1, 9), min_size=2, max_size=4), density=st.floats(0, 1))
def test_distance_does_not_see_the_order_of_neurons(seed: int, widths: list[int], density: float) -> None:
    generator = seeded(seed)
    masks = [torch.rand(out, into, generator=generator) < density for into, out in pairwise(widths)]
    shuffled, order = [], torch.arange(widths[0])
    for mask in masks:
        mask = mask[:, order]
        order = torch.randperm(len(mask), generator=generator)
        shuffled.append(mask[order])
    distance = network_distance(named(masks), named(shuffled))
    assert distance.layers["0"] == 0
    assert all(0 <= each <= 1 for each in distance.layers.values())
    if all(len({*map(tuple, mask.tolist())}) == len(mask) for mask in masks):  # else neurons can be mixed up
        assert distance.mean == 0


def named(masks: list[Tensor]) -> dict[str, Topology]:
    return {str(number): Topology.from_mask(mask) for number, mask in enumerate(masks)}


def edit_distance(a: set[int], b: set[int]) -> float:
    return (len(a - b) + len(b - a)) / len(a | b) if a | b else 0.0


@pytest.mark.parametrize("seed", range(20))
def test_distance_is_the_least_over_all_orders(seed: int) -> None:
    """Against sets and all 24 orders of four neurons; where several are best, the next layer may go by any of them."""
    generator = seeded(seed)
    first, second = ([torch.rand(4, width, generator=generator) < 0.5 for width in (5, 4)] for _ in range(2))
    one, other = ([[{*row.nonzero().flatten().tolist()} for row in mask] for mask in each] for each in (first, second))

    def costs(mine: list[set[int]], theirs: list[set[int]]) -> dict[tuple[int, ...], float]:
        return {
            order: sum(edit_distance(mine[at], theirs[to]) for at, to in enumerate(order)) / 4
            for order in permutations(range(4))
        }

    found = network_distance(named(first), named(second)).layers
    layer = costs(one[0], other[0])
    assert found["0"] == pytest.approx(min(layer.values()))
    best = [order for order, cost in layer.items() if cost == pytest.approx(min(layer.values()))]
    below = [
        min(costs(one[1], [{order.index(read) for read in neuron} for neuron in other[1]]).values()) for order in best
    ]
    assert any(found["1"] == pytest.approx(each) for each in below)


@pytest.mark.parametrize("density", [0.02, 0.6])  # a sparse product, a dense one
def test_overlaps_count_common_inputs(density: float) -> None:
    masks = [torch.rand(rows, 300, generator=seeded(rows)) < density for rows in (700, 600)]
    found = np.zeros((700, 600))
    for rows, block in overlaps(*(adjacency(Topology.from_mask(mask)) for mask in masks)):
        found[rows] = block
    assert (found == masks[0].double().numpy() @ masks[1].double().numpy().T).all()


def test_models_are_compared_by_their_sparse_layers() -> None:
    models = [SparseMLP([6, 8, 8, 2], sparsity=0.5, generator=seeded(seed)) for seed in (0, 1)]
    distance = network_distance(*models)
    assert set(distance.layers) == set(topologies(models[0]))
    assert 0 < distance.mean < 1
    assert network_distance(models[0], models[0]).mean == 0
    assert network_distance(*map(topologies, models)) == distance


@pytest.mark.parametrize("other", [{"a": reading(2, {0})}, {"b": reading(3, {0})}, {}])
def test_networks_of_other_layers_cannot_be_compared(other: dict[str, Topology]) -> None:
    with pytest.raises(ValueError, match=r"same sparse layers .* got .*\{'a': \(1, 3\)\} .* give models of one arch"):
        network_distance({"a": reading(3, {0})}, other)
    with pytest.raises(ValueError, match="same sparse layers"):
        network_distance(nn.Linear(2, 2), nn.Linear(2, 2))


@pytest.mark.slow
def test_wide_layers_take_seconds() -> None:
    layers = [{"a": Topology.random((4096, 4096), 4096 * 41, seeded(seed))} for seed in (0, 1)]
    assert 0.9 < network_distance(*layers).mean < 1


def test_exploration_by_hand() -> None:
    # Of 2 × 5 positions 0, 3, 7, 9; 4 comes for 3, then 3 for 4: five were ever connected.
    first = Rewiring.of((2, 5), torch.tensor([0, 3, 7, 9]), torch.tensor([1]), torch.tensor([4]))
    second = Rewiring.of((2, 5), first.after, torch.tensor([1]), torch.tensor([3]))
    explored: dict[str, Tensor] = {}
    assert in_time_overparameterisation(explored, {"a": first}) == 5 / 10
    assert in_time_overparameterisation(explored, {"a": second}) == 5 / 10
    assert explored["a"].tolist() == [0, 3, 4, 7, 9]
    assert in_time_overparameterisation(explored, {}) == 0


def test_gradient_flow_by_hand() -> None:
    # The gradient of a sum of outputs is each connection's input: 1, 3 | 2 in the sparse layer, 1, 1, 1 … in the dense.
    layer = SparseLinear(3, 2, topology=reading(3, {0, 2}, {1}), generator=seeded())
    dense = nn.Linear(3, 2, bias=False)
    model = nn.ModuleDict({"sparse": layer, "dense": dense, "idle": nn.Linear(1, 1), "norm": nn.LayerNorm(2)})
    inputs = torch.tensor([[1.0, 2.0, 3.0]])
    (layer(inputs).sum() + dense(inputs).sum()).backward()
    flow = gradient_flow(model)
    assert flow == {"sparse": 1 + 9 + 4, "dense": 2 * (1 + 4 + 9)}
    assert effective_gradient_flow(flow) == pytest.approx((14**0.5 + 28**0.5) / 2)


def test_gradient_flow_is_that_of_the_masked_dense_layer() -> None:
    model = SparseMLP([5, 7, 3], sparsity=0.5, generator=seeded(1))
    inputs = torch.randn(4, 5, generator=seeded(2))
    masks = {name: topology.to_mask() for name, topology in topologies(model).items()}
    dense = nn.Sequential(*(module.to_dense() if isinstance(module, SparseLinear) else module for module in model))
    for network in (model, dense):
        network(inputs).square().sum().backward()
    for name, flow in gradient_flow(model).items():
        gradient = dense.get_submodule(name).weight.grad
        kept = gradient if name not in masks else gradient[masks[name]]
        assert flow == pytest.approx(float(kept.square().sum()), rel=1e-5)


def test_gradient_flow_counts_kernels_and_not_frozen_connections() -> None:
    conv = SparseConv2d(2, 2, 3, unit="kernel", topology=Topology.full((2, 2)), generator=seeded())
    conv.freeze(torch.tensor([0, 3]))
    conv(torch.ones(1, 2, 3, 3)).sum().backward()
    assert gradient_flow(nn.Sequential(conv)) == {"0": 2 * 9}


def test_gradient_flow_without_gradient() -> None:
    with pytest.raises(ValueError, match=r"wants a model that has gradients, got one without; call it after"):
        gradient_flow(SparseMLP([3, 4, 2], sparsity=0.5))
