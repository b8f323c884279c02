"""Every preset in training: resumed as if nothing had been, and near an optimum that is known."""

import io
from typing import Any

import pytest
import torch
from small_sparsifiers import OPTIMIZERS, again, assert_equal, learn, network, seeded, sparsifier_of

from sparse_core import PRESETS, Adam, SparseLinear, SparseMLP, Sparsifier, Topology, sparse_layers
from sparse_core.meters import nnz


def saved(parts: list[Any]) -> list[Any]:
    """Their state, through a file that holds no code."""
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("name", "optimizer_name"),
    [
        *((name, "ours") for name in PRESETS),
        *((name, optimizer) for name in ("set", "rigl") for optimizer in ("SGD", "Adam")),
    ],
)
@pytest.mark.parametrize(  # between changes, in the middle of a capture, at a change
    "stop", [pytest.param(9, marks=pytest.mark.slow), 14, pytest.param(15, marks=pytest.mark.slow)]
)
def test_resuming_is_invisible(name: str, optimizer_name: str, stop: int) -> None:
    def build(seed: int) -> list[Any]:
        model = network(name, seed)
        optimizer = OPTIMIZERS[optimizer_name](model.parameters())
        return [model, optimizer, sparsifier_of(name, model, optimizer, seed=seed, capture_batches=2)]

    def run(parts: list[Any], first: int, last: int) -> None:
        model, optimizer, sparsifier = parts
        for step in range(first, last):
            learn(model, optimizer, step, 6)
            # The change due at step 15 has to wait.
            sparsifier.step(allowed=step + 1 not in (15, 16), closure=again(model, step))
            if step == 6 and sparse_layers(model) and not PRESETS[name].masking:
                sparsifier.freeze("2", sparsifier.layers["2"].positions[:9], torch.tensor([4]))

    straight = build(seed=1)
    run(straight, 0, 30)
    half = build(seed=1)
    run(half, 0, stop)
    states = saved(half)
    resumed = build(seed=2)  # other topologies, other weights, other generators
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    run(resumed, stop, 30)
    assert_equal([part.state_dict() for part in resumed], [part.state_dict() for part in straight])


def test_a_state_of_another_model_is_refused() -> None:
    one, two = (
        sparsifier_of("set", model, OPTIMIZERS["SGD"](model.parameters()))
        for model in (SparseMLP([6, 16, 2], sparsity=0.5), network("set"))
    )
    with pytest.raises(
        ValueError, match=r"the saved state has layers \['0'\], this model \['0', '2'\]; build the model"
    ):
        two.load_state_dict(one.state_dict())


# Learning


# One of each kind; the others are slow ones.
KINDS = {"dense", "static", "set", "rigl", "reset-in-place", "deepr", "granet", "snfs", "grasp", "top-kast"}


@pytest.mark.parametrize(
    "name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS]
)
def test_every_preset_fits_a_function_of_known_optimum(name: str) -> None:
    # |x₀| - |x₁| is four hidden neurons away; the other six inputs are noise.
    generator = seeded(0)
    inputs = torch.randn(512, 8, generator=generator)
    targets = inputs[:, :1].abs() - inputs[:, 1:2].abs()
    dense = PRESETS[name].dense
    sparsity = 0.0 if dense else PRESETS[name].own_sparsity or 0.6
    model = SparseMLP([8, 64, 1], sparsity=sparsity, topology=name, dense=(), generator=generator)
    optimizer = Adam(model.parameters(), lr=0.02)
    sparsifier = Sparsifier.preset(name, model, optimizer, total_steps=300, period=20, seed=0, sparsity=sparsity)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        sparsifier.step(closure=lambda: (model(inputs) - targets).square().mean().backward())
    assert loss < 0.02 * targets.var()
    if PRESETS[name].exact:
        assert nnz(model) == 576 - round(sparsity * 576)


def test_gradient_growth_finds_the_one_input_that_matters() -> None:
    # y = x₇, and a layer that starts with four connections elsewhere. Nothing that stays there can do better than
    # predict zero, an error of var(y) = 1; the steepest vacant position is 7.
    losses = {}
    for name in ("static", "rigl"):
        topology = Topology.from_positions((1, 40), torch.tensor([10, 20, 30, 39]))
        layer = SparseLinear(40, 1, topology=topology, generator=seeded())
        optimizer = Adam(layer.parameters(), lr=0.05)
        sparsifier = Sparsifier.preset(name, layer, optimizer, total_steps=300, period=20, seed=0)
        for step in range(300):
            inputs = torch.randn(64, 40, generator=seeded(step))
            optimizer.zero_grad()
            loss = (layer(inputs)[:, 0] - inputs[:, 7]).square().mean()
            loss.backward()
            optimizer.step()
            sparsifier.step()
        losses[name] = loss.item()
        assert layer.nnz == 4
    assert losses["rigl"] < 1e-3
    assert losses["static"] > 0.5
    assert 7 in layer.positions.tolist()
