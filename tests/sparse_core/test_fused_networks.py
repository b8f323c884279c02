"""Hand-written passes against autograd, and compiled optimizers against their torch forms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparse_core import Adam, Rewiring, SparseLinear, Topology, kernels, passes
from sparse_core.fused_networks import INDEX, FusedNetworks
from sparse_core.fused_optimizer import FusedAdam, FusedPolyak
from sparse_core.perceptrons import fusible
from sparse_core.vectors import VECTOR_BYTES

KINDS = ("csr", "gemm", "dense")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(sizes: list[int], kinds: list[str], dtype: torch.dtype, seed: int, norms: Any = ()) -> nn.Sequential:
    """A perceptron whose layers are of these kinds, with a number of connections that the seed decides.

    Hidden layers with a number in `norms` are normalised.
    """
    modules: list[nn.Module] = []
    for number, (kind, fan_in, fan_out) in enumerate(zip(kinds, sizes[:-1], sizes[1:], strict=True)):
        generator = seeded(seed + number)
        if kind == "dense":
            layer: nn.Module = nn.Linear(fan_in, fan_out, dtype=dtype)
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.normal_(generator=generator)
        else:
            nnz = int(torch.randint(fan_in * fan_out + 1, (1,), generator=generator))
            topology = Topology.random((fan_out, fan_in), nnz, generator)
            layer = SparseLinear(fan_in, fan_out, topology=topology, backend=kind, dtype=dtype, generator=generator)
        modules.append(layer)
        if number in norms and number < len(kinds) - 1:
            modules.append(nn.LayerNorm(fan_out, dtype=dtype))
            with torch.no_grad():
                for parameter in modules[-1].parameters():
                    parameter.normal_(generator=generator)
        modules.append(nn.ReLU())
    return nn.Sequential(*modules[:-1])


def near_a_kink(networks: list[nn.Sequential], inputs: Tensor, distance: float) -> Tensor:
    """Which of these inputs (B, features) bring a ReLU so near to zero that rounding decides its gradient."""
    near = torch.zeros(inputs.shape[0], dtype=torch.bool)
    for one in networks:
        values = inputs
        for module in one:
            if isinstance(module, nn.ReLU):
                near |= ((values.abs() < distance) & (values != 0)).any(1)
            values = module(values)
    return near


def assert_like_autograd(networks: list[nn.Sequential], fused: FusedNetworks, tolerance: float) -> None:
    """Outputs, input gradients and parameter gradients, for output gradients that are drawn."""
    drawn = torch.randn(fused.output_gradients.shape, dtype=fused.inputs.dtype, generator=seeded(5))
    features = fused.inputs.shape[0]
    with torch.no_grad():
        drawn[..., near_a_kink(networks, fused.inputs.T, tolerance)] = 0
        fused.forward()
        fused.output_gradients.copy_(drawn)
        fused.backward((0, features))
        fused.gradients()
    gradients = {id(parameter): gradient for parameter, gradient in fused.parameters()}
    for number, one in enumerate(networks):
        inputs = fused.inputs.T.clone().requires_grad_()
        outputs = one(inputs)
        expected = torch.autograd.grad(outputs, [inputs, *one.parameters()], drawn[number].T)
        got = [fused.input_gradients[number].T, *(gradients[id(parameter)] for parameter in one.parameters())]
        for actual, wanted in zip([fused.outputs[number].T, *got], [outputs.detach(), *expected], strict=True):
            scale = max(1.0, float(wanted.abs().max()) if wanted.numel() else 1.0)
            torch.testing.assert_close(actual, wanted, rtol=0, atol=tolerance * scale)


def test_two_layers_one_can_check_by_hand() -> None:
    # h0 = relu(2 x0), h1 = relu(x0 - x1), y = h0 + 3 h1, for the batch (1, 2) and (-1, -4)
    first = SparseLinear(2, 2, topology=Topology.from_mask(torch.tensor([[1, 0], [1, 1]])), backend="csr")
    second = SparseLinear(2, 1, topology=Topology.full((1, 2)), backend="csr")
    with torch.no_grad():
        first.values.copy_(torch.tensor([2.0, 1.0, -1.0]))
        second.values.copy_(torch.tensor([1.0, 3.0]))
        for layer in (first, second):
            layer.bias.zero_()
    fused = FusedNetworks([nn.Sequential(first, nn.ReLU(), second)], torch.tensor([[1.0, -1.0], [2.0, -4.0]]))
    fused.forward()
    assert fused.outputs.tolist() == [[[2.0, 9.0]]]
    fused.output_gradients.copy_(torch.tensor([[[1.0, 10.0]]]))
    fused.backward((0, 2))
    fused.gradients()
    assert fused.input_gradients.tolist() == [[[2.0, 30.0], [0.0, -30.0]]]
    assert [gradient.tolist() for _, gradient in fused.parameters()] == [[1, -30, -120], [1, 30], [2, 30], [11]]


def test_a_normalisation_one_can_check_by_hand() -> None:
    # z = (x, 3 x) for x = 1, -2: mean 2, -4; variance 1, 4; x̂ = (-1, 1) and (1, -1), but for ε
    first, norm, last = nn.Linear(1, 2, dtype=torch.float64), nn.LayerNorm(2, dtype=torch.float64), nn.Linear(2, 1)
    with torch.no_grad():
        for tensor, numbers in zip(
            [*first.parameters(), *norm.parameters(), *last.double().parameters()],
            ([[1.0], [3.0]], [0.0, 0.0], [2.0, 1.0], [3.0, 0.0], [[1.0, 10.0]], [0.0]), strict=True,
        ):  # fmt: skip
            tensor.copy_(torch.tensor(numbers))
    inputs = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    fused = FusedNetworks([nn.Sequential(first, norm, nn.ReLU(), last)], inputs)
    fused.forward()
    # relu(2 x̂0 + 3) + 10 relu(x̂1) = 1 + 10 and 5 + 0
    torch.testing.assert_close(fused.outputs.flatten().tolist(), [11.0, 5.0], rtol=0, atol=1e-4)
    fused.output_gradients.fill_(1)
    fused.backward((0, 1))
    fused.gradients()
    gradients = [gradient.flatten().tolist() for _, gradient in fused.parameters()]
    # dy = (1, 10) and (1, 0): scale Σ dy x̂, shift Σ dy, last layer Σ y
    for gradient, expected in zip(gradients[2:], [[0.0, 10.0], [2.0, 10.0], [6.0, 1.0], [2.0]], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-4)
    # two numbers are normalised to -1 and 1 whatever they are: nothing flows further down
    for gradient in [*gradients[:2], fused.input_gradients.flatten().tolist()]:
        torch.testing.assert_close(gradient, [0.0] * len(gradient), rtol=0, atol=1e-3)


@settings(max_examples=60)
@pytest.mark.parametrize("dtype", TOLERANCE)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=5), together=st.integers(1, 3),
    batch=st.sampled_from([1, 3, 16, 17, 100, 130, 256]), seed=st.integers(0, 99),
    kinds=st.lists(st.sampled_from(KINDS), min_size=4, max_size=4), norms=st.sets(st.integers(0, 2)),
)  # fmt: skip
def test_passes_are_autograds(
    dtype: torch.dtype, sizes: list[int], together: int, batch: int, kinds: list[str], norms: set[int], seed: int
) -> None:
    sizes = [*sizes[:1], *(max(8, size) for size in sizes[1:])] if norms else sizes  # two may differ by rounding
    networks = [network(sizes, kinds[: len(sizes) - 1], dtype, seed + 10 * i, norms) for i in range(together)]
    assert fusible(*networks)
    inputs = torch.randn(sizes[0], batch, dtype=dtype, generator=seeded(seed))
    fused = FusedNetworks(networks, inputs)
    assert_like_autograd(networks, fused, TOLERANCE[dtype])
    assert_like_autograd(networks[:1], fused.first(), TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 7, 100, 256, 300])
def test_normalised_layers_are_autograds(kind: str, batch: int) -> None:
    networks = [network([17, 70, 257, 1], [kind] * 3, torch.float64, seed, (0, 1)) for seed in (4, 50)]
    # Far from zero and nearly constant: what a sum of squares less a squared sum would lose.
    shifted = network([17, 70, 257, 1], [kind] * 3, torch.float64, 4, (0, 1))
    with torch.no_grad():
        shifted[0].bias.add_(1e6)
    inputs = torch.randn(17, batch, dtype=torch.float64, generator=seeded(2))
    assert_like_autograd(networks, FusedNetworks(networks, inputs), 1e-12)
    assert_like_autograd([shifted], FusedNetworks([shifted], inputs), 1e-8)


@pytest.mark.parametrize(("middle", "batch"), [("dense", 20), ("csr", 150)])
def test_what_does_not_learn_shares_the_arrays_of_what_does(middle: str, batch: int) -> None:
    kinds = ["csr", middle, "csr"]
    networks = [network([9, 20, 12, 1], kinds, torch.float64, seed, (0, 1)) for seed in (0, 0)]
    with torch.no_grad():
        networks[1][1].weight.mul_(-2)
    inputs = torch.randn(9, batch, dtype=torch.float64, generator=seeded(1))
    fused = FusedNetworks(networks[:1], inputs)
    target = FusedNetworks(networks[1:], inputs, trained=False, like=fused)
    target.forward()
    torch.testing.assert_close(target.outputs[0].T, networks[1](inputs.T).detach(), rtol=0, atol=1e-12)
    assert_like_autograd(networks[:1], fused, 1e-12)


def results_of(fused: FusedNetworks, given: Tensor, whole: bool = True) -> list[Tensor]:
    """Outputs, input gradients, then gradients of all parameters, computed whole or part by part."""
    for part in [None] if whole else fused.parts():
        fused.forward(part)
        fused.output_gradients.copy_(given)
        fused.backward((0, len(fused.inputs)), part)
        fused.gradients(part)
    found = [fused.outputs, fused.input_gradients, *(gradient for _, gradient in fused.parameters())]
    return [tensor.clone() for tensor in found]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch", [100, 256, 300, 515])
@pytest.mark.parametrize("norms", [(), (0, 1)])
@pytest.mark.parametrize("last", ["csr", "dense"])
def test_a_batch_in_tiles_gives_the_same(
    batch: int, dtype: torch.dtype, norms: tuple[int, ...], last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations and gradients of connections to the bit; those of biases and of a dense layer are added by tiles."""
    networks = [network([9, 40, 30, 3], ["csr", "csr", last], dtype, seed, norms) for seed in (0, 50)]
    inputs = torch.randn(9, batch, generator=seeded(1), dtype=dtype)
    given = torch.randn(2, 3, batch, generator=seeded(2), dtype=dtype)
    tiled = FusedNetworks(networks, inputs)
    tile = kernels.LARGEST * VECTOR_BYTES // inputs.element_size()
    assert tiled.tile == (tile if batch >= 2 * tile else batch)
    monkeypatch.setattr("sparse_core.fused_networks._tile", lambda networks, inputs: batch)
    results = [results_of(fused, given) for fused in (tiled, FusedNetworks(networks, inputs))]
    layers = [step.layer for column in tiled.steps for step in column]
    exact = {id(layer.values) for layer in layers if isinstance(layer, SparseLinear)}
    keys = [None, None, *(id(parameter) for parameter, _ in tiled.parameters())]
    for key, one, other in zip(keys, *results, strict=True):
        if key is None or key in exact:
            assert torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * batch)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tiles", "short"), [(2, 0), (4, 0), (3, 17)])
