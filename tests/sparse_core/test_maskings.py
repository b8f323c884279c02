"""Methods that keep more weights than they multiply: by hand, against masked-dense NumPy, and end to end."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparse_core import PRESETS, Adam, SparseLinear, SparseMLP, Sparsifier, sparse_layers, sparsify
from sparse_core.maskings import MASKINGS
from sparse_core.meters import forward_flops, layer_counts, memory, nnz, sparsity, stored, training_flops


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_of(weights: list[list[float]], count: int, name: str, bias: bool = False, backend: str = "gemm") -> Any:
    """A masked layer with these weights (out, in), in float64."""
    matrix = torch.tensor(weights, dtype=torch.float64)
    layer = SparseLinear(
        matrix.shape[1], matrix.shape[0], bias, sparsity=0.0, generator=seeded(), dtype=torch.float64, backend=backend
    )
    with torch.no_grad():
        layer.values.copy_(matrix.flatten())
    layer.masking = MASKINGS[name].choose(layer, count)
    return layer


# Top-KAST


def test_top_kast_by_hand() -> None:
    # K = 2 of six weights multiply (5 and -4), and as backward = 1.5 three learn (-3, too); 2, 1 and 0.5 do not.
    layer = layer_of([[5.0, 1.0, -3.0], [0.5, -4.0, 2.0]], 2, "top-kast:backward=1.5:exploration=0.6")
    inputs = torch.tensor([[1.0, 10.0, 100.0]], dtype=torch.float64)
    outputs = layer(inputs)
    assert outputs.tolist() == [[5.0, -40.0]]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    sparsifier = Sparsifier.preset("top-kast:backward=1.5:exploration=0.6", layer, optimizer, period=2)
    outputs.sum().backward()
    assert layer.values.grad.tolist() == [1, 0, 100, 0, 10, 0]
    # λ θ = 0.6 · 5 and 0.6 · -4 for what multiplies, λ θ / D = 0.6 · -3 / (1/3) for what explores.
    optimizer.step()
    after = [5 - 0.1 * (1 + 3), 1, -3 - 0.1 * (100 - 5.4), 0.5, -4 - 0.1 * (10 - 2.4), 2]
    assert layer.values.tolist() == pytest.approx(after)  # 4.6, 1, -12.46, 0.5, -4.76, 2
    sparsifier.step()
    assert layer(inputs)[0, 0].item() == pytest.approx(4.6)  # nothing is chosen anew before the period is over
    sparsifier.step()
    assert layer.masking.kept.tolist() == [False, False, True, False, True, False]
    assert layer.masking.trained.tolist() == [True, False, True, False, True, False]
    assert layer(inputs)[0].tolist() == pytest.approx([-1246, -47.6])


def numpy_top_kast(
    weights: np.ndarray, count: int, backward: float, exploration: float, inputs: np.ndarray, given: np.ndarray,
    rate: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Outputs, input gradient and new weights of one step of plain SGD, from the paper's text, with dense masks."""
    order = np.argsort(-np.abs(weights).ravel(), kind="stable")
    forward, both = (np.zeros(weights.size, bool) for _ in range(2))
    forward[order[:count]] = True
    both[order[: int(backward * count + 1e-9)]] = True
    forward, both = forward.reshape(weights.shape), both.reshape(weights.shape)
    used = np.where(forward, weights, 0)
    density = count / weights.size
    pull = np.where(forward, weights, np.where(both, weights / density, 0))
    gradient = np.where(both, given.T @ inputs, 0) + exploration * pull
    return inputs @ used.T, given @ used, weights - rate * gradient


@pytest.mark.parametrize("backend", ["gemm", "csr", "rows"])
def test_top_kast_agrees_with_a_masked_dense_version(backend: str) -> None:
    draws = np.random.default_rng(0)
    for _ in range(200 if backend == "gemm" else 20):
        rows, columns, batch = (int(size) for size in draws.integers(1, 9, 3))
        weights = draws.normal(size=(rows, columns)).round(1)  # with ties
        count = int(draws.integers(1, rows * columns + 1))
        backward, exploration = float(draws.uniform(1, 3)), float(draws.uniform(0, 1))
        name = f"top-kast:backward={backward!r}:exploration={exploration!r}"
        layer = layer_of(weights.tolist(), count, name, backend=backend)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        Sparsifier.preset(name, layer, optimizer)
        inputs, given_gradient = draws.normal(size=(batch, columns)), draws.normal(size=(batch, rows))
        x = torch.tensor(inputs, requires_grad=True)
        outputs = layer(x)
        outputs.backward(torch.tensor(given_gradient))
        optimizer.step()
        expected = numpy_top_kast(weights, count, backward, exploration, inputs, given_gradient, 0.1)
        found = outputs.detach(), x.grad, layer.values.detach().view(rows, columns)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["SGD", "Adam", "ours"]))
def test_what_is_outside_the_backward_set_stays_whatever_the_optimizer(seed: int, kind: str) -> None:
    layer = SparseLinear(7, 5, sparsity=0.0, generator=seeded(seed))
    layer.masking = MASKINGS["top-kast"].choose(layer, 6)
    optimizer = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=0.1),
        "Adam": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
        "ours": lambda p: Adam(p, lr=0.1, weight_decay=0.1),
    }[kind](layer.parameters())
    sparsifier = Sparsifier.preset("top-kast", layer, optimizer, period=3)
    for step in range(9):
        before, outside = layer.values.detach().clone(), ~layer.masking.trained
        assert layer.masking.kept.sum() == 6
        assert layer.masking.trained.sum() == 12
        assert not (layer.masking.kept & outside).any()
        optimizer.zero_grad()
        layer(torch.randn(4, 7, generator=seeded(step))).square().mean().backward()
        optimizer.step()
        assert torch.equal(layer.values[outside], before[outside])
        assert (layer.values != before)[~outside].any()
        sparsifier.step()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("top-kast:backward=0.5", r"`backward` must be at least 1: what multiplies learns; got 0\.5"),
        ("top-kast:exploration=-1", r"`exploration` must not be negative, got -1\.0"),
        ("top-kast:forward=1", r"masking 'top-kast' has no option 'forward'; .*known: backward, exploration"),
    ],
)
def test_options_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_of([[1.0, 2.0]], 1, name)


