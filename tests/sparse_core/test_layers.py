import copy
import pickle
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sparse_core import BACKENDS, Rewiring, SparseLinear, SparseMLP, Topology, sparse_layers
from sparse_core.meters import sparsity as measured_sparsity
from sparse_core.signals import Capture


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_of(
    in_features: int = 6, out_features: int = 5, sparsity: float = 0.5, frozen: int = 0, seed: int = 0, **options
) -> SparseLinear:
    """A float64 layer whose first `frozen` connections and first bias are frozen."""
    options = {"dtype": torch.float64, **options}
    layer = SparseLinear(in_features, out_features, sparsity=sparsity, generator=seeded(seed), **options)
    if frozen:
        layer.freeze(layer.positions[:frozen], torch.tensor([0]))
    return layer


def masked_twin(layer: SparseLinear) -> tuple[Tensor, Tensor | None]:
    """Dense leaf weight (zero where there is no connection) and bias, made from the layer's state alone."""
    state = layer.state_dict()
    values = torch.empty(layer.nnz, dtype=layer.values.dtype)
    movable = torch.ones(layer.nnz, dtype=torch.bool)
    movable[state["frozen"].long()] = False
    values[movable], values[~movable] = state["values"], state["frozen_values"]
    weight = torch.zeros(layer.shape, dtype=values.dtype)
    for row in range(layer.out_features):
        first, last = state["row_pointer"][row : row + 2].tolist()
        weight[row, state["columns"][first:last].long()] = values[first:last]
    if layer.bias is None:
        return weight.requires_grad_(), None
    bias = torch.empty(layer.out_features, dtype=values.dtype)
    free = torch.ones(layer.out_features, dtype=torch.bool)
    free[state["frozen_bias"].long()] = False
    bias[free], bias[~free] = state["bias"], state["frozen_bias_values"]
    return weight.requires_grad_(), bias.requires_grad_()


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


# Freezing


def test_freezing_changes_what_learns_and_not_what_is_computed() -> None:
    layer = layer_of()
    inputs = torch.randn(3, 6, dtype=torch.float64, generator=seeded(1))
    before, dense, positions, parameter = layer(inputs), layer.to_dense(), layer.positions.clone(), layer.values
    rewiring, stays = layer.freeze(positions[[1, 4, 7]], torch.tensor([2]))

    assert torch.equal(layer(inputs), before)
    assert layer.nnz == 15
    assert torch.equal(layer.topology.positions, positions)
    assert layer.values is parameter
    assert layer.values.numel() == 12
    assert torch.equal(layer.frozen_values, dense.weight.flatten()[positions[[1, 4, 7]]])
    assert layer.bias.numel() == 4
    assert torch.equal(layer.frozen_bias_values, dense.bias[[2]])
    assert stays.tolist() == [0, 1, 3, 4]
    assert rewiring.source.tolist() == [0, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13, 14]
    assert "frozen=3" in repr(layer)
    # Frozen twice over, in another order: still one value per connection.
    layer.freeze(positions[[0, 14, 0]])
    assert torch.equal(layer.frozen_positions, positions[[0, 1, 4, 7, 14]])
    assert torch.equal(layer(inputs), before)


def test_everything_can_be_frozen() -> None:
    layer = layer_of()
    inputs = torch.randn(3, 6, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    before = layer(inputs)
    layer.freeze(biases=torch.arange(5))
    assert (layer.values.numel(), layer.bias.numel(), layer.nnz) == (0, 0, 15)
    after = layer(inputs)
    assert torch.equal(after, before)
    after.sum().backward()
    torch.testing.assert_close(inputs.grad, layer.to_dense().weight.sum(0).expand(3, 6))


@pytest.mark.parametrize("positions", [[-1], [30], "absent", "frozen"])
def test_only_movable_connections_can_be_frozen(positions: list[int] | str) -> None:
    layer = layer_of(frozen=4)
    if positions == "absent":
        positions = [int((layer.topology.to_mask().flatten().logical_not()).nonzero()[0])]
    elif positions == "frozen":
        positions = [int(layer.frozen_positions[0])]
    state = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match="only movable connections"):
        layer.freeze(torch.tensor(positions))
    assert_equal_state(layer.state_dict(), state)


def test_a_refused_bias_leaves_the_connections_alone() -> None:
    layer = layer_of(frozen=4)  # the bias of output 0 is frozen
    state = copy.deepcopy(layer.state_dict())
    for biases in ([0], [5]):
        with pytest.raises(ValueError, match="only biases that are still movable"):
            layer.freeze(layer.positions[:2], torch.tensor(biases))
        assert_equal_state(layer.state_dict(), state)


