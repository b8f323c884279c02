"""Top-KAST, trainable thresholds and SR-STE: by hand, and against masked-dense NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_masked import layer_of, seeded
from torch import nn

from sparse_core import MASKINGS, Adam, SparseConv2d, SparseLinear, SparseMLP, Sparsifier, plan, sparse_layers, sparsify
from sparse_core.meters import nnz

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
    for _ in range(200 if backend == "gemm" else 10):
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


# Dynamic Sparse Training


def test_trainable_thresholds_by_hand() -> None:
    # One output, threshold 0.5: of weights 0.9, -0.5 and 0.3 the first two multiply.
    layer = layer_of([[0.9, -0.5, 0.3]], 1, "trainable-threshold:alpha=0.2")
    with torch.no_grad():
        layer.masking.thresholds.fill_(0.5)
    layer.masking.refresh(layer.values.detach())
    assert layer.masking.kept.tolist() == [True, True, False]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    sparsifier = Sparsifier.preset("trainable-threshold:alpha=0.2", layer, optimizer)
    outputs = layer(torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64))
    assert outputs.item() == pytest.approx(0.9 - 1.0)
    outputs.sum().backward()
    # |w| - t is 0.4, 0 and -0.2, where the step's derivative H is 0.4, 2 and 1.2.
    # Weights: x (kept + |w| H); the threshold: -Σ x w H.
    assert layer.values.grad.tolist() == pytest.approx([1 + 0.9 * 0.4, 2 * (1 + 0.5 * 2), 4 * 0.3 * 1.2])
    pull = -(0.9 * 0.4 - 2 * 0.5 * 2 + 4 * 0.3 * 1.2)  # 0.2
    assert layer.masking.thresholds.grad.tolist() == pytest.approx([pull])
    optimizer.step()  # two weights multiply where one is to: α exp(-t) pushes the threshold up
    assert layer.masking.thresholds.item() == pytest.approx(0.5 - 0.1 * (pull - 0.2 * np.exp(-0.5)))
    assert layer.values.tolist() == pytest.approx([0.9 - 0.136, -0.5 - 0.4, 0.3 - 0.144])
    sparsifier.step()
    assert layer.masking.kept.tolist() == [True, True, False]


def numpy_threshold_step(
    weights: np.ndarray, thresholds: np.ndarray, alpha: float, goal: int, inputs: np.ndarray, given: np.ndarray,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Outputs and new weights and thresholds of one step of SGD at rate 0.1, element by element."""
    used, step, slope = np.zeros_like(weights), np.zeros_like(weights), np.zeros_like(weights)
    for i, j in np.ndindex(*weights.shape):
        x = abs(weights[i, j]) - thresholds[i]
        step[i, j] = x >= 0
        used[i, j] = weights[i, j] * step[i, j]
        slope[i, j] = 2 - 4 * abs(x) if abs(x) <= 0.4 else 0.4 if abs(x) <= 1 else 0
    dense = given.T @ inputs
    of_weights = dense * step + dense * weights * slope * np.sign(weights)
    of_thresholds = -(dense * weights * slope).sum(1)
    if step.sum() > goal:
        of_thresholds -= alpha * np.exp(-thresholds)
    return inputs @ used.T, weights - 0.1 * of_weights, thresholds - 0.1 * of_thresholds


def test_trainable_thresholds_agree_with_a_dense_version() -> None:
    draws = np.random.default_rng(1)
    for _ in range(200):
        rows, columns, batch = (int(size) for size in draws.integers(1, 9, 3))
        weights, thresholds = draws.normal(size=(rows, columns)), draws.uniform(0, 1, rows)
        count, alpha = int(draws.integers(1, rows * columns + 1)), float(draws.uniform(0, 1))
        name = f"trainable-threshold:alpha={alpha!r}"
        layer = layer_of(weights.tolist(), count, name)
        with torch.no_grad():
            layer.masking.thresholds.copy_(torch.tensor(thresholds))
        layer.masking.refresh(layer.values.detach())
        if not layer.masking.thresholds.any():
            continue  # nothing was left, so it begins again
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        Sparsifier.preset(name, layer, optimizer)
        inputs, given_gradient = draws.normal(size=(batch, columns)), draws.normal(size=(batch, rows))
        outputs = layer(torch.tensor(inputs))
        outputs.backward(torch.tensor(given_gradient))
        optimizer.step()
        expected = numpy_threshold_step(weights, thresholds, alpha, count, inputs, given_gradient)
        found = outputs, layer.values.view(rows, columns), layer.masking.thresholds
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-9, atol=1e-12)