@pytest.mark.parametrize("norms", [(), (0, 1)])
@pytest.mark.parametrize("last", ["csr", "dense"])
def test_parts_of_a_batch_give_the_same_bits_as_the_whole(
    tiles: int, short: int, dtype: torch.dtype, norms: tuple[int, ...], last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = tiles * kernels.LARGEST * VECTOR_BYTES // torch.empty(0, dtype=dtype).element_size() - short
    networks = [network([9, 40, 30, 3], ["csr", "csr", last], dtype, seed, norms) for seed in (0, 50)]
    inputs = torch.randn(9, batch, generator=seeded(1), dtype=dtype)
    given = torch.randn(2, 3, batch, generator=seeded(2), dtype=dtype)
    assert FusedNetworks(networks, inputs).parts() == [None]  # the cache holds such small ones
    monkeypatch.setattr("sparse_core.fused_networks.CACHE", 1)
    fused = FusedNetworks(networks, inputs)
    target = FusedNetworks(networks, inputs, trained=False, like=fused)
    assert len(fused.parts()) == tiles
    whole = results_of(fused, given)
    for one in (fused, fused.first()):
        count = len(one.outputs)
        found = results_of(one, given[:count], whole=False)
        for name, expected in zip(found, whole if one is fused else results_of(one, given[:1]), strict=True):
            assert torch.equal(name, expected)
    target.forward()
    assert torch.equal(target.outputs, whole[0])


def test_growth_signals_are_those_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_core.signals import Capture

    monkeypatch.setattr("sparse_core.fused_networks.CACHE", 1)
    one = network([9, 40, 3], ["csr", "csr"], torch.float64, 0)
    layer: Any = one[0]
    fused = FusedNetworks([one], torch.randn(9, 1024, dtype=torch.float64))
    assert len(fused.parts()) > 1
    layer.capture = Capture(1)
    assert fused.parts() == [None]


def test_some_input_gradients() -> None:
    one = network([9, 12, 1], ["csr", "csr"], torch.float64, 0)
    fused = FusedNetworks([one], torch.randn(9, 20, dtype=torch.float64))
    fused.forward()
    fused.output_gradients.fill_(1)
    fused.backward((0, 9))
    expected = fused.input_gradients.clone()
    fused.input_gradients.fill_(torch.nan)
    fused.backward((5, 8))
    assert torch.equal(fused.input_gradients[0, 5:8], expected[0, 5:8])
    assert fused.input_gradients[0, [0, 1, 2, 3, 4, 8]].isnan().all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch", [16, 32, 64, 72, 100, 128, 144, 192, 256, 272, 512])
@pytest.mark.parametrize("norms", [(), (0, 1)])
@pytest.mark.parametrize("kinds", [("csr", "dense", "csr"), ("csr", "csr", "dense")])
def test_results_do_not_depend_on_the_threads(
    batch: int,
    dtype: torch.dtype,
    norms: tuple[int, ...],
    kinds: tuple[str, ...],
    set_threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "SHARE", 1)  # share out whatever there is
    networks = [network([20, 90, 30, 1], [*kinds], dtype, seed, norms) for seed in (0, 50)]
    inputs = torch.randn(20, batch, generator=seeded(1), dtype=dtype)
    results = []
    for threads in (1, 2):
        set_threads(threads)
        fused = FusedNetworks(networks, inputs)
        for alone in (fused, fused.first()):
            alone.forward()
            alone.output_gradients.fill_(0.5)
            alone.backward((0, 20))
            alone.gradients()
            found = [alone.outputs, alone.input_gradients, *(gradient for _, gradient in alone.parameters())]
            results.append([tensor.clone() for tensor in found])
    for one, two in zip(results[0] + results[1], results[2] + results[3], strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("vectors", [4, 5, 7])
def test_however_a_small_batch_is_cut_wide_layers_add_up_alike(vectors: int, dtype: torch.dtype) -> None:
    batch = vectors * VECTOR_BYTES // torch.empty(0, dtype=dtype).element_size()
    fused = FusedNetworks(
        [network([4096, 8, 4096, 1], ["csr"] * 3, dtype, 0)], torch.randn(4096, batch, generator=seeded(1), dtype=dtype)
    )
    results = []
    for slices in (1, 2, 3):
        passes.forward_threaded(fused._rows, batch, fused.tile, slices, fused._like)
        fused.output_gradients.fill_(0.5)
        passes.backward_threaded(fused._rows, batch, fused.tile, 0, 4096, slices, fused._like, INDEX)
        results.append([fused.outputs.clone(), fused.input_gradients.clone()])
    for cut in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], cut, strict=True))


