import copy
import gc
import io
import pickle
import re
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from sparse_core import Adam, Rewiring, SparseConv2d, SparseLinear, Sparsifier, Topology, plan, sparse_layers, sparsify
from sparse_core.crossover import settle
from sparse_core.meters import (
    LayerCount,
    Use,
    capture_bytes,
    forward_flops,
    growth_flops,
    layer_counts,
    memory,
    nnz,
    sparsity,
    training_flops,
    uses,
)
from sparse_core.perceptrons import fusible
from sparse_core.signals import Capture

BACKENDS = ["gemm", "csr", "rows"]
UNITS = ["weight", "kernel"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conv_of(unit: str = "weight", frozen: int = 0, seed: int = 0, **options) -> SparseConv2d:
    """3 → 4 channels, 3×2 kernels, float64, half of the connections; the first `frozen` and one bias frozen."""
    options = {"kernel_size": (3, 2), "sparsity": 0.5, "dtype": torch.float64, **options}
    conv = SparseConv2d(3, 4, unit=unit, generator=seeded(seed), **options)
    if frozen:
        conv.freeze(conv.positions[:frozen], torch.tensor([0]))
    return conv


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def dense_values(conv: SparseConv2d, tensor: Tensor, positions: Tensor) -> Tensor:
    """A tensor (n, …) of the connections at these positions as one like the dense weight, zero elsewhere."""
    dense = torch.zeros(conv.shape[0] * conv.shape[1], *conv.connection_shape, dtype=tensor.dtype)
    dense[positions] = tensor
    return dense.view(conv.out_channels, conv.in_channels, *conv.kernel_size)


# By hand


def test_two_weights_of_a_kernel_by_hand() -> None:
    # The kernel is  2 ·   and the image  1 2 3, so the outputs are 2·1 + 10·5, 2·2 + 10·6,
    #                · 10                4 5 6                      2·4 + 10·8, 2·5 + 10·9.
    #                                    7 8 9
    conv = SparseConv2d(1, 1, 2, bias=False, topology=Topology.from_mask(torch.tensor([[1, 0, 0, 1]])))
    with torch.no_grad():
        conv.values.copy_(torch.tensor([2.0, 10.0]))
    image = torch.arange(1.0, 10).view(1, 1, 3, 3).requires_grad_()
    outputs = conv(image)
    assert outputs.tolist() == [[[[52, 64], [88, 100]]]]
    assert conv.nnz == conv.connections == 2
    assert conv.sparsity == 0.5

    outputs.sum().backward()
    # The 2 meets 1 + 2 + 4 + 5, the 10 meets 5 + 6 + 8 + 9; the image's middle meets both.
    assert conv.values.grad.tolist() == [12, 28]
    assert image.grad.tolist() == [[[[2, 2, 0], [2, 12, 10], [0, 10, 10]]]]


def test_one_kernel_of_two_by_hand() -> None:
    # Of the kernels of two input channels only the second one's exists.
    conv = SparseConv2d(2, 1, 2, bias=False, unit="kernel", topology=Topology.from_mask(torch.tensor([[0, 1]])))
    with torch.no_grad():
        conv.values.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    image = torch.tensor([[[[9.0, 9.0], [9.0, 9.0]], [[1.0, 10.0], [100.0, 1000.0]]]])
    assert conv(image).tolist() == [[[[1 + 20 + 300 + 4000]]]]
    assert (conv.nnz, conv.connections, conv.cells, conv.sparsity) == (4, 1, 8, 0.5)
    assert conv.strengths.tolist() == [pytest.approx(30**0.5)]
    assert conv.per_connection(torch.tensor([[1.0, -2.0, 3.0, 4.0]])).tolist() == [6]


def test_strengths_of_single_weights_are_the_values() -> None:
    for layer in (conv_of(), SparseLinear(6, 5, sparsity=0.5)):
        assert torch.equal(layer.strengths, layer.values)
        assert torch.equal(layer.per_connection(layer.values), layer.values)


# Equality with torch


@settings(max_examples=60)
@given(
    unit=st.sampled_from(UNITS), backend=st.sampled_from(BACKENDS),
    batch=st.sampled_from([None, 0, 1, 3]), channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)), stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)), dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    density=st.floats(0.1, 1), bias=st.booleans(), frozen=st.integers(0, 3), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_equals_a_masked_dense_convolution(
    unit: str, backend: str, batch: int | None, channels: tuple[int, int], kernel: tuple[int, int],
    stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], density: float, bias: bool,
    frozen: int, seed: int,
) -> None:  # fmt: skip
    cells = channels[0] * channels[1] * (kernel[0] * kernel[1] if unit == "weight" else 1)
    shape = (channels[1], cells // channels[1])
    topology = Topology.random(shape, max(1, round(density * cells)), seeded(seed))
    conv = SparseConv2d(
        *channels, kernel, stride, padding, dilation, bias, unit=unit, topology=topology, backend=backend,
        generator=seeded(seed), dtype=torch.float64,
    )  # fmt: skip
    conv.freeze(conv.positions[:frozen])
    inputs = images(*([] if batch is None else [batch]), channels[0], 7, 6, seed=seed).requires_grad_()
    twin_inputs = inputs.detach().clone().requires_grad_()
    # Weights from the positions alone, zero elsewhere.
    weight = dense_values(conv, conv.values.detach(), conv.positions)
    weight = (weight + dense_values(conv, conv.frozen_values, conv.frozen_positions)).requires_grad_()
    dense_bias = conv.bias.detach().clone().requires_grad_() if bias else None
    outputs = conv(inputs)
    expected = F.conv2d(twin_inputs, weight, dense_bias, stride, padding, dilation)
    upstream = images(*expected.shape, seed=seed + 1)
    outputs.backward(upstream)
    expected.backward(upstream)

    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(inputs.grad, twin_inputs.grad, rtol=0, atol=1e-12)
    gathered = weight.grad.reshape(cells, *conv.connection_shape)[conv.positions]
    torch.testing.assert_close(conv.values.grad, gathered, rtol=0, atol=1e-12)
    if bias:
        torch.testing.assert_close(conv.bias.grad, dense_bias.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("frozen", [0, 2])
def test_gradcheck(backend: str, unit: str, frozen: int) -> None:
    conv = conv_of(unit, frozen, backend=backend, stride=2, padding=1)
    names = [name for name, _ in conv.named_parameters()]

    def convolve(inputs: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(conv, dict(zip(names, parameters, strict=True)), (inputs,))

    parameters = [parameter.detach().clone().requires_grad_() for parameter in conv.parameters()]
    assert torch.autograd.gradcheck(convolve, (images(2, 3, 4, 3).requires_grad_(), *parameters))


@pytest.mark.parametrize("unit", UNITS)
def test_backends_can_be_exchanged(unit: str) -> None:
    conv, inputs = conv_of(unit, frozen=2), images(2, 3, 5, 5)
    expected = conv(inputs)
    for backend in ("csr", "rows", "auto", "gemm", "csr"):
        conv.use_backend(backend)
        torch.testing.assert_close(conv(inputs), expected, rtol=0, atol=1e-12)
        with torch.no_grad():
            torch.testing.assert_close(conv(inputs), expected, rtol=0, atol=1e-12)
    # Nothing is measured: patches cost more than other backends save.
    conv.use_backend("auto")
    conv(inputs)
    assert conv.backend == "gemm"
    conv.use_backend("auto")
    assert settle(nn.Sequential(conv), 4) == {"0": "gemm"}


@pytest.mark.parametrize("unit", UNITS)
def test_a_compiled_convolution_agrees(unit: str) -> None:
    torch._dynamo.reset()
    conv = conv_of(unit, frozen=2)
    compiled, inputs = torch.compile(copy.deepcopy(conv), backend="aot_eager", fullgraph=True), images(2, 3, 5, 5)
    torch.testing.assert_close(compiled(inputs), conv(inputs), rtol=0, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("unit", UNITS)
def test_cuda_agrees_with_the_cpu(unit: str) -> None:
    conv, inputs = conv_of(unit, frozen=2), images(2, 3, 5, 5)
    moved = copy.deepcopy(conv).cuda()
    for own, data in ((conv, inputs), (moved, inputs.cuda())):
        own.capture = Capture(1)
        own(data).square().sum().backward()
    torch.testing.assert_close(moved(inputs.cuda()).cpu(), conv(inputs), rtol=0, atol=1e-12)
    torch.testing.assert_close(moved.values.grad.cpu(), conv.values.grad, rtol=0, atol=1e-11)
    scores = [own.capture.gradient_rows(0, 4).cpu() for own in (conv, moved)]
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unit", UNITS)
def test_nothing_dense_outlives_a_pass(unit: str, backend: str) -> None:
    conv = SparseConv2d(17, 19, 3, unit=unit, sparsity=0.9, backend=backend)
    conv(torch.randn(1, 17, 4, 4)).square().sum().backward()
    gc.collect()
    alive = [one for one in gc.get_objects() if issubclass(type(one), Tensor)]
    assert any(one is conv.values for one in alive)
    assert not any(one.numel() == 19 * 17 * 9 for one in alive)
    # A weight of ours has its value; a kernel's nine share one index.
    assert {name: tuple(p.shape) for name, p in conv.named_parameters()} == {
        "values": (291,) if unit == "weight" else (32, 9),
        "bias": (19,),
    }


@pytest.mark.parametrize("unit", UNITS)
def test_initial_weights_are_torchs_own(unit: str) -> None:
    conv = SparseConv2d(16, 64, 5, unit=unit, sparsity=0.5, generator=seeded())
    # U(-1/√400, 1/√400) for 16 channels of 5×5.
    for drawn in (conv.values, conv.bias):
        assert drawn.abs().max() <= 0.05
    assert conv.values.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.02)
    assert nn.Conv2d(16, 64, 5).weight.std().item() == pytest.approx(conv.values.std().item(), rel=0.02)


@pytest.mark.parametrize("unit", UNITS)
def test_fan_in_initialisation_keeps_the_variance_of_outputs(unit: str) -> None:
    conv = SparseConv2d(40, 50, 3, unit=unit, sparsity=0.9, init="fan-in", bias=False, generator=seeded())
    # As a dense layer of U(±1/√fan_in) does, unit inputs become outputs of variance 1/3.
    assert conv(torch.randn(20, 40, 8, 8, generator=seeded(1))).var().item() == pytest.approx(1 / 3, rel=0.1)


# To and from dense


@pytest.mark.parametrize("unit", UNITS)
def test_to_dense_and_back(unit: str) -> None:
    conv = conv_of(unit, frozen=2, stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    dense, inputs = conv.to_dense(), images(2, 3, 6, 6)
    assert type(dense) is nn.Conv2d
    torch.testing.assert_close(dense(inputs), conv(inputs), rtol=0, atol=1e-12)
    assert int(dense.weight.count_nonzero()) == conv.nnz
    back = SparseConv2d.from_dense(dense, conv.topology, unit=unit)
    assert torch.equal(back.to_dense().weight, dense.weight)
    assert torch.equal(back(inputs), conv(inputs))
    assert conv_of(unit, bias=False).to_dense().bias is None


@pytest.mark.parametrize(("padding", "expected"), [("valid", (0, 0)), ("same", (2, 1)), ((1, 2), (1, 2))])
def test_from_dense_knows_torchs_paddings(padding: str | tuple[int, int], expected: tuple[int, int]) -> None:
    dense = nn.Conv2d(2, 3, (5, 3), padding=padding)
    conv = SparseConv2d.from_dense(dense, Topology.full((3, 30)))
    assert conv.padding == expected
    inputs = torch.randn(1, 2, 7, 7)
    assert torch.equal(conv(inputs), dense(inputs))


def test_from_dense_scales_for_the_actual_fan_in_and_keeps_what_does_not_learn() -> None:
    dense = nn.Conv2d(4, 2, 3).eval()
    dense.weight.requires_grad_(False)
    # Output 0 sees 1 of 4 channels, output 1 all of them: factors √(4/1) and 1.
    topology = Topology.from_mask(torch.tensor([[0, 1, 0, 0], [1, 1, 1, 1]]))
    conv = SparseConv2d.from_dense(dense, topology, unit="kernel", init="fan-in")
    torch.testing.assert_close(conv.values[0], 2 * dense.weight[0, 1].flatten())
    torch.testing.assert_close(conv.values[1:], dense.weight[1].flatten(1))
    assert (conv.values.requires_grad, conv.bias.requires_grad, conv.training) == (False, True, False)


# Moving, freezing, optimizer state

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "torch's Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    "ours": lambda parameters: Adam(parameters, lr=0.05),
}


def learn(conv: SparseConv2d, optimizer: Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        conv(images(2, 3, 5, 5, seed=step)).square().mean().backward()
        optimizer.step()


def state_of(optimizer: Optimizer, conv: SparseConv2d) -> dict[str, Tensor]:
    """Values and state as dense tensors."""
    state = {name: tensor for name, tensor in optimizer.state[conv.values].items() if tensor.dim()}
    tensors = {"values": conv.values.detach(), **state}
    return {name: dense_values(conv, tensor, conv.positions) for name, tensor in tensors.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("grow", [0, 1, 2])
def test_values_and_state_move_with_their_connections(optimizer: str, unit: str, grow: int) -> None:
    conv = conv_of(unit)
    steps = OPTIMIZERS[optimizer](conv.parameters())
    sparsifier = Sparsifier.preset("static", conv, steps)
    learn(conv, steps)
    sparsifier.freeze("", conv.positions[[0, 3]], torch.tensor([1]))
    learn(conv, steps)
    frozen = conv.frozen_values.clone()
    assert frozen.shape == (2, *conv.connection_shape)

    vacant = conv.topology.to_mask().flatten().logical_not().nonzero().squeeze(1)
    change = Rewiring.of(conv.shape, conv.positions.clone(), torch.tensor([1, 2]), vacant[:grow])
    before, parameter = state_of(steps, conv), conv.values
    sparsifier._apply("", change)
    after = state_of(steps, conv)
    assert conv.values is parameter
    assert set(before) - {"age"} == set(after) - {"age"}
    kept = change.after[change.source >= 0]
    cells = conv.shape[0] * conv.shape[1]
    for name in before:
        old, new = (state[name].reshape(cells, *conv.connection_shape) for state in (before, after))
        assert torch.equal(new[kept], old[kept]), name
        assert not new[change.dropped].any(), name
        assert not new[change.grown].any(), name
    if optimizer == "ours":
        # Six steps for the old ones, none for the new.
        ages = after["age"].reshape(cells, -1)
        assert (ages[kept] == 6).all()
        assert not ages[change.grown].any()
    learn(conv, steps)
    assert torch.equal(conv.frozen_values, frozen)
    assert conv.connections == conv.positions.numel() + 2


@pytest.mark.parametrize("unit", UNITS)
def test_freezing_changes_what_learns_and_not_what_is_computed(unit: str) -> None:
    conv, inputs = conv_of(unit), images(2, 3, 5, 5)
    before, count, optimizer = conv(inputs), conv.nnz, OPTIMIZERS["ours"](conv.parameters())
    dense = conv.to_dense().weight.detach()
    sparsifier = Sparsifier.preset("static", conv, optimizer)
    sparsifier.freeze("", conv.positions[::2], torch.tensor([0, 2]))
    assert torch.equal(conv(inputs), before)
    assert conv.nnz == count
    assert f"frozen={conv.frozen.numel()}" in repr(conv)
    frozen = conv.frozen_values.clone(), conv.frozen_bias_values.clone()
    learn(conv, optimizer)
    assert torch.equal(conv.frozen_values, frozen[0])
    assert torch.equal(conv.frozen_bias_values, frozen[1])
    moved = (conv.to_dense().weight - dense).reshape(-1, *conv.connection_shape)
    assert not moved[conv.frozen_positions].any()
    assert moved[conv.positions].all()
    sparsifier.freeze("")
    assert conv.values.shape == (0, *conv.connection_shape)
    assert conv(inputs).shape == before.shape


def test_state_of_another_shape_cannot_follow() -> None:
    conv = conv_of("kernel")
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1, momentum=0.9)
    learn(conv, optimizer)
    optimizer.state[conv.values]["momentum_buffer"] = torch.zeros(6, 5)
    with pytest.raises(TypeError, match=re.escape("has shape (6, 5) for 6 connections of (6,) weights: it is not")):
        Sparsifier.preset("static", conv, optimizer).freeze("", conv.positions[:1])


# Gradient growth


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unit", UNITS)
def test_a_capture_scores_every_possible_connection(unit: str, backend: str) -> None:
    conv = conv_of(unit, frozen=1, backend=backend, stride=(2, 1), padding=1, dilation=(1, 2))
    conv.capture = Capture(2)
    dense = conv.to_dense()
    dense.weight.grad = torch.zeros_like(dense.weight)
    for batch in range(3):
        conv.capture.batch = batch
        inputs = images(2, 3, 6, 7, seed=batch)
        upstream = images(*conv(inputs).shape, seed=10 + batch)
        F.relu(conv(inputs), inplace=True)  # activations may overwrite what a captured layer gives
        conv(inputs).backward(upstream)
        if batch:  # the capture forgets the first of three
            dense(inputs).backward(upstream)
    gradient = dense.weight.grad
    expected = gradient.flatten(1) if unit == "weight" else gradient.flatten(2).square().sum(2).sqrt()
    actual = torch.cat([conv.capture.gradient_rows(0, 1), conv.capture.gradient_rows(1, 4)])
    assert actual.shape == conv.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    # Images as they came, not patches of them.
    assert [tuple(kept.shape) for _, kept, _ in conv.capture.state()] == [(2, 3, 6, 7)] * 2


def test_a_captured_batch_survives_a_checkpoint() -> None:
    conv = conv_of("kernel")
    conv.capture = Capture(1)
    conv(images(2, 3, 5, 5)).sum().backward()
    other = copy.deepcopy(conv)
    assert other.capture is None
    other.capture = Capture(1)
    other.capture.load(conv.capture.state())
    assert torch.equal(other.capture.gradient_rows(0, 4), conv.capture.gradient_rows(0, 4))


@pytest.mark.parametrize("unit", UNITS)
def test_rigl_drops_the_weakest_and_grows_the_steepest(unit: str) -> None:
    conv = conv_of(unit, padding=1)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.0)
    sparsifier = Sparsifier(conv, optimizer, drop="magnitude", grow="gradient", drop_fraction=0.34, period=1)
    vacant = ~conv.topology.to_mask().flatten()
    inputs, upstream = images(2, 3, 5, 5), images(2, 4, 5, 6, seed=2)
    dense = conv.to_dense()
    dense(inputs).backward(upstream)
    conv(inputs).backward(upstream)
    optimizer.step()
    change = sparsifier.step()[""]

    count = int(0.34 * vacant.logical_not().sum())
    each = (conv.shape[0] * conv.shape[1], -1)
    strengths, gradients = (tensor.detach().reshape(each).norm(dim=1) for tensor in (dense.weight, dense.weight.grad))
    weakest = strengths.masked_fill(vacant, torch.inf).argsort()[:count]
    steepest = gradients.masked_fill(~vacant, -1).argsort(descending=True)[:count]
    assert set(change.dropped.tolist()) == set(weakest.tolist())
    assert set(change.grown.tolist()) == set(steepest.tolist())
    assert change.grown.numel() == count > 1


def bars(seed: int) -> tuple[Tensor, Tensor]:
    """Noisy 8×8 images with a bar across or down, and which."""
    generator = seeded(seed)
    label = torch.randint(2, (32,), generator=generator)
    pictures = 0.3 * torch.randn(32, 1, 8, 8, generator=generator)
    for picture, down, place in zip(pictures, label, torch.randint(8, (32,), generator=generator), strict=True):
        (picture[0].T if down else picture[0])[place] += 1
    return pictures, label


@pytest.mark.parametrize("backend", ["gemm", "csr"])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("preset", ["set", "rigl"])
def test_presets_train_a_convolutional_network(preset: str, unit: str, backend: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    sparsify(model, 0.6, conv_unit=unit, dense=("input", "output"), backend=backend, generator=seeded())
    layer = model[2]
    assert isinstance(layer, SparseConv2d)
    assert set(sparse_layers(model)) == {"2"}
    optimizer = Adam(model.parameters(), lr=0.01)
    sparsifier = Sparsifier.preset(preset, model, optimizer, period=10, total_steps=150, seed=0)
    start, count = layer.topology, nnz(model)
    for step in range(150):
        pictures, label = bars(step)
        optimizer.zero_grad()
        F.cross_entropy(model(pictures), label).backward()
        optimizer.step()
        sparsifier.step()
        assert nnz(model) == count
    assert sparsifier.changes >= 5
    assert layer.topology != start
    pictures, label = bars(10_000)
    assert (model(pictures).argmax(1) == label).float().mean() > 0.9


def test_a_change_is_the_same_after_a_checkpoint() -> None:
    def made() -> tuple[SparseConv2d, Optimizer, Sparsifier]:
        conv = conv_of("kernel")
        optimizer = OPTIMIZERS["ours"](conv.parameters())
        return (
            conv,
            optimizer,
            Sparsifier.preset("rigl", conv, optimizer, period=4, total_steps=99, regrow="no", seed=0),
        )

    first, second = made(), made()
    learn(first[0], first[1])
    for _ in range(3):
        first[2].step()
    learn(first[0], first[1], 1)
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in first], buffer)
    buffer.seek(0)
    for part, state in zip(second, torch.load(buffer, weights_only=False), strict=True):
        part.load_state_dict(state)
    for conv, optimizer, sparsifier in (first, second):
        assert sparsifier.step()[""].grown.numel()
        learn(conv, optimizer)
    assert first[0].topology == second[0].topology
    assert torch.equal(first[0].values, second[0].values)


# Copies and files


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda conv: pickle.loads(pickle.dumps(conv))])
@pytest.mark.parametrize("unit", UNITS)
def test_copies_are_equal_and_independent(duplicate: Callable[[SparseConv2d], SparseConv2d], unit: str) -> None:
    conv, inputs = conv_of(unit, frozen=2), images(1, 3, 4, 4)
    expected, twin = conv(inputs), duplicate(conv)
    assert torch.equal(twin(inputs), expected)
    with torch.no_grad():
        twin.values.fill_(9.0)
    assert torch.equal(conv(inputs), expected)