def test_a_layer_that_is_left_with_a_hundredth_begins_again() -> None:
    layer = layer_of([[1.0] * 100, [0.1] * 100], 1, "trainable-threshold")
    with torch.no_grad():
        layer.masking.thresholds.fill_(0.5)
    layer.masking.refresh(layer.values.detach())
    assert layer.multiplied == 100
    with torch.no_grad():
        layer.values[2:100] = 0.2
    layer.masking.refresh(layer.values.detach())
    assert layer.multiplied == 200
    assert layer.masking.thresholds.tolist() == [0, 0]


def test_thresholds_must_be_in_the_optimizer() -> None:
    layer = layer_of([[1.0, 2.0]], 1, "trainable-threshold")
    with pytest.raises(ValueError, match="the optimizer does not hold the values of ''"):
        Sparsifier.preset("trainable-threshold", layer, torch.optim.SGD([layer.values], lr=0.1))


# SR-STE


def test_sr_ste_by_hand() -> None:
    # 2 of every 4: -3 and 2, then 1 and the first of two equal ones.
    layer = layer_of([[1.0, -3.0, 2.0, 0.5, 0.2, 0.2, 1.0, 0.1]], 4, "sr-ste:decay=0.5")
    assert layer.masking.kept.tolist() == [False, True, True, False, True, False, True, False]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    sparsifier = Sparsifier.preset("sr-ste:decay=0.5", layer, optimizer)
    outputs = layer(torch.arange(1.0, 9.0, dtype=torch.float64)[None])
    assert outputs.item() == pytest.approx(-6 + 6 + 1 + 7)
    (-outputs).sum().backward()
    optimizer.step()  # straight through: + 0.1 x for all; and - 0.1 · 0.5 w for what does not multiply
    expected = [1.0 + 0.1 - 0.05, -2.8, 2.3, 0.5 + 0.4 - 0.025, 0.7, 0.2 + 0.6 - 0.01, 1.7, 0.1 + 0.8 - 0.005]
    assert layer.values.tolist() == pytest.approx(expected)
    sparsifier.step()
    assert layer.masking.kept.tolist() == [False, True, True, False, False, False, True, True]  # 0.895 above 0.79


def test_sr_ste_agrees_with_a_masked_dense_version() -> None:
    draws = np.random.default_rng(2)
    for _ in range(200):
        m = int(draws.integers(2, 6))
        n, rows, groups, batch = int(draws.integers(1, m)), *(int(size) for size in draws.integers(1, 5, 3))
        weights, decay = draws.normal(size=(rows, groups * m)).round(1), float(draws.uniform(0, 1))
        name = f"sr-ste:n={n}:m={m}:decay={decay!r}"
        layer = layer_of(weights.tolist(), rows * groups * n, name)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        Sparsifier.preset(name, layer, optimizer)
        inputs, given_gradient = draws.normal(size=(batch, groups * m)), draws.normal(size=(batch, rows))
        outputs = layer(torch.tensor(inputs))
        outputs.backward(torch.tensor(given_gradient))
        optimizer.step()
        mask = np.zeros_like(weights)
        for row, group in np.ndindex(rows, groups):
            part = np.abs(weights[row, group * m : group * m + m])
            for best in sorted(range(m), key=lambda place: -part[place])[:n]:
                mask[row, group * m + best] = 1
        np.testing.assert_allclose(outputs.detach().numpy(), inputs @ (weights * mask).T, atol=1e-12)
        expected = weights - 0.1 * (given_gradient.T @ inputs + decay * (1 - mask) * weights)
        np.testing.assert_allclose(layer.values.detach().view(rows, -1).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_sr_ste_groups_input_channels_of_a_convolution() -> None:
    conv = SparseConv2d(4, 3, 2, sparsity=0.0, generator=seeded())
    conv.masking = MASKINGS["sr-ste:n=1:m=2"].choose(conv, conv.cells // 2)
    kept = conv.masking.kept.view(3, 4, 2, 2)
    assert (kept[:, :2].sum(1) == 1).all()
    assert (kept[:, 2:].sum(1) == 1).all()
    images = torch.randn(2, 4, 5, 5, generator=seeded(1))
    torch.testing.assert_close(conv(images), conv.to_dense()(images))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1000))