# What holds for all of them


def network(name: str, seed: int = 0, asked: float = 0.75, **options: Any) -> SparseMLP:
    return SparseMLP([8, 16, 16, 4], sparsity=asked, topology=name, generator=seeded(seed), dense=(), **options)


def train(model: nn.Module, optimizer: Any, sparsifier: Sparsifier, steps: range) -> Tensor:
    for step in steps:
        inputs = torch.randn(16, 8, generator=seeded(step))
        optimizer.zero_grad()
        loss = (model(inputs) - inputs[:, :4]).square().mean()
        loss.backward()
        optimizer.step()
        sparsifier.step()
    return loss.detach()


MASKED = [name for name, preset in PRESETS.items() if preset.masking]


@pytest.mark.parametrize("name", MASKED)
def test_it_learns_with_the_weights_that_multiply_and_pays_for_all(name: str) -> None:
    model = network(name)
    optimizer = Adam(model.parameters(), lr=0.03)
    sparsifier = Sparsifier.preset(name, model, optimizer, period=5, total_steps=120)
    cells = 8 * 16 + 16 * 16 + 16 * 4
    first = train(model, optimizer, sparsifier, range(1))
    last = train(model, optimizer, sparsifier, range(1, 120))
    assert last < 0.5 * first
    assert stored(model) == cells
    assert forward_flops(model, weights=sparsifier.mean_weights) == 2 * cells
    assert training_flops(model) == 6 * cells - 2 * 8 * 16
    counts = layer_counts(model)
    assert all(count.nnz == sparse_layers(model)[key].multiplied for key, count in counts.items())
    assert memory(model).parameters >= 4 * cells
    if PRESETS[name].exact:
        assert nnz(model) == cells / 4
        assert sparsity(model) == 0.75
        assert sum(sparsifier.mean_weights.values()) == cells / 4


@pytest.mark.parametrize("name", MASKED)
def test_followers_keep_the_same_and_a_checkpoint_brings_everything_back(name: str) -> None:
    def made() -> tuple[SparseMLP, SparseMLP, Any, Sparsifier]:
        model = network(name)
        target = copy.deepcopy(model)
        optimizer = Adam(model.parameters(), lr=0.02)
        sparsifier = Sparsifier.preset(name, model, optimizer, period=3, total_steps=40, followers=[target], seed=0)
        return model, target, optimizer, sparsifier

    model, target, optimizer, sparsifier = made()
    train(model, optimizer, sparsifier, range(20))
    online = [layer.masking.kept for layer in sparse_layers(model).values()]
    followed = [layer.masking.kept for layer in sparse_layers(target).values()]
    assert all(torch.equal(*pair) for pair in zip(online, followed, strict=True))
    saved = copy.deepcopy([part.state_dict() for part in (model, target, optimizer, sparsifier)])
    again = made()
    for part, state in zip(again, saved, strict=True):
        part.load_state_dict(state)
    train(model, optimizer, sparsifier, range(20, 40))
    train(again[0], again[2], again[3], range(20, 40))
    for ours, theirs in zip((model, target), again[:2], strict=True):
        assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())
    assert sparsifier.mean_weights == again[3].mean_weights
    assert sparsifier.changes == again[3].changes == 13


@pytest.mark.parametrize("name", MASKED)
def test_a_user_s_own_model_is_masked_with_its_weights(name: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    dense = copy.deepcopy(model)
    made = sparsify(model, 0.75, topology=name, dense=(), generator=seeded())
    for index in ("0", "2"):
        layer = sparse_layers(made)[index]
        matrix = dense.get_submodule(index).weight
        assert torch.equal(layer.values.view_as(matrix), matrix)
        assert torch.equal(layer.to_dense().weight, matrix * layer.masking.kept.view_as(matrix))


def test_a_masked_layer_neither_moves_nor_freezes() -> None:
    layer = layer_of([[1.0, 2.0]], 1, "top-kast")
    with pytest.raises(ValueError, match="a layer masked by TopKast cannot freeze part of its connections"):
        layer.freeze()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"layer '' has TopKast masks, the topology wants none; give `sparsify`"):
        Sparsifier.preset("set", layer, optimizer)
    with pytest.raises(ValueError, match=r"layer '' was masked with other options \(backward\)"):
        Sparsifier.preset("top-kast:backward=3", layer, optimizer)
    plain = SparseLinear(4, 4, sparsity=0.5, generator=seeded())
    with pytest.raises(ValueError, match="layer '' has no masks, the topology wants TopKast"):
        Sparsifier.preset("top-kast", plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="a masked layer keeps every weight it may ever multiply: 16 values, got 8"):
        MASKINGS["top-kast"].choose(plain, 4)


@pytest.mark.parametrize("name", MASKED)
def test_masks_are_no_topology_and_wait_for_nobody(name: str) -> None:
    model = network(name)
    optimizer = Adam(model.parameters(), lr=0.02)
    sparsifier = Sparsifier.preset(name, model, optimizer, period=2)
    for _ in range(4):
        assert sparsifier.step(allowed=False) == {}
    assert sparsifier.changes == 2
