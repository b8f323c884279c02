import copy
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_layers import layer_of, masked_twin, seeded
from torch import Tensor, nn
from torch.func import functional_call

from sparse_core import BACKENDS, SparseLinear, SparseMLP, Topology, sparse_layers
from sparse_core.meters import sparsity as measured_sparsity


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [0, 4])
@pytest.mark.parametrize("leading", [(), (1,), (7,), (2, 3), (0,)])
def test_equals_a_masked_dense_layer(backend: str, bias: bool, frozen: int, leading: tuple[int, ...]) -> None:
    layer = layer_of(frozen=frozen, bias=bias, backend=backend)
    weight, dense_bias = masked_twin(layer)
    inputs = torch.randn(*leading, 6, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    twin_inputs = inputs.detach().clone().requires_grad_()
    output, expected = layer(inputs), F.linear(twin_inputs, weight, dense_bias)
    assert output.shape == (*leading, 5)
    upstream = torch.randn(expected.shape, dtype=torch.float64, generator=seeded(2))
    output.backward(upstream)
    expected.backward(upstream)

    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(inputs.grad, twin_inputs.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.values.grad, weight.grad.flatten()[layer.positions], rtol=0, atol=1e-12)
    if bias:
        torch.testing.assert_close(layer.bias.grad, dense_bias.grad[1 if frozen else 0 :], rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frozen", [0, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck_of_every_backend(backend: str, frozen: int, bias: bool) -> None:
    layer = layer_of(frozen=frozen, bias=bias, backend=backend)
    names = [name for name, _ in layer.named_parameters()]

    def product(inputs: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (inputs,))

    inputs = torch.randn(2, 3, 6, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    parameters = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    assert torch.autograd.gradcheck(product, (inputs, *parameters))


def test_double_backward_is_refused() -> None:
    layer = layer_of()
    loss = layer(torch.ones(2, 6, dtype=torch.float64)).square().sum()
    with pytest.raises(RuntimeError, match=r"differentiated once only.*`create_graph=True`; use `layer.to_dense"):
        torch.autograd.grad(loss, layer.values, create_graph=True)


def test_a_graph_can_be_walked_twice() -> None:
    layer = layer_of()
    loss = layer(torch.ones(2, 6, dtype=torch.float64)).square().sum()
    first, second = (torch.autograd.grad(loss, layer.values, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_parameters_are_the_values_and_nothing_else() -> None:
    layer = SparseLinear(40, 30, sparsity=0.9)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {"values": (120,), "bias": (30,)}
    layer(torch.randn(3, 40)).sum().backward()
    assert layer.values.grad.shape == (120,)
    # Nothing the layer holds is as large as a dense weight.
    assert max(tensor.numel() for tensor in [*layer.parameters(), *layer.buffers()]) < 40 * 30
    with pytest.raises(AttributeError, match=r"no dense `weight`; read `values`, or make a copy with `to_dense\(\)`"):
        layer.weight  # noqa: B018
    assert not hasattr(layer, "weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    layer = layer_of(dtype=dtype, frozen=3)
    assert layer(torch.ones(2, 6, dtype=dtype)).dtype == dtype
    assert {p.dtype for p in layer.parameters()} == {dtype}
    other = copy.deepcopy(layer).to(torch.float64)
    assert other.topology == layer.topology
    torch.testing.assert_close(
        other(torch.ones(2, 6, dtype=torch.float64)), layer(torch.ones(2, 6, dtype=dtype)).double(), atol=1e-6, rtol=0
    )


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu() -> None:
    layer = layer_of(frozen=4)
    moved = copy.deepcopy(layer).cuda()
    inputs = torch.randn(7, 6, dtype=torch.float64, generator=seeded(1))
    for own, data in ((layer, inputs), (moved, inputs.cuda())):
        own(data).square().sum().backward()
    torch.testing.assert_close(moved(inputs.cuda()).cpu(), layer(inputs), atol=1e-12, rtol=0)
    torch.testing.assert_close(moved.values.grad.cpu(), layer.values.grad, atol=1e-12, rtol=0)
    drawn = SparseLinear(6, 5, sparsity=0.5, generator=seeded(), dtype=torch.float64, device="cuda")
    assert drawn.topology == layer.topology
    assert {tensor.device.type for tensor in [*drawn.parameters(), *drawn.buffers()]} == {"cuda"}


def test_wrong_inputs_are_an_error() -> None:
    with pytest.raises(ValueError, match=re.escape("inputs must have 6 features last, got shape (6, 5)")):
        layer_of()(torch.ones(6, 5, dtype=torch.float64))


def test_counts_are_exact() -> None:
    for sparsity in (0.0, 0.33, 0.5, 0.9, 0.999):
        layer = SparseLinear(50, 40, sparsity=sparsity)
        assert layer.nnz == round((1 - sparsity) * 2000)
        assert layer.sparsity == 1 - layer.nnz / 2000
    assert "50, 40, bias=True, nnz=2, sparsity=0.9990, backend=gemm" in repr(layer)


def test_a_generator_decides_everything_and_the_global_one_rests() -> None:
    before = torch.get_rng_state()
    first, second = (SparseLinear(9, 8, sparsity=0.5, generator=seeded(3)) for _ in range(2))
    first.to_dense()
    SparseLinear.from_dense(first.to_dense(), first.topology)
    SparseMLP([4, 5, 6], sparsity=0.3, generator=seeded(4))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.topology == second.topology
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.bias, second.bias)


def test_torch_initialisation_is_torchs_own_distribution() -> None:
    layer = SparseLinear(400, 300, sparsity=0.5, generator=seeded())
    # U(-1/√400, 1/√400): standard deviation 0.05 / √3.
    for drawn in (layer.values, layer.bias):
        assert drawn.abs().max() <= 0.05
        assert drawn.abs().max() > 0.049
    assert layer.values.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.01)
    assert nn.Linear(400, 300).weight.std().item() == pytest.approx(layer.values.std().item(), rel=0.02)


def test_fan_in_initialisation_keeps_the_variance_of_outputs() -> None:
    layer = SparseLinear(400, 300, sparsity=0.95, init="fan-in", bias=False, generator=seeded())
    plain = SparseLinear(400, 300, sparsity=0.95, init="torch", bias=False, generator=seeded())
    fan_in = layer.topology.fan_in[layer.topology.rows.long()]
    torch.testing.assert_close(layer.values, plain.values * (400 / fan_in).sqrt())
    # A dense layer of U(±1/√in) turns unit inputs into outputs of variance 1/3, and so does this one.
    inputs = torch.randn(2000, 400, generator=seeded(1))
    assert layer(inputs).var().item() == pytest.approx(1 / 3, rel=0.05)
    assert plain(inputs).var().item() == pytest.approx(0.05 / 3, rel=0.05)


def test_to_dense_and_back() -> None:
    layer = layer_of(frozen=4)
    dense = layer.to_dense()
    weight, bias = masked_twin(layer)
    assert torch.equal(dense.weight, weight)
    assert torch.equal(dense.bias, bias)
    back = SparseLinear.from_dense(dense, layer.topology)
    assert torch.equal(back.to_dense().weight, dense.weight)
    assert torch.equal(back.bias, dense.bias)
    assert layer_of(bias=False).to_dense().bias is None


def test_from_dense_scales_for_the_actual_fan_in() -> None:
    linear = nn.Linear(4, 2)
    # Row 0 keeps 1 of 4 inputs, row 1 all of them: factors √(4/1) and 1.
    topology = Topology.from_mask(torch.tensor([[0, 1, 0, 0], [1, 1, 1, 1]]))
    layer = SparseLinear.from_dense(linear, topology, init="fan-in")
    torch.testing.assert_close(layer.values[0], 2 * linear.weight[0, 1])
    torch.testing.assert_close(layer.values[1:], linear.weight[1])


# Errors at the door


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either `sparsity` or `topology`, not both and not neither"),
        ({"sparsity": 0.5, "topology": Topology.full((5, 6))}, "not both and not neither"),
        ({"topology": Topology.full((6, 5))}, re.escape("`topology` must have shape (5, 6) (out, in), got (6, 5)")),
        ({"sparsity": 1.0}, "`sparsity` must be a number in"),
        ({"sparsity": 0.99}, "leaves no connection of 6×5; lower it"),
        ({"sparsity": 0.5, "init": "fanin"}, re.escape("no initialisation called 'fanin'; did you mean 'fan-in'?")),
        ({"sparsity": 0.5, "backend": "gem"}, re.escape("no backend called 'gem'; did you mean 'gemm'?")),
    ],
)
def test_wrong_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseLinear(6, 5, **options)


def test_a_layer_without_inputs_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one input and one output, got 0 → 5"):
        SparseLinear(0, 5, sparsity=0.5)


# SparseMLP


def test_mlp_sparsity_is_exact_over_the_whole_network() -> None:
    # 17·256 + 256·256 + 256·6 = 71,424 cells, of which 10 % stay: 7,142 with the 1,536 of the output.
    mlp = SparseMLP([17, 256, 256, 6], sparsity=0.9)
    assert sum(layer.nnz for layer in sparse_layers(mlp).values()) == 7142 - 1536
    assert measured_sparsity(mlp) == 1 - 7142 / 71424
    assert [type(module) for module in mlp] == [SparseLinear, nn.ReLU, SparseLinear, nn.ReLU, nn.Linear]
    assert mlp(torch.ones(3, 4, 17)).shape == (3, 4, 6)


def test_mlp_of_sparsity_zero_is_plain_and_dense() -> None:
    mlp = SparseMLP([5, 4, 3], sparsity=0, activation=nn.Tanh, output_activation=nn.Sigmoid)
    assert [type(module) for module in mlp] == [nn.Linear, nn.Tanh, nn.Linear, nn.Sigmoid]
    bounds = [parameter.abs().max().item() for parameter in mlp.parameters()]
    assert max(bounds[:2]) <= 5**-0.5
    assert max(bounds[2:]) <= 4**-0.5
    assert min(bounds) > 0.1


def test_mlp_layers_that_come_out_full_are_plain() -> None:
    # er at 50 %: the 2→2 layer would pass density 1.
    mlp = SparseMLP([10, 10, 2, 2], sparsity=0.4, distribution="er", dense=())
    kinds = [type(module) for module in mlp if not isinstance(module, nn.ReLU)]
    assert kinds == [SparseLinear, nn.Linear, nn.Linear]
    assert measured_sparsity(mlp) == pytest.approx(1 - (124 - 50) / 124)


@pytest.mark.parametrize(
    ("dense", "plain"),
    [((), []), (("output",), [2]), (("input", "output"), [0, 2]), ((1,), [1]), ((-1,), [2]), (("input", 1), [0, 1])],
)
def test_mlp_dense_layers(dense: tuple[str | int, ...], plain: list[int]) -> None:
    mlp = SparseMLP([20, 20, 20, 20], sparsity=0.3, dense=dense)
    linears = [module for module in mlp if not isinstance(module, nn.ReLU)]
    assert [index for index, module in enumerate(linears) if isinstance(module, nn.Linear)] == plain
    assert measured_sparsity(mlp) == pytest.approx(0.3)


def test_a_network_of_one_layer_has_no_output_layer_to_keep() -> None:
    assert isinstance(SparseMLP([8, 8], sparsity=0.5)[0], SparseLinear)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ([5], {}, re.escape("`sizes` must name at least an input and an output, all positive, got [5]")),
        ([5, 0, 2], {}, "all positive"),
        (
            [5, 4, 3],
            {"dense": (2,)},
            "`dense` names no layer with 2; give 'input', 'output', an index from 0 to 1, or a glob",
        ),
        ([5, 4, 3], {"dense": ("outptu",)}, "`dense` names no layer with 'outptu'"),
        ([5, 4, 3], {"sparsity": 0.99}, "cannot be met"),
        ([5, 4, 3], {"sparsity": -0.1}, "`sparsity` must be a number"),
        ([5, 4, 3], {"distribution": "erk2"}, "did you mean 'erk'"),
    ],
)
def test_mlp_wrong_arguments(sizes: list[int], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseMLP(sizes, **{"sparsity": 0.5, **options})


@pytest.mark.parametrize("shape", [(6,), (5, 6), (3, 5, 6)])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "auto"])
def test_what_follows_may_work_in_place(backend: str, shape: tuple[int, ...]) -> None:
    layer = layer_of(backend=backend)
    inputs = torch.randn(shape, generator=seeded(3), dtype=torch.float64)

    def gradients(follow: Callable[[Tensor], Tensor]) -> list[Tensor]:
        given = inputs.clone().requires_grad_()
        follow(layer(given)).square().sum().backward()
        found = [given.grad, layer.values.grad, layer.bias.grad]
        layer.zero_grad()
        return found

    def added(outputs: Tensor) -> Tensor:
        outputs += 1
        return outputs

    for here, elsewhere in ((torch.relu_, torch.relu), (added, lambda outputs: outputs + 1)):
        for one, other in zip(gradients(here), gradients(elsewhere), strict=True):
            assert torch.equal(one, other)
