"""Layers so wide that nothing of the size outputs × inputs can exist, at any moment of their life."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse_core import Adam, SparseLinear, Sparsifier, Topology, settle
from sparse_core.meters import memory, topology_distance

ROOT = Path(__file__).parents[2]
TRAINING_STEP = """
import json, resource, time, torch
from sparse_core import Adam, SparseLinear, Sparsifier

start = time.perf_counter()
width = 65_536
layer = SparseLinear(width, width, sparsity=0.999, backend="auto", generator=torch.Generator().manual_seed(0))
optimizer = Adam(layer.parameters())
sparsifier = Sparsifier.preset("set", layer, optimizer, period=1, seed=0)
inputs = torch.randn(64, width, requires_grad=True)
layer(inputs).square().mean().backward()
optimizer.step()
(change,) = sparsifier.step().values()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if {macos} else 1024)
print(json.dumps(dict(
    backend=layer.backend, nnz=layer.nnz, dropped=change.dropped.numel(), grown=change.grown.numel(),
    gradient=inputs.grad.abs().sum().item(), peak=peak, seconds=time.perf_counter() - start,
)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no resource module")
def test_65536_wide_trains_within_3_gb() -> None:
    """The dense layer's weight, gradient and two moments alone would take 69 GB."""
    code = TRAINING_STEP.replace("{macos}", str(sys.platform == "darwin"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["backend"] == "csr"
    assert found["nnz"] == round(0.001 * 65_536**2)
    assert found["dropped"] == found["grown"] > 1_000_000
    assert found["gradient"] > 0
    assert found["peak"] < 3 * 2**30


WIDTH, COUNT = 1 << 20, 100_000  # dense: 4 TB


@pytest.mark.end_to_end
@pytest.mark.parametrize("backend", ["csr", "auto"])
@pytest.mark.parametrize("preset", ["set", "static"])
def test_nothing_is_as_large_as_outputs_times_inputs(backend: str, preset: str) -> None:
    topology = Topology.random((WIDTH, WIDTH), COUNT, torch.Generator().manual_seed(0))
    assert topology.nnz == COUNT
    assert topology.transpose.row_pointer[-1] == COUNT
    assert topology_distance(topology, topology) == 0
    layer = SparseLinear(WIDTH, WIDTH, topology=topology, init="fan-in", backend=backend)
    follower = SparseLinear(WIDTH, WIDTH, topology=topology, backend=backend)
    optimizer = Adam(layer.parameters())
    sparsifier = Sparsifier.preset(preset, layer, optimizer, period=1, total_steps=10, seed=0, followers=[follower])
    assert settle(layer, 2) == {"": "csr"}
    for step in range(2):
        inputs = torch.ones(2, WIDTH, requires_grad=True)
        optimizer.zero_grad()
        layer(inputs).square().sum().backward()
        assert inputs.grad is not None
        if step == 0:  # later some connections are zero, as grown ones are
            assert int(inputs.grad[0].count_nonzero()) == int((topology.fan_out > 0).sum())
        optimizer.step()
        sparsifier.step()
    assert sparsifier.changes == (2 if preset == "set" else 0)
    assert layer.topology == follower.topology
    assert (layer.topology == topology) == (preset == "static")
    assert optimizer.state[layer.values]["exp_avg"].shape == (COUNT,)
    follower.load_state_dict(layer.state_dict())
    layer.freeze(layer.positions[: COUNT // 2], torch.arange(5))
    layer(torch.ones(2, WIDTH)).sum().backward()
    assert memory(layer, optimizers=(optimizer,)).total < 100 << 20


def test_gradient_growth_looks_at_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (16, 1 << 21)
    layer = SparseLinear(
        shape[1], shape[0], topology=Topology.random(shape, 1000, torch.Generator().manual_seed(0)), backend="csr"
    )
    optimizer = Adam(layer.parameters())
    sparsifier = Sparsifier.preset("rigl", layer, optimizer, period=1, total_steps=10, seed=0)
    largest = 0

    def noting(matrix: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, matrix.numel())
        return plain(matrix)

    plain = torch.isfinite
    monkeypatch.setattr(torch, "isfinite", noting)
    layer(torch.ones(1, shape[1])).square().sum().backward()
    optimizer.step()
    (change,) = sparsifier.step().values()
    assert change.grown.numel() > 0
    assert largest == shape[1]  # one row, since even that is more than a block
