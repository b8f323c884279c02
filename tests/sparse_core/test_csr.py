import copy
import os
import pickle
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sparse_core import Adam, Rewiring, SparseLinear, SparseMLP, Sparsifier, Topology, sparse_layers
from sparse_core.signals import Capture

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(topology: Topology, **options: Any) -> tuple[SparseLinear, SparseLinear]:
    """The same layer on both backends."""
    rows, columns = topology.shape
    return tuple(  # type: ignore[return-value]
        SparseLinear(columns, rows, topology=topology, generator=seeded(), backend=backend, **options)
        for backend in ("gemm", "csr")
    )


def gradients(layer: SparseLinear, inputs: Tensor) -> list[Tensor]:
    """Output, then gradients of the inputs and of every parameter."""
    inputs = inputs.clone().requires_grad_()
    layer.zero_grad()
    output = layer(inputs)
    upstream = torch.randn(output.shape, dtype=output.dtype, generator=seeded(9))
    output.backward(upstream)
    return [output.detach(), inputs.grad, *(parameter.grad for parameter in layer.parameters())]


def assert_agree(one: SparseLinear, other: SparseLinear, batch: int = 9) -> None:
    dtype = one.values.dtype
    inputs = torch.randn(batch, one.in_features, dtype=dtype, generator=seeded(3))
    for ours, theirs in zip(gradients(one, inputs), gradients(other, inputs), strict=True):
        scale = max(1.0, float(theirs.abs().max()) if theirs.numel() else 1.0)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(
    rows=st.integers(1, 30), columns=st.integers(1, 30), batch=st.integers(0, 140), density=st.floats(0, 1),
    frozen=st.floats(0, 1), bias=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_both_backends_agree(
    dtype: torch.dtype, rows: int, columns: int, batch: int, density: float, frozen: float, bias: bool, seed: int
) -> None:
    topology = Topology.random((rows, columns), round(density * rows * columns), seeded(seed))
    layers = pair(topology, dtype=dtype, bias=bias)
    for layer in layers:
        layer.freeze(layer.positions[: round(frozen * topology.nnz)], torch.arange(rows // 2) if bias else None)
    assert_agree(*layers, batch)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "mask",
    [torch.zeros(4, 3), torch.ones(4, 3), torch.eye(5)[:, :1], torch.diag(torch.tensor([1.0, 0, 1, 0]))],
    ids=["empty", "full", "one connection", "empty rows"],
)
@pytest.mark.parametrize("batch", [1, 16, 100])
def test_backends_agree_on_corner_cases(dtype: torch.dtype, mask: Tensor, batch: int) -> None:
    assert_agree(*pair(Topology.from_mask(mask), dtype=dtype), batch)


def change(layer: SparseLinear, drop: int, grow: int, seed: int = 0) -> Rewiring:
    movable = layer.positions.clone()
    vacant = layer.topology.to_mask().flatten().logical_not().nonzero().squeeze(1)
    order = torch.randperm(vacant.numel(), generator=seeded(seed))
    dropped = torch.randperm(movable.numel(), generator=seeded(seed))[:drop]
    return Rewiring.of(layer.shape, movable, dropped, vacant[order[:grow]])


def test_backends_agree_through_a_layers_life() -> None:
    layers = pair(Topology.random((12, 10), 50, seeded()), dtype=torch.float64)
    other = SparseLinear(10, 12, sparsity=0.8, generator=seeded(5), dtype=torch.float64)
    rewiring = change(layers[0], 20, 20)
    assert torch.equal(layers[0].positions, layers[1].positions)
    for layer in layers:
        layer.rewire(rewiring, fill=0.5)
    assert_agree(*layers)
    for layer in layers:
        layer.freeze(layer.positions[::3], torch.tensor([2, 7]))
    assert_agree(*layers)
    rewiring = change(layers[0], 5, 11, seed=1)
    for layer in layers:
        layer.rewire(rewiring, fill=-0.5)
    assert_agree(*layers)
    assert torch.equal(layers[0].frozen_positions, layers[1].frozen_positions)
    for layer in layers:
        layer.load_state_dict(other.state_dict())
    assert_agree(*layers)
    assert layers[1].topology == other.topology
    for again in (copy.deepcopy(layers[1]), pickle.loads(pickle.dumps(layers[1]))):
        assert_agree(layers[0], again)
        again.rewire(change(again, 3, 3))  # its index buffers are its own
        assert_agree(*layers)


def test_a_checkpoint_moves_between_backends() -> None:
    gemm, csr = pair(Topology.random((12, 10), 50, seeded()))
    assert gemm.state_dict().keys() == csr.state_dict().keys()
    gemm.load_state_dict(csr.state_dict())
    dense = gemm.to_dense()
    again = SparseLinear.from_dense(dense, csr.topology, backend="csr")
    assert_agree(gemm, again)


def test_two_forwards_before_one_backward() -> None:
    _, layer = pair(Topology.random((12, 10), 50, seeded()), dtype=torch.float64)
    first, second = (torch.randn(7, 10, dtype=torch.float64, generator=seeded(seed)) for seed in range(2))
    expected = [a + b for a, b in zip(gradients(layer, first)[2:], gradients(layer, second)[2:], strict=True)]
    layer.zero_grad()
    outputs = layer(first), layer(second)
    upstream = torch.randn(7, 12, dtype=torch.float64, generator=seeded(9))
    sum((output * upstream).sum() for output in outputs).backward()
    torch.testing.assert_close([p.grad for p in layer.parameters()], expected, rtol=0, atol=1e-12)


def test_a_change_between_forward_and_backward_is_noticed() -> None:
    for spoil in (
        lambda layer: layer.rewire(change(layer, 3, 3)),
        lambda layer: torch.no_grad()(layer.values.add_)(1),
    ):
        _, layer = pair(Topology.random((12, 10), 50, seeded()))
        loss = layer(torch.ones(2, 10)).sum()
        spoil(layer)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_inputs_of_any_layout() -> None:
    _, layer = pair(Topology.random((12, 10), 50, seeded()), dtype=torch.float64)
    inputs = torch.randn(6, 4, 10, dtype=torch.float64, generator=seeded())
    expected = layer(inputs)
    assert expected.shape == (6, 4, 12)
    assert torch.equal(layer(inputs.transpose(0, 1).contiguous().transpose(0, 1)), expected)
    assert torch.equal(layer(inputs.flip(0)).flip(0), expected)
    assert torch.equal(layer(torch.cat([inputs, inputs], 2)[..., 10:]), expected)
    torch.testing.assert_close(layer(inputs[0, 0]), expected[0, 0], rtol=0, atol=1e-12)
    with torch.inference_mode():
        assert torch.equal(layer(inputs), expected)


def test_a_chain_of_layers_copies_nothing() -> None:
    layers = [pair(Topology.random((10, 10), 50, seeded(seed)))[1] for seed in range(2)]
    hidden = layers[0](torch.randn(7, 10)).relu()
    assert hidden.T.is_contiguous()
    saved = layers[1](hidden).grad_fn.saved_tensors[0]
    assert saved.data_ptr() == hidden.data_ptr()


def test_captures_what_gemm_captures() -> None:
    layers = pair(Topology.random((12, 10), 50, seeded()), dtype=torch.float64)
    dense = []
    for layer in layers:
        layer.capture = Capture(2)
        for seed in range(2):
            layer(torch.randn(3, 5, 10, dtype=torch.float64, generator=seeded(seed))).square().sum().backward()
            layer.capture.batch += 1
        dense.append(layer.capture.gradient_rows(0, 12))
    torch.testing.assert_close(dense[1], dense[0], rtol=0, atol=1e-12)


def test_double_backward_is_refused() -> None:
    _, layer = pair(Topology.random((5, 6), 10, seeded()))
    loss = layer(torch.ones(2, 6)).square().sum()
    with pytest.raises(RuntimeError, match="differentiated once only"):
        torch.autograd.grad(loss, layer.values, create_graph=True)


def test_only_what_is_wanted_is_computed() -> None:
    _, layer = pair(Topology.random((5, 6), 10, seeded()))
    layer.values.requires_grad_(False)
    inputs = torch.ones(2, 6, requires_grad=True)
    layer(inputs).sum().backward()
    assert layer.values.grad is None
    assert inputs.grad is not None
    assert layer.bias.grad.tolist() == [2] * 5


def test_other_devices_and_dtypes_are_an_error() -> None:
    _, layer = pair(Topology.random((5, 6), 10, seeded()))
    with pytest.raises(ValueError, match=r"on the CPU only, not on meta; use `backend='gemm'`"):
        layer(torch.ones(2, 6, device="meta"))
    with pytest.raises(RuntimeError, match=re.escape("inputs must have the layer's dtype torch.float32")):
        layer(torch.ones(2, 6, dtype=torch.float64))
    with pytest.raises(TypeError, match=re.escape("float32 and float64, not torch.bfloat16")):
        copy.deepcopy(layer).to(torch.bfloat16)(torch.ones(2, 6, dtype=torch.bfloat16))


@pytest.mark.gpu
def test_cuda_is_an_error_that_names_gemm() -> None:
    _, layer = pair(Topology.random((5, 6), 10, seeded()))
    with pytest.raises(ValueError, match="on the CPU only, not on cuda:0; use `backend='gemm'`"):
        layer.cuda()(torch.ones(2, 6, device="cuda"))


def test_autocast_leaves_the_layer_in_its_own_dtype() -> None:
    _, layer = pair(Topology.random((5, 6), 10, seeded()))
    inputs = torch.ones(2, 6, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(inputs)
    output.sum().backward()
    assert (output.dtype, inputs.grad.dtype) == (torch.float32, torch.bfloat16)


def test_a_compiled_model_falls_back_to_the_kernels() -> None:
    _, layer = pair(Topology.random((5, 6), 10, seeded()))
    model = nn.Sequential(layer, nn.ReLU())
    inputs = torch.randn(3, 6, generator=seeded())
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), model(inputs))


@pytest.mark.parametrize("preset", ["set", "rigl"])
def test_both_backends_take_one_trajectory(preset: str) -> None:
    models = []
    for backend in ("gemm", "csr"):
        model = SparseMLP([6, 16, 16, 3], sparsity=0.6, generator=seeded(), backend=backend).double()
        optimizer = Adam(model.parameters(), lr=0.01)
        sparsifier = Sparsifier.preset(preset, model, optimizer, period=2, total_steps=200, seed=0)
        changes = 0
        for step in range(104):
            inputs = torch.randn(20, 6, dtype=torch.float64, generator=seeded(step))
            optimizer.zero_grad()
            (model(inputs) - inputs[:, :3].sin()).square().mean().backward()
            optimizer.step()
            changes += bool(sparsifier.step())
        assert changes >= 50
        models.append(sparse_layers(model))
    for name, layer in models[0].items():
        assert layer.topology == models[1][name].topology
        torch.testing.assert_close(layer.values, models[1][name].values, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_the_first_product_compiles_in_time(tmp_path: Any) -> None:
    code = (
        "import time, torch; from sparse_core import SparseLinear\n"
        "for dtype in (torch.float32, torch.float64):\n"
        "    layer, start = SparseLinear(300, 300, sparsity=0.5, backend='csr', dtype=dtype), time.perf_counter()\n"
        "    for batch in (1, 256): layer(torch.ones(batch, 300, dtype=dtype)).sum().backward()\n"
        "    print(time.perf_counter() - start)"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(float(seconds) < 30 for seconds in done.stdout.split()), done.stdout  # 15 on an idle machine


def test_the_transpose_is_worked_out_only_where_it_is_needed() -> None:
    model = nn.Sequential(*(SparseLinear(size, size, sparsity=0.5, backend="csr") for size in (6, 6)))
    target = copy.deepcopy(model)
    inputs = torch.ones(3, 6)
    for _ in range(2):
        model(inputs).sum().backward()
        with torch.no_grad():
            target(inputs)
        first, second = (layer.transpose_order.numel() for layer in model)
        assert (first, second) == (0, model[1].nnz)
        assert [layer.transpose_order.numel() for layer in target] == [0, 0]
        layer = model[1]  # which keeps it up
        absent = torch.arange(36)[~torch.isin(torch.arange(36), layer.positions)]
        layer.rewire(Rewiring.of(layer.shape, layer.positions.clone(), torch.arange(2), absent[:2]))
        assert torch.equal(layer.transpose_order.long(), layer.topology.transpose.permutation)
