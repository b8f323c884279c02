"""The row-blocked backend: what `gemm` computes, never more than a block of the weight at a time."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_core import Adam, Rewiring, SparseLinear, SparseMLP, Sparsifier, Topology, sparse_layers
from sparse_core.meters import memory
from sparse_core.signals import Capture

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
BLOCK_BYTES = "sparse_core.rows.BLOCK_BYTES"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows of ten float64 at a time."""
    monkeypatch.setattr(BLOCK_BYTES, 3 * 10 * 8)


def pair(topology: Topology, **options: Any) -> tuple[SparseLinear, SparseLinear]:
    """The same layer on `gemm` and on `rows`."""
    rows, columns = topology.shape
    return tuple(  # type: ignore[return-value]
        SparseLinear(columns, rows, topology=topology, generator=seeded(), backend=backend, **options)
        for backend in ("gemm", "rows")
    )


def gradients(layer: SparseLinear, inputs: Tensor) -> list[Tensor]:
    """Output, then gradients of the inputs and of every parameter."""
    inputs = inputs.clone().requires_grad_()
    layer.zero_grad()
    output = layer(inputs)
    output.backward(torch.randn(output.shape, dtype=output.dtype, generator=seeded(9)))
    return [output.detach(), inputs.grad, *(parameter.grad for parameter in layer.parameters())]