@pytest.mark.parametrize("unit", UNITS)
def test_a_state_of_another_count_loads_into_the_same_parameter(unit: str) -> None:
    conv, other, inputs = conv_of(unit), conv_of(unit, frozen=2, sparsity=0.25, seed=1), images(1, 3, 4, 4)
    parameter = conv.values
    conv.load_state_dict(other.state_dict())
    assert conv.values is parameter
    assert torch.equal(conv(inputs), other(inputs))
    assert conv.topology == other.topology


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("values", lambda tensor: tensor[:-1], "values holds 3 × 6 values for 4 movable connections of 6 weights"),
        ("values", lambda tensor: tensor[:, 1:], "values holds 4 × 5 values for 4 movable connections of 6 weights"),
        ("values", lambda tensor: tensor.flatten(), "values holds 24 values for 4 movable connections of 6 weights"),
        ("frozen_values", lambda tensor: tensor[:, :-1], "frozen must hold .* one per frozen value"),
        ("frozen_values", lambda tensor: tensor.flatten(), "frozen must hold .* one per frozen value"),
        ("frozen", lambda tensor: tensor + 6, "frozen must hold distinct ascending indices within"),
        ("columns", lambda tensor: tensor + 3, re.escape("`columns` must lie in [0, 3)")),
        ("row_pointer", lambda tensor: tensor + 1, "does not describe"),
    ],
)
def test_a_damaged_state_is_refused_and_nothing_changes(
    name: str, damage: Callable[[Tensor], Tensor], message: str
) -> None:
    conv = conv_of("kernel", seed=1)
    before = copy.deepcopy(conv.state_dict())
    state = copy.deepcopy(conv_of("kernel", frozen=2).state_dict())
    state[name] = damage(state[name])
    with pytest.raises(ValueError, match=message):
        conv.load_state_dict(state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in conv.state_dict().items())


