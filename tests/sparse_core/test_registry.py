"""What holds for every method of the registry, wherever it is used: in convolutions, at any width, from outside."""

import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_core import (
    DROP_RULES,
    GROW_RULES,
    PRESETS,
    Adam,
    LayerView,
    Preset,
    SparseLinear,
    Sparsifier,
    Topology,
    drop_rule,
    grow_rule,
    signals,
    sparse_layers,
    sparsify,
)
from sparse_core.meters import nnz, sparsity

ROOT = Path(__file__).parents[2]
CHANGING = [name for name, preset in PRESETS.items() if preset.changes]
TRULY_SPARSE = [name for name in CHANGING if not PRESETS[name].dense_by_nature]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_dense_ones_say_so() -> None:
    said = {name for name in CHANGING if PRESETS[name].dense_by_nature}
    assert said == {
        "snfs", "gmp", "granet", "lamp", "acdc", "snip", "grasp", "top-kast", "sr-ste", "trainable-threshold"
    }  # fmt: skip


# Convolutions


@pytest.mark.parametrize("name", [{"sr-ste": "sr-ste:n=1:m=2"}.get(name, name) for name in CHANGING])
def test_a_convolutional_network_trains(name: str) -> None:
    torch.manual_seed(0)
    asked = PRESETS[name].own_sparsity or 0.7
    model: nn.Module = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3)
    )
    model = sparsify(model, asked, topology=name, dense=(), generator=seeded())
    optimizer = Adam(model.parameters(), lr=0.01)
    sparsifier = Sparsifier.preset(name, model, optimizer, total_steps=12, period=3, sparsity=0.7, seed=0)
    before = {key: layer.topology for key, layer in sparse_layers(model).items()}
    for step in range(12):
        images = torch.randn(4, 2, 6, 6, generator=seeded(step))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
        sparsifier.step(closure=partial(lambda images: model(images).square().mean().backward(), images))
    cells = 6 * 18 + 8 * 54 + 3 * 128
    if PRESETS[name].exact:
        assert nnz(model) == cells - round(asked * cells)
        assert sparsity(model) == pytest.approx(asked, abs=1 / cells)
    after = {key: layer.topology for key, layer in sparse_layers(model).items()}
    assert before.keys() == after.keys()
    if PRESETS[name].searches and not DROP_RULES[PRESETS[name].drop].own_count:
        assert all(before[key] != after[key] for key in before)


# Width


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("name", TRULY_SPARSE)
def test_a_change_makes_nothing_of_the_size_outputs_times_inputs(name: str) -> None:
    rows, columns, count = 700, 900, 3_000
    layer = SparseLinear(columns, rows, topology=Topology.random((rows, columns), count, seeded()), backend="csr")
    optimizer = Adam(layer.parameters())
    sparsifier = Sparsifier.preset(name, layer, optimizer, total_steps=3, period=1, sparsity=0.996, seed=0)
    with mock.patch.object(signals, "BLOCK_CELLS", 20_000):
        layer(torch.randn(4, columns, generator=seeded(1))).square().sum().backward()
        optimizer.step()
        tracemalloc.start()
        try:
            with Largest() as largest:
                sparsifier.step()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert layer.nnz in (count, rows * columns - round(0.996 * rows * columns))
    assert largest.elements < rows * columns / 10
    assert peak < 2 * rows * columns  # bytes of NumPy's and SciPy's arrays: half of a float32 matrix


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory as Linux does")
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", TRULY_SPARSE)
def test_65536_wide_within_a_memory_limit(name: str) -> None:
    """A dense matrix of one byte an entry would take 4.3 GB."""
    code = f"""
import resource, torch
from sparse_core import Adam, SparseLinear, Sparsifier, Topology
width = 65_536
layer = SparseLinear(
    width, width, topology=Topology.random((width, width), 100_000, torch.Generator().manual_seed(0)), backend="csr")
optimizer = Adam(layer.parameters())
sparsifier = Sparsifier.preset({name!r}, layer, optimizer, total_steps=3, period=1, sparsity=1 - 9e4 / width**2, seed=0)
layer(torch.randn(2, width)).square().mean().backward()
optimizer.step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sparsifier.step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 600  # MB above what the layer itself has taken


# From outside


def test_a_rule_from_outside_trains_with_the_public_registry_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (DROP_RULES, GROW_RULES, PRESETS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @drop_rule("oldest-first")
    def first(view: LayerView, count: int, *, offset: int = 0) -> Tensor:
        """Drop the lowest positions from an offset on: an option that a name may set."""
        return torch.arange(offset, offset + count)

    @grow_rule("diagonal", needs_capture=True)
    def diagonal(view: LayerView, count: int) -> Tensor:
        """Grow near the diagonal, and by gradient within it."""
        span = view.shape[1] / view.shape[0]

        def scores(start: int, stop: int) -> Tensor:
            rows = view.allowed_outputs[start:stop, None] * span
            return 1 / (1 + (torch.arange(view.shape[1]) - rows).abs())

        return view.strongest(count, scores)

    PRESETS.add("outside", Preset("a rule of ours", drop="oldest-first", grow="diagonal", drop_fraction=0.2))
    model = sparsify(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)), 0.6)
    optimizer = Adam(model.parameters(), lr=0.01)
    sparsifier = Sparsifier.preset("outside:offset=1:grow_mix=0.1", model, optimizer, total_steps=40, period=4, seed=0)
    losses = []
    for step in range(40):
        inputs = torch.randn(32, 8, generator=seeded(step))
        optimizer.zero_grad()
        loss = (model(inputs) - inputs[:, :2]).square().mean()
        loss.backward()
        optimizer.step()
        sparsifier.step()
        losses.append(float(loss.detach()))
    assert sparsifier.changes == 10
    assert sum(losses[-5:]) < sum(losses[:5])