def assert_agree(one: SparseLinear, other: SparseLinear, *leading: int) -> None:
    dtype = one.values.dtype
    inputs = torch.randn(*leading, one.in_features, dtype=dtype, generator=seeded(3))
    for ours, theirs in zip(gradients(one, inputs), gradients(other, inputs), strict=True):
        scale = max(1.0, float(theirs.abs().max()) if theirs.numel() else 1.0)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(
    rows=st.integers(1, 30), columns=st.integers(1, 30), batch=st.integers(0, 40), density=st.floats(0, 1),
    frozen=st.floats(0, 1), bias=st.booleans(), seed=st.integers(0, 99), block=st.sampled_from([1, 500, 4000, 1 << 26]),
)  # fmt: skip
def test_agrees_with_gemm(
    dtype: torch.dtype, rows: int, columns: int, batch: int, density: float, frozen: float, bias: bool, seed: int,
    block: int,
) -> None:  # fmt: skip
    topology = Topology.random((rows, columns), round(density * rows * columns), seeded(seed))
    layers = pair(topology, dtype=dtype, bias=bias)
    for layer in layers:
        layer.freeze(layer.positions[: round(frozen * topology.nnz)], torch.arange(rows // 2) if bias else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BLOCK_BYTES, block)
        assert_agree(*layers, batch)


def change(layer: SparseLinear, drop: int, grow: int, seed: int = 0) -> Rewiring:
    movable = layer.positions.clone()
    vacant = layer.topology.to_mask().flatten().logical_not().nonzero().squeeze(1)
    order = torch.randperm(vacant.numel(), generator=seeded(seed))
    return Rewiring.of(layer.shape, movable, torch.arange(drop) * 2, vacant[order[:grow]].sort().values)


@pytest.mark.usefixtures("small_blocks")
def test_agrees_through_a_layers_life() -> None:
    layers = pair(Topology.random((12, 10), 50, seeded()), dtype=torch.float64)
    other = SparseLinear(10, 12, sparsity=0.8, generator=seeded(5), dtype=torch.float64)
    for step, (drop, grow) in enumerate([(20, 20), (5, 11)]):
        rewiring = change(layers[0], drop, grow)
        for layer in layers:
            layer.rewire(rewiring, fill=0.5)
        assert_agree(*layers, 2, 3)
        for layer in layers:
            layer.freeze(layer.positions[::3], torch.tensor([2 + step]))
        assert_agree(*layers, 7)
    for layer in layers:
        layer.load_state_dict(other.state_dict())
    assert_agree(*layers, 7)
    for again in (copy.deepcopy(layers[1]), pickle.loads(pickle.dumps(layers[1]))):
        assert_agree(layers[0], again, 7)


@pytest.mark.usefixtures("small_blocks")
def test_captures_what_gemm_captures() -> None:
    dense = []
    for layer in pair(Topology.random((12, 10), 50, seeded()), dtype=torch.float64):
        layer.capture = Capture(1)
        layer(torch.randn(3, 5, 10, dtype=torch.float64, generator=seeded())).square().sum().backward()
        dense.append(layer.capture.gradient_rows(0, 12))
    torch.testing.assert_close(dense[1], dense[0], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_acts_as_on_gemm(dtype: torch.dtype) -> None:
    found = []
    for layer in pair(Topology.random((12, 10), 50, seeded())):
        inputs = torch.randn(4, 10, generator=seeded()).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(inputs)
        output.sum().backward()
        found.append([output.detach(), inputs.grad, layer.values.grad, layer.bias.grad])
    torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=0.02)


def test_a_wrong_dtype_is_torchs_own_error() -> None:
    for layer in pair(Topology.random((12, 10), 50, seeded())):
        with pytest.raises(RuntimeError, match="dtype"):
            layer(torch.ones(2, 10, dtype=torch.float64))


def test_only_what_is_wanted_is_computed() -> None:
    _, layer = pair(Topology.random((5, 6), 10, seeded()))
    layer.values.requires_grad_(False)
    inputs = torch.ones(2, 6, requires_grad=True)
    layer(inputs).sum().backward()
    assert layer.values.grad is None
    assert inputs.grad is not None
    assert layer.bias.grad.tolist() == [2] * 5


def test_double_backward_is_refused() -> None:
    _, layer = pair(Topology.random((5, 6), 10, seeded()))
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.autograd.grad(layer(torch.ones(2, 6)).square().sum(), layer.values, create_graph=True)


def test_a_change_between_forward_and_backward_is_noticed() -> None:
    spoilers: list[Callable[[SparseLinear], Any]] = [
        lambda layer: layer.rewire(change(layer, 3, 3)),
        lambda layer: torch.no_grad()(layer.values.add_)(1),
    ]
    for spoil in spoilers:
        _, layer = pair(Topology.random((12, 10), 50, seeded()))
        loss = layer(torch.ones(2, 10)).sum()
        spoil(layer)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives out."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.cells = max(self.cells, tensor.numel())
        return result


def test_no_more_than_a_block_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BLOCK_BYTES, 5 * 400 * 4)
    layer = SparseLinear(400, 300, sparsity=0.99, generator=seeded(), backend="rows")
    inputs = torch.ones(2, 400, requires_grad=True)
    with Largest() as largest:
        layer(inputs).sum().backward()
    assert largest.cells == 5 * 400
    assert memory(layer).scratch == 5 * 400 * 4
    two = nn.Sequential(layer, SparseLinear(300, 20, sparsity=0.5, generator=seeded(), backend="gemm"))
    # The narrow layer's weight waits for its backward pass; the largest of the rest is its gradient, or a block.
    assert memory(two).scratch == (20 * 300 + max(5 * 400, 20 * 300)) * 4


def test_a_compiled_model_falls_back() -> None:
    _, layer = pair(Topology.random((5, 6), 10, seeded()))
    model, inputs = nn.Sequential(layer, nn.ReLU()), torch.randn(3, 6, generator=seeded())
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(inputs), model(inputs))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("preset", ["set", "rigl"])
def test_takes_gemms_trajectory(preset: str) -> None:
    models = []
    for backend in ("gemm", "rows"):
        model = SparseMLP([6, 16, 3], sparsity=0.6, generator=seeded(), backend=backend).double()
        optimizer = Adam(model.parameters(), lr=0.01)
        sparsifier = Sparsifier.preset(preset, model, optimizer, period=2, total_steps=100, seed=0)
        for step in range(50):
            inputs = torch.randn(20, 6, dtype=torch.float64, generator=seeded(step))
            optimizer.zero_grad()
            (model(inputs) - inputs[:, :3].sin()).square().mean().backward()
            optimizer.step()
            sparsifier.step()
        assert sparsifier.changes >= 15
        models.append(sparse_layers(model))
    for name, layer in models[0].items():
        assert layer.topology == models[1][name].topology
        torch.testing.assert_close(layer.values, models[1][name].values, rtol=0, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.usefixtures("small_blocks")
def test_cuda_agrees_with_the_cpu() -> None:
    _, layer = pair(Topology.random((12, 10), 50, seeded()), dtype=torch.float64)
    there = copy.deepcopy(layer).cuda()
    inputs = torch.randn(7, 10, dtype=torch.float64, generator=seeded())
    for ours, theirs in zip(gradients(layer, inputs), gradients_on(there, inputs), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-12)


def gradients_on(layer: SparseLinear, inputs: Tensor) -> list[Tensor]:
    inputs = inputs.to(layer.values.device).requires_grad_()
    output = layer(inputs)
    upstream = torch.randn(output.shape, dtype=output.dtype, generator=seeded(9)).to(output.device)
    output.backward(upstream)
    found = [output.detach(), inputs.grad, *(parameter.grad for parameter in layer.parameters())]
    return [tensor.cpu() for tensor in found]
