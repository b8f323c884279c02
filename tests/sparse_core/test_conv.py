import copy
import gc
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_convolutions import BACKENDS, UNITS, conv_of, dense_values, images, seeded
from torch import Tensor, nn
from torch.func import functional_call

from sparse_core import SparseConv2d, SparseLinear, Topology, plan, sparsify
from sparse_core.crossover import settle
from sparse_core.meters import sparsity
from sparse_core.signals import Capture

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


@pytest.mark.end_to_end
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