def test_a_state_of_the_other_unit_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("`columns` must lie in [0, 3)")):
        conv_of("kernel").load_state_dict(conv_of("weight").state_dict())
    with pytest.raises(ValueError, match="values holds 6 × 6 values for 6 movable connections"):
        conv_of("weight").load_state_dict(conv_of("kernel").state_dict())


# Errors at the door


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "channel"}, "`unit` must be 'weight' or 'kernel', got 'channel'"),
        ({"kernel_size": 0}, "`kernel_size` must be an integer ≥ 1 or two of them (height, width), got 0"),
        ({"kernel_size": (3, 3, 3)}, "`kernel_size` must be an integer ≥ 1 or two of them"),
        ({"stride": (1, 0)}, "`stride` must be an integer ≥ 1 or two of them (height, width), got (1, 0)"),
        ({"padding": -1}, "`padding` must be an integer ≥ 0"),
        ({"dilation": 1.5}, "`dilation` must be an integer ≥ 1"),
        ({"sparsity": None}, "give either `sparsity` or `topology`"),
        ({"sparsity": None, "topology": Topology.full((4, 3))}, "`topology` must have shape (4, 18) (out, in), got"),
        ({"sparsity": 0.99, "unit": "kernel"}, "leaves no connection of 3×4; lower it"),
    ],
)
def test_wrong_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        conv_of(**options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 5, 5), "inputs must be images (B, 3, H, W) or (3, H, W), got shape (2, 4, 5, 5)"),
        ((5, 5), "got shape (5, 5)"),
        ((1, 1, 3, 5, 5), "got shape (1, 1, 3, 5, 5)"),
        ((1, 3, 2, 5), "images of 2×5 are too small: with padding they are 2×5, and a kernel spans 3×2"),
    ],
)
def test_wrong_inputs(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        conv_of()(images(*shape))


@pytest.mark.parametrize(
    ("dense", "reason"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "it has 2 groups; only ungrouped ones have a sparse counterpart"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "its padding is 'reflect'; only zeros"),
        (nn.Conv2d(4, 4, (2, 3), padding="same"), "its padding 'same' is uneven for this kernel"),
    ],
)
def test_convolutions_without_a_counterpart(dense: nn.Conv2d, reason: str) -> None:
    with pytest.raises(ValueError, match=f"this convolution cannot be made sparse: {reason}"):
        SparseConv2d.from_dense(dense, Topology.full((4, dense.weight[0].numel())))
    model = nn.Sequential(dense, nn.Flatten(), nn.LazyLinear(200))
    model(torch.ones(1, 4, 6, 6))
    assert re.search(reason, plan(model, 0.1, dense=()).skipped["0"])
    sparsify(model, 0.1, dense=())
    assert model[0] is dense
    assert sparsity(model) == pytest.approx(0.1, abs=1e-4)  # it counts


