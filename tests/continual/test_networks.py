"""Networks without connections, and what is put into them."""

import pytest
import torch
from torch.nn import functional

from continual.networks import (
    Connections,
    SubspaceNetwork,
    all_biases,
    connect,
    frozen_connections,
    merged,
    movable_connections,
)


def part(*places: int) -> Connections:
    positions = torch.tensor(places, dtype=torch.int64)
    return Connections(positions, positions.float() + 0.5)


def test_merged_and_restricted_by_hand() -> None:
    whole = merged([part(3, 9), part(), part(1, 5)])
    assert whole.positions.tolist() == [1, 3, 5, 9]
    assert whole.values.tolist() == [1.5, 3.5, 5.5, 9.5]
    some = whole.restricted(torch.tensor([0, 3, 9, 11]))
    assert (some.positions.tolist(), some.values.tolist()) == ([3, 9], [3.5, 9.5])


def test_a_new_network_is_empty() -> None:
    network = SubspaceNetwork(6, (4, 3), 2)
    assert network.shapes == {"layers.0": (4, 6), "layers.1": (3, 4), "layers.2": (2, 3)}
    assert network.upstream == {"layers.1": "layers.0", "layers.2": "layers.1"}
    assert all(layer.nnz == 0 for layer in network.chain.values())
    assert torch.equal(network(torch.rand(5, 2, 3)), torch.zeros(5, 2))


def test_connect_gives_exactly_that() -> None:
    network = SubspaceNetwork(3, (2,), 2)
    layer = network.chain["layers.0"]
    parameters = [layer.values, layer.bias]
    layer.values.grad = torch.empty(0)
    connect(layer, part(1, 4), part(0, 5), torch.tensor([10.0, 20.0]), torch.tensor([1]))
    dense = torch.tensor([[0.5, 1.5, 0.0], [0.0, 4.5, 5.5]])
    x = torch.rand(7, 3)
    torch.testing.assert_close(layer(x), functional.linear(x, dense, torch.tensor([10.0, 20.0])))
    assert movable_connections(layer).positions.tolist() == [0, 5]
    assert movable_connections(layer).values.tolist() == [0.5, 5.5]
    assert frozen_connections(layer).positions.tolist() == [1, 4]
    assert frozen_connections(layer).values.tolist() == [1.5, 4.5]
    assert layer.frozen_bias.tolist() == [1]
    assert all_biases(layer).tolist() == [10.0, 20.0]
    # An optimizer that holds them goes on holding them, and no gradient of other connections is left.
    assert [layer.values, layer.bias][0] is parameters[0]
    assert layer.bias is parameters[1]
    assert layer.values.grad is None
    connect(layer, part(), part(2), torch.zeros(2))
    assert movable_connections(layer).positions.tolist() == [2]
    assert layer.frozen_bias.numel() == 0


def test_copies_are_copies() -> None:
    network = SubspaceNetwork(3, (2,), 2)
    layer = network.chain["layers.0"]
    connect(layer, part(1), part(0), torch.zeros(2))
    taken = [movable_connections(layer).values, frozen_connections(layer).values, all_biases(layer)]
    before = [tensor.clone() for tensor in taken]
    with torch.no_grad():
        layer.values.add_(1)
        layer.frozen_values.add_(1)
        layer.bias.add_(1)
    assert all(torch.equal(one, two) for one, two in zip(taken, before, strict=True))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_convolutions_pooling_and_the_way_into_the_linear_layers(norm: str) -> None:
    network = SubspaceNetwork((2, 8, 8), (5,), 3, channels=(4, 3), norm=norm).eval()
    # 3 channels of 2×2 after two poolings: each feeds four inputs, one after the other.
    assert network.shapes == {"layers.0": (4, 2), "layers.1": (3, 4), "layers.2": (5, 12), "layers.3": (3, 5)}
    draws = torch.Generator().manual_seed(0)
    dense = []
    for name, layer in network.chain.items():
        rows, columns = network.shapes[name]
        positions = torch.randperm(rows * columns, generator=draws)[: rows * columns // 2].sort().values
        values = torch.randn(len(positions), *layer.values.shape[1:], generator=draws)
        bias = torch.randn(rows, generator=draws)
        connect(layer, part()._replace(values=values[:0]), Connections(positions, values), bias)
        weight = torch.zeros(rows * columns, *values.shape[1:])
        weight[positions] = values
        dense.append((weight.view(rows, columns, *([3, 3] if values.dim() > 1 else [])), bias))
    x = torch.randn(6, 2, 8, 8, generator=draws)
    y = x
    for weight, bias in dense[:2]:
        y = functional.conv2d(y, weight, bias, padding=1)
        y = y / (1 + 1e-5) ** 0.5 if norm == "batch" else y
        y = functional.max_pool2d(y.relu(), 2)
    y = functional.linear(y.flatten(1), *dense[2])
    y = (y / (1 + 1e-5) ** 0.5 if norm == "batch" else y).relu()
    torch.testing.assert_close(network.features(x), y)
    torch.testing.assert_close(network(x), functional.linear(y, *dense[3]))
    assert [tuple(each.shape) for each in network.activations(x)] == [(6, 4, 4, 4), (6, 3, 2, 2), (6, 5)]
    assert list(network.norm_of) == (["layers.0", "layers.1", "layers.2"] if norm == "batch" else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_copy_has_the_same_layers(dtype: torch.dtype) -> None:
    network = SubspaceNetwork((1, 8, 8), (5,), 3, channels=(4,), norm="batch", dtype=dtype)
    connect(network.chain["layers.1"], part()._replace(values=torch.empty(0, dtype=dtype)), part(1), torch.zeros(5))
    copy = network.empty_copy()
    assert copy.shapes == network.shapes
    assert all(layer.nnz == 0 for layer in copy.chain.values())
    assert {parameter.dtype for parameter in copy.parameters()} == {dtype}
    assert list(copy.norm_of) == list(network.norm_of)


@pytest.mark.parametrize(
    ("arguments", "choices", "message"),
    [
        ((0, (3,), 2), {}, "must be positive, got 0"),
        ((4, (), 2), {}, r"must be positive, got 4, \[\], 2"),
        ((64, (3,), 2), {"channels": (4,)}, r"`channels` need `inputs` as \(channels, height, width\), got 64"),
        (((1, 8, 8), (3,), 2), {"channels": (4, 4, 4, 4)}, "too small for 4 poolings; take fewer"),
        ((4, (3,), 2), {"norm": "layer"}, "`norm` must be one of none, batch, got 'layer'"),
    ],
)
def test_networks_that_cannot_be(arguments: tuple, choices: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SubspaceNetwork(*arguments, **choices)
