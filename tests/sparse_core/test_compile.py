import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from sparse_core import PRESETS, Adam, SparseLinear, SparseMLP, Sparsifier, sparse_layers

pytestmark = pytest.mark.end_to_end  # each compiles with torch's compiler
COMPILERS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network(sparsity: float = 0.5, preset: str = "static") -> SparseMLP:
    return SparseMLP([6, 16, 16, 3], sparsity=sparsity, topology=preset, generator=seeded())


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("frozen", [False, True])
def test_outputs_and_gradients_agree(compiler: str, frozen: bool) -> None:
    plain = network()
    if frozen:
        plain[2].freeze(plain[2].positions[::2], torch.tensor([1, 4]))
    twin = copy.deepcopy(plain)
    compiled = torch.compile(twin, backend=compiler)
    for leading in [(7,), (2, 5)]:
        inputs = torch.randn(*leading, 6, generator=seeded(1))
        ours, theirs = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
        expected, actual = plain(ours), compiled(theirs)
        expected.square().sum().backward()
        actual.square().sum().backward()
        assert_close(actual, expected)
        assert_close(theirs.grad, ours.grad)
    assert_close([p.grad for p in twin.parameters()], [p.grad for p in plain.parameters()])


def train(model: nn.Module, call: Any, preset: str, steps: int) -> Sparsifier:
    optimizer = Adam(model.parameters(), lr=0.01)
    sparsifier = Sparsifier.preset(
        preset, model, optimizer, period=4, total_steps=24, capture_batches=2, sparsity=0.5, seed=0
    )
    for step in range(steps):
        inputs = torch.randn(8, 6, generator=seeded(step))
        optimizer.zero_grad()
        call(inputs).square().mean().backward()
        optimizer.step()
        sparsifier.step()
    return sparsifier


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(
    "preset", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("dense", "static", "set", "granet")), "rigl"]
)
def test_training_agrees_across_topology_changes(compiler: str, preset: str) -> None:
    plain = network(0.0 if PRESETS[preset].dense else 0.5, preset)
    twin = copy.deepcopy(plain)
    expected = train(plain, plain, preset, 14)
    actual = train(twin, torch.compile(twin, backend=compiler), preset, 14)
    assert actual.changes == expected.changes == (3 if PRESETS[preset].changes else 0)
    for name, layer in sparse_layers(plain).items():
        assert sparse_layers(twin)[name].topology == layer.topology
    assert_close(list(twin.parameters()), list(plain.parameters()))


@pytest.mark.parametrize("preset", ["set", "rigl"])
def test_topology_changes_do_not_compile_again(preset: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    model = network()
    compiled, after = torch.compile(model, backend=counter), []
    optimizer = Adam(model.parameters(), lr=0.01)
    sparsifier = Sparsifier.preset(preset, model, optimizer, period=2, total_steps=100, seed=0)
    for step in range(20):
        optimizer.zero_grad()
        compiled(torch.randn(8, 6, generator=seeded(step))).square().mean().backward()
        optimizer.step()
        sparsifier.step()
        after.append(counter.frame_count)
    assert sparsifier.changes == 10
    assert after[0] > 0
    assert after[-1] == after[5]  # with and without a capture have both been seen by then


@pytest.mark.parametrize("compiler", COMPILERS)
def test_another_count_of_connections_works(compiler: str) -> None:
    layer = SparseLinear(6, 5, sparsity=0.5, generator=seeded())
    compiled = torch.compile(layer, backend=compiler)

    def outputs(call: Any) -> Tensor:
        layer.zero_grad()
        result = call(torch.ones(2, 6))
        result.sum().backward()
        return torch.cat([result.detach().flatten(), layer.values.grad])

    assert_close(outputs(compiled), outputs(layer))
    layer.freeze(layer.positions[:4])
    assert_close(outputs(compiled), outputs(layer))