def test_a_batch_without_entries_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one batch entry"):
        FusedNetworks([network([9, 12, 1], ["csr", "csr"], torch.float64, 0)], torch.empty(9, 0, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["csr", "gemm"])
def test_moved_connections_are_followed_in_place(kind: str) -> None:
    one = network([8, 10, 1], [kind, kind], torch.float64, 3)
    layer: Any = one[0]
    fused = FusedNetworks([one], torch.randn(8, 20, dtype=torch.float64))
    assert_like_autograd([one], fused, 1e-12)
    absent = torch.arange(80)[~torch.isin(torch.arange(80), layer.positions)]
    layer.rewire(Rewiring.of(layer.shape, layer.positions.clone(), torch.arange(3), absent[:3]), fill=0.7)
    assert_like_autograd([one], fused, 1e-12)


@pytest.mark.parametrize("batch", [20, 200])
@pytest.mark.parametrize("norms", [(), (0,)])
def test_growth_signals_are_kept(norms: tuple[int, ...], batch: int) -> None:
    from sparse_core.signals import Capture

    one = network([8, 10, 9, 1], ["csr", "csr", "csr"], torch.float64, 3, norms)
    fused = FusedNetworks([one], torch.randn(8, batch, dtype=torch.float64))
    layers = [module for module in one if isinstance(module, SparseLinear)]
    for layer in layers:
        layer.capture = Capture(1)
    assert_like_autograd([one], fused, 1e-12)  # which goes through the modules, too
    for layer in layers:
        (_, x, dy), (_, module_x, module_dy) = layer.capture.state()
        torch.testing.assert_close((x, dy), (module_x, module_dy), rtol=0, atol=1e-12)


REFUSED: dict[str, Callable[[], list[nn.Module]]] = {
    "other activation": lambda: [nn.Sequential(nn.Linear(2, 3), nn.ELU(), nn.Linear(3, 1))],
    "no bias": lambda: [nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1))],
    "two activations": lambda: [nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.ReLU(), nn.Linear(3, 1))],
    "not a sequence": lambda: [nn.Linear(2, 3)],
    "half precision": lambda: [nn.Sequential(nn.Linear(2, 3)).to(torch.float16)],
    "not trained": lambda: [nn.Sequential(nn.Linear(2, 3)).requires_grad_(False)],
    "different widths": lambda: [nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 4))],
    "different depths": lambda: [nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.ReLU())],
    "different kinds": lambda: [network([2, 3], [kind], torch.float32, 0) for kind in ("csr", "gemm")],
    "other backend": lambda: [nn.Sequential(SparseLinear(4, 3, sparsity=0.5, backend="rows"))],
    "frozen": lambda: [frozen()],
    "hook on a module": lambda: [hooked(lambda net: net[0].register_forward_hook(print))],
    "hook on a gradient": lambda: [hooked(lambda net: net[0].bias.register_hook(lambda gradient: 0 * gradient))],
    "hook after a gradient": lambda: [hooked(lambda net: net[0].bias.register_post_accumulate_grad_hook(print))],
    "own forward": lambda: [hooked(lambda net: setattr(net, "forward", print))],
    "weight made by others": lambda: [
        hooked(lambda net: net[0].__dict__.update(weight=net[0]._parameters.pop("weight")))
    ],
    "transposed weight": lambda: [transposed()],
    "normalisation after ReLU": lambda: [nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.LayerNorm(3), nn.Linear(3, 1))],
    "normalisation without ReLU": lambda: [nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))],
    "normalised outputs": lambda: [nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))],
    "ReLU comes last": lambda: [nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.ReLU())],
    "no scale": lambda: [normalised(nn.LayerNorm(3, elementwise_affine=False))],
    "no shift": lambda: [normalised(nn.LayerNorm(3, bias=False))],
    "other epsilon": lambda: [normalised(nn.LayerNorm(3, eps=1e-3))],
    "other normalisation": lambda: [normalised(nn.RMSNorm(3))],
    "own normalisation": lambda: [normalised(type("Own", (nn.LayerNorm,), {})(3))],
    "half a scale": lambda: [normalised(nn.LayerNorm(3, dtype=torch.float16))],
    "scale that does not learn": lambda: [normalised(nn.LayerNorm(3).requires_grad_(False))],
    "hook on a normalisation": lambda: [hooked(lambda net: net[1].register_forward_hook(print), normalised())],
    "one normalised, one not": lambda: [normalised(), nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))],
}


