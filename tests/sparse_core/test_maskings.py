"""Methods that keep more weights than they multiply: by hand, against masked-dense NumPy, and end to end."""

import copy
from typing import Any

import pytest
import torch
from small_masked import layer_of, seeded
from torch import Tensor, nn

from sparse_core import (
    MASKINGS,
    PRESETS,
    Adam,
    Masking,
    Preset,
    SparseConv2d,
    SparseLinear,
    SparseMLP,
    Sparsifier,
    masking,
    plan,
    sparse_layers,
    sparsify,
    to_semi_structured,
    to_sparse,
)
from sparse_core.meters import forward_flops, layer_counts, memory, nnz, sparsity, stored, training_flops

# What holds for all of them


def network(name: str, seed: int = 0, asked: float = 0.75, **options: Any) -> SparseMLP:
    return SparseMLP([8, 16, 16, 4], sparsity=asked, topology=name, generator=seeded(seed), dense=(), **options)


def train(model: nn.Module, optimizer: Any, sparsifier: Sparsifier, steps: range) -> Tensor:
    for step in steps:
        inputs = torch.randn(16, 8, generator=seeded(step))
        optimizer.zero_grad()
        loss = (model(inputs) - inputs[:, :4]).square().mean()
        loss.backward()
        optimizer.step()
        sparsifier.step()
    return loss.detach()


# Every one of the registry, with options that make a quarter of the weights multiply.
MASKED = [{"sr-ste": "sr-ste:n=1:m=4"}.get(name, name) for name, preset in PRESETS.items() if preset.masking]


@pytest.mark.parametrize("name", MASKED)
def test_it_learns_with_the_weights_that_multiply_and_pays_for_all(name: str) -> None:
    model = network(name)
    optimizer = Adam(model.parameters(), lr=0.03)
    sparsifier = Sparsifier.preset(name, model, optimizer, period=min(5, PRESETS[name].period))
    cells = 8 * 16 + 16 * 16 + 16 * 4
    first = train(model, optimizer, sparsifier, range(1))
    last = train(model, optimizer, sparsifier, range(1, 120))
    assert last < 0.5 * first
    assert stored(model) == cells
    assert forward_flops(model, weights=sparsifier.mean_weights) == 2 * cells
    assert training_flops(model) == 6 * cells - 2 * 8 * 16
    counts = layer_counts(model)
    assert all(count.nnz == sparse_layers(model)[key].multiplied for key, count in counts.items())
    assert memory(model).parameters >= 4 * cells
    if PRESETS[name].exact:
        assert nnz(model) == cells / 4
        assert sparsity(model) == 0.75
        assert sum(sparsifier.mean_weights.values()) == cells / 4
    else:
        assert sparsity(model) == pytest.approx(0.75, abs=0.1)  # where it stops being pushed
        assert nnz(model) < sum(sparsifier.mean_weights.values()) < cells


@pytest.mark.parametrize("name", MASKED)
def test_followers_keep_the_same_and_a_checkpoint_brings_everything_back(name: str) -> None:
    def made() -> tuple[SparseMLP, SparseMLP, Any, Sparsifier]:
        model = network(name)
        target = copy.deepcopy(model)
        optimizer = Adam(model.parameters(), lr=0.02)
        sparsifier = Sparsifier.preset(name, model, optimizer, period=3, total_steps=40, followers=[target], seed=0)
        return model, target, optimizer, sparsifier

    model, target, optimizer, sparsifier = made()
    train(model, optimizer, sparsifier, range(20))
    online = [layer.masking.kept for layer in sparse_layers(model).values()]
    followed = [layer.masking.kept for layer in sparse_layers(target).values()]
    assert all(torch.equal(*pair) for pair in zip(online, followed, strict=True))
    saved = copy.deepcopy([part.state_dict() for part in (model, target, optimizer, sparsifier)])
    again = made()
    for part, state in zip(again, saved, strict=True):
        part.load_state_dict(state)
    train(model, optimizer, sparsifier, range(20, 40))
    train(again[0], again[2], again[3], range(20, 40))
    for ours, theirs in zip((model, target), again[:2], strict=True):
        assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())
    assert sparsifier.mean_weights == again[3].mean_weights
    assert sparsifier.changes == again[3].changes == 13