def assert_equal_state(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name


# Rewiring


def change_of(layer: SparseLinear, drop: list[int], grow: int) -> Rewiring:
    """Drop these indices, grow the first `grow` vacant positions."""
    vacant = layer.topology.to_mask().flatten().logical_not().nonzero().squeeze(1)
    return Rewiring.of(layer.shape, layer.positions.clone(), torch.tensor(drop, dtype=torch.int64), vacant[:grow])


@pytest.mark.parametrize("frozen", [0, 4])
def test_a_change_of_equal_count_is_in_place(frozen: int) -> None:
    layer = layer_of(frozen=frozen)
    dense = layer.to_dense()
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    storage = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    change = change_of(layer, [0, 3], 2)
    layer.rewire(change, fill=0.25)

    assert {name: tensor.data_ptr() for name, tensor in tensors.items()} == storage
    assert layer.nnz == 15
    expected = dense.weight.detach().flatten()
    expected[change.dropped], expected[change.grown] = 0.0, 0.25
    assert torch.equal(layer.to_dense().weight.flatten(), expected)
    assert torch.equal(layer.to_dense().bias, dense.bias)


@pytest.mark.parametrize(("drop", "grow"), [([0, 3], 5), ([0, 3, 4], 1), ([], 3), (list(range(15)), 0)])
def test_another_count_stays_under_the_same_parameter(drop: list[int], grow: int) -> None:
    layer = layer_of()
    parameter, expected = layer.values, layer.to_dense().weight.detach().flatten()
    layer(torch.ones(1, 6, dtype=torch.float64)).sum().backward()
    change = change_of(layer, drop, grow)
    expected[change.dropped] = 0.0
    layer.rewire(change)

    assert layer.values is parameter
    assert layer.nnz == 15 - len(drop) + grow
    assert layer.values.grad.shape == layer.values.shape
    assert torch.equal(layer.to_dense().weight.flatten(), expected)


def test_training_goes_on_after_another_count_while_the_last_loss_is_alive() -> None:
    # The variable `loss` of the step before keeps its graph, and with it a gradient accumulator of the old length.
    layer, inputs = layer_of(), torch.ones(1, 6, dtype=torch.float64)
    loss = layer(inputs).sum()
    loss.backward()
    layer.rewire(change_of(layer, [0, 3], 5))
    layer.zero_grad()
    next_loss = layer(inputs).sum()
    next_loss.backward()
    assert torch.equal(layer.values.grad, torch.ones(18, dtype=torch.float64))
    assert loss.grad_fn is not None


def test_a_change_made_for_another_topology_is_refused() -> None:
    layer, other = layer_of(seed=0), layer_of(seed=1)
    with pytest.raises(ValueError, match="made for another topology"):
        layer.rewire(change_of(other, [0], 1))


def test_a_backward_pass_from_before_a_change_is_refused() -> None:
    layer = layer_of()
    loss = layer(torch.ones(1, 6, dtype=torch.float64)).sum()
    layer.rewire(change_of(layer, [0], 1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Copies and checkpoints


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_equal_and_independent(duplicate: Callable[[SparseLinear], SparseLinear]) -> None:
    layer = layer_of(frozen=4)
    layer.capture = Capture(1)
    inputs = torch.ones(2, 6, dtype=torch.float64)
    twin = duplicate(layer)
    assert torch.equal(twin(inputs), layer(inputs))
    assert twin.topology == layer.topology
    assert twin.capture is None  # what one layer captures is not its copy's
    before = layer.to_dense().weight
    twin.rewire(change_of(twin, [0, 1], 2))
    with torch.no_grad():
        twin.values.fill_(9.0)
    assert torch.equal(layer.to_dense().weight, before)


def test_a_state_of_another_count_loads_into_the_same_parameter() -> None:
    layer, other = layer_of(sparsity=0.5), layer_of(sparsity=0.8, frozen=2, seed=1)
    parameter, inputs = layer.values, torch.ones(2, 6, dtype=torch.float64)
    layer.load_state_dict(other.state_dict())
    assert layer.values is parameter
    assert layer.nnz == 6
    assert torch.equal(layer(inputs), other(inputs))

    # The optimizer made before works on; frozen values stay.
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer.load_state_dict(layer_of(sparsity=0.5).state_dict())
    layer.load_state_dict(other.state_dict())
    layer(inputs).sum().backward()
    optimizer.step()
    assert torch.equal(layer.values, other.values - 0.1 * layer.values.grad)
    assert torch.equal(layer.frozen_values, other.frozen_values)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("row_pointer", lambda tensor: tensor[:-1], "does not describe"),
        ("row_pointer", lambda tensor: tensor + 1, "does not describe"),
        ("columns", lambda tensor: tensor + 6, re.escape("`columns` must lie in [0, 6)")),
        ("columns", lambda tensor: tensor.flip(0), "sorted and unique"),
        ("columns", lambda tensor: tensor[:-1], "does not describe"),
        ("values", lambda tensor: tensor[:-1], "values holds 10 values for 11 movable connections"),
        ("values", lambda tensor: tensor[:, None], "values holds 11 × 1 values for 11 movable connections"),
        ("frozen", lambda tensor: tensor + 12, "frozen must hold distinct ascending indices within .0, 15."),
        ("frozen", lambda tensor: tensor - 1, "frozen must hold distinct ascending indices"),
        ("frozen", lambda tensor: tensor.new_zeros(4), "frozen must hold distinct ascending indices"),
        ("frozen_values", lambda tensor: tensor[:-1], "frozen must hold .* one per frozen value"),
        ("bias", lambda tensor: tensor[:-1], "bias holds 3 values for 4 movable"),
        ("frozen_bias", lambda tensor: tensor + 5, "frozen_bias must hold"),
    ],
)
def test_a_damaged_state_is_refused_and_nothing_changes(
    name: str, damage: Callable[[Tensor], Tensor], message: str
) -> None:
    layer = layer_of(seed=1)
    before = copy.deepcopy(layer.state_dict())
    state = copy.deepcopy(layer_of(frozen=4).state_dict())
    state[name] = damage(state[name])
    with pytest.raises(ValueError, match=message):
        layer.load_state_dict(state)
    assert_equal_state(layer.state_dict(), before)


def test_a_state_with_parts_missing_is_refused_and_nothing_changes() -> None:
    layer = layer_of(sparsity=0.8)
    before = copy.deepcopy(layer.state_dict())
    state = layer_of(sparsity=0.5).state_dict()
    del state["columns"]
    with pytest.raises(RuntimeError, match=r"Missing key.*columns"):
        layer.load_state_dict(state)
    assert_equal_state(layer.state_dict(), before)


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