def normalised(norm: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3) if norm is None else norm, nn.ReLU(), nn.Linear(3, 1))


def hooked(meddle: Callable[[Any], object], one: nn.Module | None = None) -> nn.Module:
    one = nn.Sequential(nn.Linear(2, 3)) if one is None else one
    assert fusible(one)
    meddle(one)
    return one


def frozen() -> nn.Module:
    layer = SparseLinear(4, 3, sparsity=0.5, backend="csr")
    layer.freeze(layer.positions[:1])
    return nn.Sequential(layer)


def transposed() -> nn.Module:
    linear = nn.Linear(3, 3)
    linear.weight = nn.Parameter(linear.weight.detach().T)
    return nn.Sequential(linear)


@pytest.mark.parametrize("case", REFUSED)
def test_other_networks_are_refused(case: str) -> None:
    assert not fusible(*REFUSED[case]())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("warmup", [0, 4])  # ages are up to 4 at the start
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fused_adam_is_adam(
    dtype: torch.dtype, decoupled: bool, warmup: int, threads: int, set_threads: Callable[[int], None]
) -> None:
    set_threads(threads)

    def start() -> tuple[list[Tensor], Adam]:
        generator = seeded(0)
        tensors = [torch.randn(size, dtype=dtype, generator=generator) for size in (1, 7, 40_000, 30_011)]
        tensors = [tensor.requires_grad_() for tensor in tensors]
        optimizer = Adam(tensors, lr=0.01, weight_decay=0.1, decoupled=decoupled, warmup=warmup)
        ages = torch.randint(5, (40_000,), generator=generator, dtype=torch.int32)
        optimizer.state_of(tensors[2])["age"] = ages
        return tensors, optimizer

    (plain, reference), (fast, optimizer) = start(), start()
    gradients = [torch.empty_like(tensor) for tensor in fast]
    fused = FusedAdam(optimizer, list(zip(fast, gradients, strict=True)))
    draws = seeded(1)
    for step in range(6):
        for group in (*reference.param_groups, *optimizer.param_groups):
            group["lr"] = 0.01 / (1 + step)  # as a schedule would
        for tensor, gradient in zip(plain, gradients, strict=True):
            gradient.normal_(generator=draws)
            tensor.grad = gradient.clone()
        reference.step()
        fused.step()
    for tensor, other in zip(plain, fast, strict=True):
        torch.testing.assert_close(other, tensor, rtol=0, atol=TOLERANCE[dtype])
        for name, state in reference.state[tensor].items():
            torch.testing.assert_close(optimizer.state[other][name], state, rtol=0, atol=TOLERANCE[dtype])


def test_state_of_another_parameter_is_refused() -> None:
    parameter = torch.zeros(4, requires_grad=True)
    optimizer = Adam([parameter])
    optimizer.state_of(parameter)["exp_avg"] = torch.zeros(3)
    with pytest.raises(ValueError, match="not that of a parameter with 4 entries"):
        FusedAdam(optimizer, [(parameter, torch.zeros(4))])


@pytest.mark.parametrize("threads", [1, 2])
def test_fused_polyak(threads: int, set_threads: Callable[[int], None]) -> None:
    set_threads(threads)
    targets = [torch.tensor([1.0, 2.0]), torch.arange(70_000.0), torch.empty(0)]
    sources = [torch.tensor([3.0, -2.0]), torch.ones(70_000), torch.empty(0)]
    FusedPolyak(list(zip(targets, sources, strict=True))).step(0.25)
    assert targets[0].tolist() == [1.5, 1.0]
    assert torch.equal(targets[1], 0.75 * torch.arange(70_000.0) + 0.25)