@pytest.mark.parametrize("name", MASKED)
def test_a_user_s_own_model_is_masked_with_its_weights(name: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    dense = copy.deepcopy(model)
    made = sparsify(model, 0.75, topology=name, dense=(), generator=seeded())
    for index in ("0", "2"):
        layer = sparse_layers(made)[index]
        matrix = dense.get_submodule(index).weight
        assert torch.equal(layer.values.view_as(matrix), matrix)
        assert torch.equal(layer.to_dense().weight, matrix * layer.masking.kept.view_as(matrix))
        if PRESETS[name].exact:
            assert layer.multiplied == plan(dense, 0.75, topology=name, dense=()).multiplied[index]


def test_a_masking_from_outside_trains_with_the_public_registry_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (MASKINGS, PRESETS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @masking("positive", exact=False)
    class Positive(Masking):
        """Multiply weights above a floor."""

        def __init__(self, layer: Any, count: int, *, floor: float = 0.0) -> None:
            super().__init__(layer, count)
            self.floor = floor
            self.refresh(layer.values.detach())

        def refresh(self, values: Tensor) -> None:
            self.kept.copy_(values > self.floor)

    PRESETS.add("positive", Preset("weights above a floor", masking="positive", begin=0.0, period=2))
    model = network("positive:floor=0.05")
    optimizer = Adam(model.parameters(), lr=0.02)
    sparsifier = Sparsifier.preset("positive:floor=0.05", model, optimizer)
    first = train(model, optimizer, sparsifier, range(1))
    assert train(model, optimizer, sparsifier, range(1, 40)) < first
    sparsifier.update()
    layer = sparse_layers(model)["0"]
    assert (layer.active_values > 0.05).sum() == layer.multiplied == layer.active_topology.nnz


def test_a_masked_layer_neither_moves_nor_freezes() -> None:
    layer = layer_of([[1.0, 2.0]], 1, "top-kast")
    with pytest.raises(ValueError, match="a layer masked by TopKast cannot freeze part of its connections"):
        layer.freeze()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"layer '' has TopKast masks, the topology wants none; give `sparsify`"):
        Sparsifier.preset("set", layer, optimizer)
    with pytest.raises(ValueError, match=r"layer '' was masked with other options \(backward\)"):
        Sparsifier.preset("top-kast:backward=3", layer, optimizer)
    plain = SparseLinear(4, 4, sparsity=0.5, generator=seeded())
    with pytest.raises(ValueError, match="layer '' has no masks, the topology wants TopKast"):
        Sparsifier.preset("top-kast", plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="a masked layer keeps every weight it may ever multiply: 16 values, got 8"):
        MASKINGS["top-kast"].choose(plain, 4)


@pytest.mark.parametrize("name", MASKED)
def test_masks_are_no_topology_and_wait_for_nobody(name: str) -> None:
    model = network(name)
    optimizer = Adam(model.parameters(), lr=0.02)
    sparsifier = Sparsifier.preset(name, model, optimizer, period=2)
    for _ in range(4):
        assert sparsifier.step(allowed=False) == {}
    assert sparsifier.changes == 2


# After training


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_model_becomes_truly_sparse_with_the_same_outputs(name: str) -> None:
    model = network(name)
    optimizer = Adam(model.parameters(), lr=0.02)
    train(model, optimizer, Sparsifier.preset(name, model, optimizer), range(10))
    sparse = to_sparse(model)
    inputs = torch.randn(5, 8, generator=seeded(1))
    torch.testing.assert_close(sparse(inputs), model(inputs))
    assert stored(sparse) == nnz(sparse) == nnz(model) < stored(model)
    assert {key.rpartition(".")[2] for key, _ in sparse.named_parameters()} == {"values", "bias"}
    optimizer = Adam(sparse.parameters(), lr=0.02)
    moving = Sparsifier.preset("set", sparse, optimizer, period=2)
    train(sparse, optimizer, moving, range(10, 14))
    assert moving.changes == 2


def test_a_masked_convolution_becomes_truly_sparse() -> None:
    conv: Any = sparsify(nn.Conv2d(4, 6, 3), 0.8, topology="top-kast", dense=())
    images = torch.randn(2, 4, 6, 6, generator=seeded())
    sparse: Any = to_sparse(conv)
    torch.testing.assert_close(sparse(images), conv(images))
    assert (sparse.nnz, sparse.cells) == (conv.cells - round(0.8 * conv.cells), conv.cells)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseLinear(64, 32, sparsity=0.0), r"layer '' has 4 weights in some 4 inputs, not 2; train it with"),
        (lambda: SparseLinear(60, 32, sparsity=0.5), r"layer '' must be linear, with outputs a multiple of 32.*32×60"),
        (lambda: SparseConv2d(64, 32, 1, sparsity=0.5), r"got 32×64 of a SparseConv2d; keep it dense"),
    ],
)
def test_what_is_not_2_to_4_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_semi_structured(make())


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_2_to_4_wants_a_gpu() -> None:
    model = sparsify(nn.Linear(64, 32), topology="sr-ste", dense=())
    with pytest.raises(ValueError, match=r"`dtype` must be torch\.float16 or torch\.bfloat16, got torch\.float32"):
        to_semi_structured(model, torch.float32)
    with pytest.raises(RuntimeError, match=r"2:4 weights multiply on an NVIDIA GPU of compute capability 8\.0"):
        to_semi_structured(model)


@pytest.mark.gpu
def test_2_to_4_on_a_gpu_has_the_same_outputs() -> None:
    model = sparsify(nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32)), topology="sr-ste", dense=())
    inputs = torch.randn(64, 128, generator=seeded())
    outputs = to_semi_structured(model)(inputs.cuda().half())
    torch.testing.assert_close(outputs.float().cpu(), model(inputs), rtol=1e-2, atol=1e-2)
