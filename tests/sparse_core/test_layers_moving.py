"""Layers whose connections freeze, move, and are copied and stored."""

import copy
import io
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from small_layers import layer_of, seeded
from torch import Tensor, nn

from sparse_core import Rewiring, SparseLinear
from sparse_core.signals import Capture

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


def test_a_state_of_a_layer_with_fewer_inputs_is_refused_and_nothing_changes() -> None:
    # Every index of the narrow layer is one of the wide layer, too: only what is saved beside them tells.
    file = io.BytesIO()
    narrow, wide = SparseLinear(4, 3, sparsity=0.5), nn.Sequential(SparseLinear(6, 3, sparsity=0.5))
    torch.save(nn.Sequential(narrow).state_dict(), file)
    file.seek(0)
    before = copy.deepcopy(wide.state_dict())
    with pytest.raises(ValueError, match="0 has 6 inputs, but what is loaded was made for 4"):
        wide.load_state_dict(torch.load(file))
    assert_equal_state(wide.state_dict(), before)


def test_a_state_with_parts_missing_is_refused_and_nothing_changes() -> None:
    layer = layer_of(sparsity=0.8)
    before = copy.deepcopy(layer.state_dict())
    state = layer_of(sparsity=0.5).state_dict()
    del state["columns"]
    with pytest.raises(RuntimeError, match=r"Missing key.*columns"):
        layer.load_state_dict(state)
    assert_equal_state(layer.state_dict(), before)


def test_gradients_follow_their_connections() -> None:
    """Those of several batches may be added up over a change."""
    layer = layer_of()
    layer(torch.randn(5, layer.in_features, generator=seeded(), dtype=layer.values.dtype)).square().sum().backward()
    before = layer.values.grad.clone()
    change = change_of(layer, [0, 3], 2)
    layer.rewire(change)
    kept = change.source >= 0
    assert torch.equal(layer.values.grad[kept], before[change.source[kept]])
    assert not layer.values.grad[~kept].any()
    before = layer.values.grad.clone()
    frozen, _ = layer.freeze(layer.positions[[1, 2]])
    assert torch.equal(layer.values.grad, before[frozen.source])
