"""Convolutions whose connections move, freeze, grow by gradients, and go into files and back."""

import copy
import io
import pickle
import re
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from small_convolutions import BACKENDS, UNITS, conv_of, dense_values, images, seeded
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_core import Adam, Rewiring, SparseConv2d, Sparsifier, sparse_layers, sparsify
from sparse_core.meters import nnz
from sparse_core.signals import Capture

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


@pytest.mark.parametrize("birth", ["normal", "gradient"])
@pytest.mark.parametrize("size", [3, 1])
def test_births_by_name_want_single_weights(size: int, birth: str) -> None:
    conv = sparsify(nn.Conv2d(4, 6, size), 0.5, conv_unit="kernel", generator=seeded())
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"need connections of one weight, but those of '' are whole kernels; make"):
        Sparsifier(conv, optimizer, drop="magnitude", grow="random", birth=birth)
    with pytest.raises(ValueError, match="need connections of one weight"):
        Sparsifier.preset("deepr", conv, optimizer)
    conv.requires_grad_(False)  # stays as it is
    head = sparsify(nn.Linear(6, 8), 0.5)
    Sparsifier.preset("deepr", nn.Sequential(conv, head), torch.optim.SGD(head.parameters(), lr=0.1))


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("unit", UNITS)
def test_single_places_have_their_part_of_the_whole_gradient(
    unit: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparse_core.conv.BLOCK_CELLS", block)
    conv = conv_of(unit, padding=1)
    conv.capture = Capture(2)
    for batch in range(2):
        conv.capture.batch = batch
        conv(images(2, 3, 6, 7, seed=batch)).square().sum().backward()
    whole = conv.capture.gradient_rows(0, conv.shape[0]).flatten()
    places = torch.arange(whole.numel())[whole.numel() // 4 :: 5]  # none of output 0
    found = conv.capture.gradient_at(places, conv.shape[1])
    torch.testing.assert_close(found, whole[places], rtol=1e-5, atol=1e-5)


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


@pytest.mark.end_to_end
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
    kernels, weights = conv_of("kernel"), conv_of("weight")
    with pytest.raises(ValueError, match="has 6 weights in a connection, but what is loaded was made with 1;"):
        kernels.load_state_dict(weights.state_dict())
    with pytest.raises(ValueError, match="has 1 weights in a connection, but what is loaded was made with 6"):
        weights.load_state_dict(kernels.state_dict())
    # Tensors alone, as a checkpoint has them.
    with pytest.raises(ValueError, match=re.escape("`columns` must lie in [0, 3)")):
        kernels.load_state_dict(dict(weights.state_dict()))
    with pytest.raises(ValueError, match="values holds 6 × 6 values for 6 movable connections"):
        weights.load_state_dict(dict(kernels.state_dict()))