def test_exactly_n_of_every_m_whatever_happens(n: int, more: int, rows: int, groups: int, seed: int) -> None:
    m = n + more
    layer = SparseLinear(groups * m, rows, sparsity=0.0, generator=seeded(seed))
    with torch.no_grad():
        layer.values.mul_(3).round_()  # with ties, and zeros
    name = f"sr-ste:n={n}:m={m}"
    layer.masking = MASKINGS[name].choose(layer, rows * groups * n)
    optimizer = Adam(layer.parameters(), lr=0.3)
    sparsifier = Sparsifier.preset(name, layer, optimizer)
    for step in range(4):
        optimizer.zero_grad()
        layer(torch.randn(4, groups * m, generator=seeded(step))).square().mean().backward()
        optimizer.step()
        sparsifier.step()
        assert (layer.masking.kept.view(-1, m).sum(1) == n).all()
        weakest = layer.values.abs().where(layer.masking.kept, torch.inf).view(-1, m).amin(1)
        assert (layer.values.abs().where(~layer.masking.kept, 0).view(-1, m).amax(1) <= weakest).all()


def test_layers_whose_inputs_are_no_multiple_stay_dense() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 16), nn.Linear(16, 4))
    assert plan(model, topology="sr-ste").skipped == {
        "0": "its 6 inputs are no multiple of 4", "2": "kept dense by `dense='output'`"
    }  # fmt: skip
    masked = sparsify(model, topology="sr-ste:n=1:m=8", dense=())
    assert list(sparse_layers(masked)) == ["1", "2"]
    assert nnz(masked) == 6 * 8 + 8 * 16 / 8 + 16 * 4 / 8
    assert [type(layer) for layer in SparseMLP([6, 8, 16, 4], topology="sr-ste")][::2] == [
        nn.Linear, SparseLinear, nn.Linear
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "topology", "message"),
    [
        (0.9, "sr-ste", r"masking 'sr-ste' makes every masked layer 0\.5 sparse by its groups, got sparsity 0\.9"),
        (None, "sr-ste:n=4:m=4", r"`n` of `m` weights multiply, 1 ≤ n < m; got n=4, m=4"),
        (None, "sr-ste:n=1:m=7", r"no layer's inputs are a multiple of 7, which 'sr-ste:n=1:m=7' takes together"),
        (None, "top-kast", r"`sparsity` must be"),
        (0.5, "trainable-threshold:alpha=-1", r"`alpha` must not be negative, got -1\.0"),
        (None, "sr-ste:decay=-1", r"`decay` must not be negative, got -1\.0"),
    ],
)
def test_sparsities_and_groups_that_cannot_be(asked: float | None, topology: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseMLP([8, 16, 16, 4], sparsity=asked, topology=topology)


def test_a_model_without_a_layer_of_whole_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer of this model can be made sparse:\n0: stays dense, its 6 inputs"):
        sparsify(nn.Sequential(nn.Linear(6, 3)), topology="sr-ste")
    layer = SparseLinear(6, 2, sparsity=0.0, generator=seeded())
    with pytest.raises(ValueError, match=r"2 of every 4 weights need inputs that 4 divides.*got 6 inputs"):
        MASKINGS["sr-ste"].choose(layer, 6)


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
