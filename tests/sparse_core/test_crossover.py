"""Backend `auto`: settled by measurement, once on a machine, and never at the cost of a reproducible run."""

import copy
import json
import logging
import pickle
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparse_core import (
    BACKENDS,
    Rewiring,
    SparseLinear,
    SparseMLP,
    Topology,
    crossover,
    settle,
    sparse_layers,
    sparsify,
)
from sparse_core.crossover import candidates, measure
from sparse_core.measurements import VERSION, Measurements, default_folder
from sparse_core.trials import training_pass


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(sizes: Sequence[int] = (6, 16, 12, 3), **options: Any) -> SparseMLP:
    return SparseMLP(sizes, **{"sparsity": 0.5, "generator": seeded(), "backend": "auto", **options})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("SPARSE_AGENTS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def asked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is measured from here on, by a stopwatch that always has `gemm` win in wide layers and `csr` in others."""
    cases: list[str] = []

    def stopwatch(layer: SparseLinear, batch_size: int, names: Sequence[str]) -> dict[str, float]:
        cases.append(f"{layer.out_features}x{layer.in_features} {batch_size}")
        return {"gemm": 1.0, "csr": 2.0 if layer.out_features > 12 else 0.5}

    monkeypatch.setattr(crossover, "measure", stopwatch)
    return cases


def test_each_layer_takes_the_fastest(asked: list[str]) -> None:
    model = network()
    assert settle(model, 32) == {"0": "gemm", "2": "csr"}
    assert [layer.backend for layer in sparse_layers(model).values()] == ["gemm", "csr"]
    assert asked == ["16x6 32", "12x16 32"]
    model(torch.ones(5, 6))
    assert len(asked) == 2


@pytest.mark.parametrize(("left", "measured"), [(12, True), (13, False)])
def test_a_pruned_layer_settles_anew_when_asked(left: int, measured: bool, asked: list[str]) -> None:
    layer = SparseLinear(6, 8, topology=Topology.random((8, 6), 24, seeded()), backend="auto")
    assert settle(layer, 32) == {"": "csr"}
    dropped = torch.arange(24 - left)
    layer.rewire(Rewiring.of((8, 6), layer.positions, dropped, layer.positions.new_empty(0)))
    layer(torch.ones(5, 6))
    assert len(asked) == 1  # nobody asked
    for _ in range(2):
        settle(layer, 32)
        assert asked == ["8x6 32"] * (1 + measured)
    layer.use_backend("gemm")  # named: nothing is measured any more
    layer.rewire(Rewiring.of((8, 6), layer.positions, torch.arange(left - 1), layer.positions.new_empty(0)))
    assert settle(layer, 32) == {"": "gemm"}
    assert len(asked) == 1 + measured


def test_other_backends_are_kept(asked: list[str]) -> None:
    model = network(backend="rows")
    model[2].use_backend("auto")
    assert settle(model, 32) == {"0": "rows", "2": "csr"}
    assert len(asked) == 1
    assert settle(nn.Linear(3, 3), 8) == {}


def test_a_case_is_measured_once(asked: list[str]) -> None:
    settle(network(), 32)
    settle(network(), 32)
    settle(network(init="fan-in"), 32)
    assert len(asked) == 2
    settle(network(), 33)
    assert len(asked) == 4
    settle(network(sparsity=0.6), 32)
    assert len(asked) == 6
    settle(network(dtype=torch.float64), 32)
    assert len(asked) == 8


def test_threads_make_a_case(asked: list[str], set_threads: Callable[[int], None]) -> None:
    for threads in (1, 2, 1):
        set_threads(threads)
        settle(network(), 32)
    assert len(asked) == 4


def test_the_cache_is_plain_json(asked: list[str], cache: Path) -> None:
    model = network()
    settle(model, 32)
    (file,) = cache.iterdir()
    found = json.loads(file.read_text())
    assert found["version"] == VERSION
    assert set(found["versions"]) == {"torch", "numba"}
    case = f"12x16 nnz={model[2].nnz} batch=32 threads={torch.get_num_threads()} device=cpu dtype=float32"
    assert found["seconds"][case] == {"gemm": 1.0, "csr": 0.5}


def test_another_folder(asked: list[str], cache: Path, tmp_path: Path) -> None:
    settle(network(), 32, cache=tmp_path / "other")
    assert not cache.exists()
    assert len(list((tmp_path / "other").iterdir())) == 1


def spoil(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "lost": lambda file: file.unlink(),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "empty": lambda file: file.write_bytes(b""),
    "not text": lambda file: file.write_bytes(b"\xff\xfe\x00"),
    "deep": lambda file: file.write_text("[" * 100_000),
    "a list": lambda file: file.write_text("[1]"),
    "another machine": lambda file: spoil(file, lambda found: found.update(machine="elsewhere")),
    "another version": lambda file: spoil(file, lambda found: found.update(version=0)),
    "no cases": lambda file: spoil(file, lambda found: found.update(seconds=None)),
    "no times": lambda file: spoil(file, lambda found: found.update(seconds=dict.fromkeys(found["seconds"], 3))),
    "bad times": lambda file: spoil(
        file, lambda found: found.update(seconds={case: {"gemm": "1", "csr": -1.0} for case in found["seconds"]})
    ),
    "other candidates": lambda file: spoil(
        file, lambda found: found.update(seconds={case: {"gemm": 1.0} for case in found["seconds"]})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_again(damage: str, asked: list[str], cache: Path) -> None:
    settle(network(), 32)
    (file,) = cache.iterdir()
    whole = file.read_text()
    DAMAGES[damage](file)
    assert settle(network(), 32) == {"0": "gemm", "2": "csr"}
    assert len(asked) == 4
    assert json.loads(file.read_text()) == json.loads(whole)
    assert list(cache.iterdir()) == [file]


def test_a_cache_that_cannot_be_written(
    asked: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file where the folder should be")
    assert settle(network(), 32) == {"0": "gemm", "2": "csr"}
    assert "cannot keep measurements in" in caplog.text
    assert "set SPARSE_AGENTS_CACHE to a folder" in caplog.text
    assert cache.read_text() == "a file where the folder should be"


def test_what_another_process_added_is_kept(cache: Path) -> None:
    one, other = Measurements(), Measurements()
    one.add("a", {"gemm": 1.0})
    other.add("b", {"gemm": 2.0})
    assert (Measurements().get("a"), Measurements().get("b")) == ({"gemm": 1.0}, {"gemm": 2.0})


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("SPARSE_AGENTS_CACHE", "/chosen")
    assert default_folder() == Path("/chosen")
    monkeypatch.delenv("SPARSE_AGENTS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_folder() == Path("/xdg/sparse-agents")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/her")
    assert default_folder() == Path("/home/her/.cache/sparse-agents")
    monkeypatch.setattr("sys.platform", "darwin")
    assert default_folder() == Path("/home/her/Library/Caches/sparse-agents")


@pytest.mark.parametrize(
    ("shape", "device", "dtype", "compiler", "expected"),
    [
        ((256, 256), "cpu", torch.float32, True, ["gemm", "csr"]),
        ((256, 256), "cpu", torch.float64, True, ["gemm", "csr"]),
        ((256, 256), "cpu", torch.bfloat16, True, ["gemm"]),
        ((256, 256), "cuda", torch.float32, True, ["gemm"]),
        ((256, 256), "cpu", torch.float32, False, ["gemm"]),
        # 2^26 cells are 256 MB in float32, and twice that in float64.
        ((1 << 13, 1 << 13), "cpu", torch.float32, True, ["gemm", "csr"]),
        ((1 << 13, 1 << 13), "cpu", torch.float64, True, ["csr"]),
        ((1 << 13, 8193), "cpu", torch.float32, True, ["csr"]),
        ((1 << 13, 8193), "cpu", torch.float32, False, ["rows"]),
        ((1 << 14, 1 << 13), "cpu", torch.bfloat16, True, ["gemm"]),
        ((1 << 14, 1 << 14), "cpu", torch.bfloat16, True, ["rows"]),
        ((1 << 14, 1 << 14), "cuda", torch.float32, True, ["rows"]),
    ],
)
def test_candidates(
    shape: tuple[int, int], device: str, dtype: torch.dtype, compiler: bool, expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not compiler:
        monkeypatch.setattr("sparse_core.csr.kernels", no_numba)
    values = SimpleNamespace(device=torch.device(device), dtype=dtype, element_size=lambda: dtype.itemsize)
    layer: Any = SimpleNamespace(out_features=shape[0], cells=shape[0] * shape[1], values=values)
    assert candidates(layer) == expected


def no_numba() -> Any:
    raise ImportError("No module named 'numba'")


def test_without_numba_a_wide_layer_runs_in_blocks(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_core.csr.kernels", no_numba)
    monkeypatch.setattr(crossover, "LARGEST_SCRATCH", 16 * 12 * 4 - 1)
    model = network()
    expected = network(backend="gemm")(torch.ones(5, 6))
    assert torch.equal(model(torch.ones(5, 6)), expected)
    assert settle(model, 5) == {"0": "gemm", "2": "rows"}
    assert asked == []  # one candidate each


def test_measuring_times_the_products_that_training_takes() -> None:
    layer = SparseLinear(40, 30, sparsity=0.7, generator=seeded(), dtype=torch.float64)
    layer.freeze(layer.positions[::3])
    x, dy = (torch.randn(size, 17, dtype=torch.float64, generator=seeded(size)) for size in (40, 30))
    gemm, csr = (training_pass(layer, name, x, dy)() for name in ("gemm", "csr"))
    torch.testing.assert_close(gemm, csr, rtol=0, atol=1e-12)
    assert [tuple(result.shape) for result in csr] == [(30, 17), (40, 17), (360,)]
    seconds = measure(layer, 17, ["gemm", "csr"])
    assert set(seconds) == {"gemm", "csr"}
    assert min(seconds.values()) > 0


def test_layers_of_very_many_outputs_are_not_timed() -> None:
    layer = SparseLinear(2, 70_000, sparsity=0.5, backend="auto", generator=seeded())
    assert candidates(layer) == ["csr"]
    layer(torch.ones(3, 2)).sum().backward()
    assert layer.backend == "csr"


def test_the_real_thing_draws_from_no_generator_but_its_own(cache: Path) -> None:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002

    before = states()
    model = network()
    parameters = [parameter.clone() for parameter in model.parameters()]
    assert set(settle(model, 16).values()) <= {"gemm", "csr"}
    network()(torch.ones(3, 6))
    assert states() == before
    assert all(torch.equal(*each) for each in zip(parameters, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_logged_line_says_what_was_chosen(asked: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sparse_core.crossover"):
        settle(network(), 32)
    assert any("multiplies with csr: gemm 1000000 µs, csr 500000 µs" in line for line in caplog.messages)


def test_a_layer_settles_at_its_first_forward_pass(asked: list[str]) -> None:
    layer = SparseLinear(6, 5, sparsity=0.5, generator=seeded(), backend="auto")
    assert "backend=auto" in repr(layer)
    layer(torch.ones(3, 4, 6))
    layer(torch.ones(7, 6))
    assert (layer.backend, asked) == ("csr", ["5x6 12"])
    one = SparseLinear(6, 5, sparsity=0.5, generator=seeded(), backend="auto")
    one(torch.ones(0, 6))  # of an empty batch nothing can be timed
    assert asked[1:] == ["5x6 1"]


def test_sparsify_settles_too(asked: list[str]) -> None:
    model = sparsify(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), 0.4, backend="auto")
    assert [layer.backend for layer in sparse_layers(model).values()] == ["auto"]
    model(torch.ones(2, 6))
    assert asked == ["16x6 2"]


@pytest.mark.parametrize("settled", [False, True])
def test_copies(settled: bool, asked: list[str]) -> None:
    model, inputs = network(), torch.randn(4, 6, generator=seeded())
    if settled:
        settle(model, 4)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    loaded = network(generator=seeded(5))
    loaded.load_state_dict(model.state_dict())
    expected = model(inputs)
    for twin in [*twins, loaded]:
        assert torch.equal(twin(inputs), expected)
        assert settle(twin, 4) == {"0": "gemm", "2": "csr"}
    assert len(asked) == 2
    assert {buffer for buffer, _ in model[0].named_buffers()} == {buffer for buffer, _ in loaded[0].named_buffers()}


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("chosen", ["gemm", "csr", "rows"])
def test_settled_while_acting_and_trained_then(
    context: Callable[[], Any], chosen: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossover, "candidates", lambda layer: [chosen])
    layer, twin = (
        SparseLinear(6, 5, sparsity=0.5, generator=seeded(), backend=backend) for backend in ("auto", chosen)
    )
    inputs = torch.randn(4, 6, generator=seeded())
    with context():
        assert torch.equal(layer(inputs), twin(inputs))
    for each in (layer, twin):
        each(inputs).square().sum().backward()
    assert torch.equal(layer.values.grad, twin.values.grad)


@pytest.mark.end_to_end
@pytest.mark.parametrize("chosen", ["gemm", "csr", "rows"])
def test_a_compiled_model_settles(chosen: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossover, "candidates", lambda layer: [chosen])
    torch._dynamo.reset()
    model, plain = network(), network(backend=chosen)
    compiled, inputs = torch.compile(model, backend="aot_eager"), torch.randn(4, 6, generator=seeded())
    for _ in range(3):
        torch.testing.assert_close(compiled(inputs), plain(inputs))
    assert {layer.backend for layer in sparse_layers(model).values()} == {chosen}
    compiled(inputs).square().sum().backward()
    plain(inputs).square().sum().backward()
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    torch._dynamo.reset()


@pytest.mark.parametrize("before", BACKENDS)
@pytest.mark.parametrize("after", BACKENDS)
def test_use_backend(before: str, after: str, asked: list[str]) -> None:
    def layer_on(backend: str) -> SparseLinear:
        topology = Topology.random((5, 6), 12, seeded())
        layer = SparseLinear(6, 5, topology=topology, generator=seeded(), backend=backend)
        layer.freeze(layer.positions[:3], torch.tensor([1]))
        return layer

    layer, twin = layer_on(before), layer_on(after)
    values, inputs = layer.values, torch.randn(4, 6, generator=seeded())
    layer(inputs).sum().backward()
    gradient = layer.values.grad.clone()
    layer.use_backend(after)
    assert layer.backend == after
    assert layer.values is values
    assert torch.equal(layer.values.grad, gradient)
    ours, theirs = ({**dict(each.named_buffers()), **each.derived} for each in (layer, twin))
    assert {name: tensor.tolist() for name, tensor in ours.items()} == {
        name: tensor.tolist() for name, tensor in theirs.items()
    }
    assert layer.state_dict().keys() == twin.state_dict().keys()
    assert torch.equal(layer(inputs), twin(inputs))


def test_an_unknown_backend_changes_nothing() -> None:
    layer = SparseLinear(6, 5, sparsity=0.5, generator=seeded(), backend="csr")
    with pytest.raises(ValueError, match="no backend called 'gem'; did you mean 'gemm'"):
        layer.use_backend("gem")
    assert layer.backend == "csr"
    layer(torch.ones(2, 6))


def test_a_pass_under_way_ends_on_its_own_backend() -> None:
    layer = SparseLinear(6, 5, sparsity=0.5, generator=seeded(), backend="gemm")
    loss = layer(torch.ones(2, 6)).sum()
    layer.use_backend("csr")
    loss.backward()
    assert layer.values.grad is not None