def test_a_convolution_has_no_dense_weight() -> None:
    with pytest.raises(AttributeError, match="a SparseConv2d has no dense `weight`; read `values`"):
        conv_of().weight  # noqa: B018


# Whole models


def network() -> nn.Sequential:
    """180, 1,800 and 1,600 weights, for 6×6 images."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(160, 10)
    )


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("wanted", [0.7, 0.8, 0.9])
@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_the_whole_model_has_the_sparsity(unit: str, wanted: float, distribution: str) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cells = 180 + 1800 + 1600
    sparsify(model, wanted, dense=(), conv_unit=unit, distribution=distribution, generator=seeded())
    # The linear layer makes up for whole kernels.
    assert nnz(model) == cells - round(wanted * cells)
    assert isinstance(model[2], SparseConv2d)
    assert model[2].unit == unit
    assert model[2].nnz % (9 if unit == "kernel" else 1) == 0
    for name, layer in sparse_layers(model).items():
        weight = layer.to_dense().weight
        assert torch.equal(weight, before[f"{name}.weight"] * (weight != 0))
    assert model(torch.ones(2, 1, 6, 6)).shape == (2, 10)


def test_convolutions_alone_come_as_near_as_whole_kernels_allow() -> None:
    for wanted in (0.5, 0.77, 0.9, 0.97):
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 20, 3), nn.Conv2d(20, 8, 3))
        cells = nnz(model)
        sparsify(model, wanted, dense=(), conv_unit="kernel")
        assert abs(nnz(model) - (cells - round(wanted * cells))) <= 4
    # Two layers of 4 kernels; 5 of 72 weights would be less than one kernel each.
    small = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    with pytest.raises(ValueError, match=r"cannot be met with whole kernels: .* is 13 weights off; use `conv_unit='we"):
        sparsify(small, 1 - 5 / 72, dense=(), conv_unit="kernel")
    assert not sparse_layers(small)


def test_names_choose_convolutions_too() -> None:
    assert list(plan(network(), 0.3).counts) == ["0", "2"]
    assert list(plan(network(), 0.3, dense=("input", "output")).counts) == ["2"]
    assert list(plan(network(), 0.1, include="2").counts) == ["2"]
    text = str(plan(network(), 0.5, conv_unit="kernel", exclude="0")).splitlines()
    assert re.fullmatch(r"2: \d+ connections of 9 weights each", text[0])
    assert text[1:] == ["0: stays dense, excluded", "5: stays dense, kept dense by `dense='output'`"]
    with pytest.raises(ValueError, match="`conv_unit` must be 'weight' or 'kernel', got 'filter'"):
        plan(network(), 0.5, conv_unit="filter")


def test_a_plain_convolution_comes_back_sparse() -> None:
    conv = sparsify(nn.Conv2d(4, 5, 3), 0.75, conv_unit="kernel")
    assert isinstance(conv, SparseConv2d)
    assert (conv.nnz, conv.connections) == (45, 5)


@pytest.mark.parametrize("unit", UNITS)
def test_costs_by_hand(unit: str) -> None:
    # 2 → 4 channels of 3×3 on 5×5 images gives 3×3 outputs; half of 72 weights. Then 36 → 2, dense.
    conv = SparseConv2d(2, 4, 3, unit=unit, sparsity=0.5)
    model = nn.Sequential(conv, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
    sample = torch.ones(7, 2, 5, 5)
    assert layer_counts(model) == {"0": LayerCount(36, 72), "3": LayerCount(72, 72)}
    assert uses(model, sample) == {"0": Use(9, 50, 36), "3": Use(1, 36, 2)}
    forward = 2 * (36 * 9 + 72)
    assert forward_flops(model, sample) == forward
    assert training_flops(model, sample) == 3 * forward - 2 * 36 * 9
    assert growth_flops(model, 10, sample) == 2 * 10 * 72 * 9
    assert capture_bytes(model, 10, sample) == 10 * (50 + 36) * 4
    assert model.training
    assert not model[1].num_batches_tracked  # a copy ran
    # Scratch: the dense weight, then its dense gradient.
    assert memory(model).scratch == 2 * 72 * 4
    dense = nn.Conv2d(2, 4, 3)
    assert forward_flops(dense, sample) == 2 * forward_flops(conv, sample) == 2 * 72 * 9
    for cost in (forward_flops, training_flops, lambda model: growth_flops(model, 1), lambda m: capture_bytes(m, 1)):
        with pytest.raises(ValueError, match="how often 0 is applied depends on the size of the images; give a `samp"):
            cost(model)


def test_a_sample_counts_every_application() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.unused = SparseLinear(6, 6, sparsity=0.5), nn.Linear(6, 6)
            self.up = nn.ConvTranspose2d(1, 3, 2, stride=2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.up(self.inner(self.inner(inputs))[:, None])

    # Five rows through the same layer twice; each of 5×6 inputs applies the transposed kernels once.
    model = Twice()
    assert {name: use.applications for name, use in uses(model, torch.ones(2, 5, 6)).items()} == {
        "inner": 10,
        "unused": 0,
        "up": 30,
    }
    assert forward_flops(model, torch.ones(2, 5, 6)) == 2 * (18 * 10 + 12 * 30)


def test_compiled_passes_refuse_convolutions() -> None:
    conv = SparseConv2d(6, 6, 1, sparsity=0.5)
    assert fusible(nn.Sequential(SparseLinear(6, 6, sparsity=0.5)))
    assert not fusible(nn.Sequential(conv))
    assert not fusible(nn.Sequential(SparseLinear(6, 6, sparsity=0.5), nn.ReLU(), conv))
