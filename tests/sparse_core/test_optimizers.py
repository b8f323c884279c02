import copy
import io
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from sparse_core import Adam, Rewiring, SparseLinear, Sparsifier, carry_state
from sparse_core.optimizer_state import rate_of

Make = Callable[[Iterable[Tensor]], Optimizer]

# Every elementwise optimizer, with the options that make it keep the most state.
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "SGD nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, foreach=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.05),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.05),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.05),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.3),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.05),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.05),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.05),
    "ours": lambda p: Adam(p, lr=0.05),
}

# What a new parameter's state starts at, where that is not zero.
FRESH = {("Adagrad", "sum"): 0.3, ("Rprop", "step_size"): 0.05}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_of(seed: int = 0, dtype: torch.dtype = torch.float64) -> SparseLinear:
    return SparseLinear(6, 5, sparsity=0.5, generator=seeded(seed), dtype=dtype)


def train(layer: SparseLinear, optimizer: Optimizer, steps: int, seed: int = 0) -> None:
    generator = seeded(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.randn(4, 6, dtype=layer.values.dtype, generator=generator)).square().mean().backward()
        optimizer.step()


def change_of(layer: SparseLinear, drop: list[int], grow: int) -> Rewiring:
    vacant = layer.topology.to_mask().flatten().logical_not().nonzero().squeeze(1)
    return Rewiring.of(layer.shape, layer.positions.clone(), torch.tensor(drop, dtype=torch.int64), vacant[:grow])


def per_connection(optimizer: Optimizer, layer: SparseLinear) -> dict[str, Tensor]:
    state = optimizer.state[layer.values]
    return {name: t.clone() for name, t in state.items() if isinstance(t, Tensor) and t.dim()}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("drop", "grow"), [([0, 7], 2), ([3], 6), ([1, 2, 3, 4], 1)])
def test_state_follows_its_connection_and_new_ones_start_fresh(name: str, drop: list[int], grow: int) -> None:
    layer = layer_of()
    optimizer = OPTIMIZERS[name](layer.parameters())
    train(layer, optimizer, 5)
    before, bias_before = per_connection(optimizer, layer), copy.deepcopy(optimizer.state[layer.bias])
    assert before
    assert all(tensor.abs().min() > 0 for key, tensor in before.items() if key != "prev")
    change = change_of(layer, drop, grow)
    layer.rewire(change)
    carry_state(optimizer, layer.values, change)

    after, kept = per_connection(optimizer, layer), change.source >= 0
    assert after.keys() >= before.keys()
    for key, tensor in after.items():
        if key in before:
            assert torch.equal(tensor[kept], before[key][change.source[kept]]), key
        else:  # the shared age has become one per connection
            assert key == "age"
            assert (tensor[kept] == 5).all()
        assert (tensor[~kept] == FRESH.get((name, key), 0)).all(), key
    for key, tensor in optimizer.state[layer.bias].items():
        assert tensor is bias_before[key] or torch.equal(tensor, bias_before[key])
    train(layer, optimizer, 2, seed=1)
    assert torch.isfinite(layer.values).all()


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adagrad", "Adadelta", "Rprop", "ours"])
def test_a_new_connection_steps_as_in_a_new_optimizer(name: str) -> None:
    # Those without a shared step count; the others are plain Adam's case below.
    layer = layer_of()
    optimizer = OPTIMIZERS[name](layer.parameters())
    train(layer, optimizer, 7)
    change = change_of(layer, [2, 5], 2)
    layer.rewire(change)
    carry_state(optimizer, layer.values, change)
    twin = copy.deepcopy(layer)
    new = change.source < 0
    train(layer, optimizer, 1, seed=2)
    train(twin, OPTIMIZERS[name](twin.parameters()), 1, seed=2)
    torch.testing.assert_close(layer.values[new], twin.values[new], rtol=1e-12, atol=0)
    assert not torch.allclose(layer.values[~new], twin.values[~new])


def steps_after_growth(optimizer: Optimizer, layer: SparseLinear, count: int) -> list[float]:
    """The first steps of a connection grown late, in units of lr, where every gradient is 1."""
    for _ in range(4000):
        layer.values.grad = torch.ones_like(layer.values)
        optimizer.step()
    change = change_of(layer, [0], 1)
    layer.rewire(change)
    carry_state(optimizer, layer.values, change)
    new, values = int((change.source < 0).nonzero()), [0.0]
    for _ in range(count):
        layer.values.grad = torch.ones_like(layer.values)
        optimizer.step()
        values.append(layer.values[new].item())
    return [(last - value) / 1e-4 for last, value in pairwise(values)]


def test_plain_adam_starts_a_late_connection_too_fast() -> None:
    layer = layer_of()
    steps = steps_after_growth(torch.optim.Adam([layer.values], lr=1e-4), layer, 40)
    # (1 - β₁) / √(1 - β₂) = 0.1 / √0.001 = 3.16, up to what is left of the bias correction after 4,000 steps;
    # then (1 - β₁ᵗ) / √(1 - β₂ᵗ), which peaks at step 12: 0.7176 / √0.01193 = 6.57.
    assert steps[0] == pytest.approx(3.16, rel=0.02)
    assert max(steps) == pytest.approx(6.57, rel=0.02)
    assert steps.index(max(steps)) == 11


def test_with_ages_a_late_connection_takes_the_steps_of_a_new_one() -> None:
    layer = layer_of()
    steps = steps_after_growth(Adam([layer.values], lr=1e-4), layer, 40)
    assert steps == pytest.approx([1.0] * 40, rel=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.99)])
def test_equals_torchs_adam_on_dense_parameters(
    dtype: torch.dtype, tolerance: float, decay: float, decoupled: bool, betas: tuple[float, float]
) -> None:
    start = [torch.randn(shape, generator=seeded(1), dtype=dtype) for shape in [(5, 4), (4,), (1,)]]
    ours, theirs = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    options = {"lr": 0.003, "betas": betas, "weight_decay": decay}
    # Two groups, the second with its own learning rate.
    mine = Adam([{"params": ours[:2]}, {"params": ours[2:], "lr": 0.01}], decoupled=decoupled, **options)
    reference = kind([{"params": theirs[:2]}, {"params": theirs[2:], "lr": 0.01}], **options)
    generator = seeded(2)
    for _ in range(200):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(own.shape, generator=generator, dtype=dtype)
            other.grad = own.grad.clone()
        mine.step()
        reference.step()
    for own, other, first in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=tolerance)
        assert (own - first).abs().min() > 1e-4  # they have moved


def test_parameters_without_a_gradient_rest() -> None:
    used, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = Adam([used, unused], weight_decay=0.1)
    assert optimizer.step(lambda: used.square().sum().backward() or 7.0) == 7.0
    assert (used < 1).all()
    assert torch.equal(unused, torch.ones(3))
    assert unused not in optimizer.state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ages_come_back_exactly(dtype: torch.dtype) -> None:
    # 2²⁴ + 1 is no float32 and 257 no bfloat16: torch's own cast to the parameter's dtype would change them.
    ages = torch.tensor([2**24 + 1, 257, 0, 1, 2**30 + 3], dtype=torch.int32)
    parameter = torch.nn.Parameter(torch.ones(5, dtype=dtype))
    optimizer = Adam([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.state[parameter]["age"] = ages.clone()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)

    target = torch.nn.Parameter(torch.ones(5, dtype=dtype))
    restored = Adam([target])
    saved = torch.load(file, weights_only=True)
    restored.load_state_dict(saved)
    assert restored.state[target]["age"].dtype == torch.int32
    assert torch.equal(restored.state[target]["age"], ages)
    target.grad = torch.ones_like(target)
    restored.step()
    assert torch.equal(restored.state[target]["age"], ages + 1)
    assert torch.equal(saved["state"][0]["age"], ages)  # and the saved state is left alone
    # On the way to another dtype, too.
    wide = torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
    other = Adam([wide])
    other.load_state_dict(saved)
    assert torch.equal(other.state[wide]["age"], ages)


def test_state_before_the_first_change_has_one_age() -> None:
    layer = layer_of()
    optimizer = Adam(layer.parameters())
    train(layer, optimizer, 3)
    assert optimizer.state[layer.values]["age"].dim() == 0
    twin = copy.deepcopy(layer)
    restored = Adam(twin.parameters())
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(layer, optimizer, 3)
    train(twin, restored, 3)
    assert torch.equal(layer.values, twin.values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "`lr` must be a finite number ≥ 0, got -1.0"),
        ({"lr": float("nan")}, "`lr` must be"),
        ({"eps": float("inf")}, "`eps` must be"),
        ({"weight_decay": -0.1}, "`weight_decay` must be"),
        ({"betas": (0.9, 1.0)}, r"`betas` must both be in \[0, 1\)"),
    ],
)
def test_wrong_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adam([torch.nn.Parameter(torch.ones(1))], **options)


def test_an_optimizer_that_mixes_entries_is_refused() -> None:
    layer = layer_of()
    for kind in (torch.optim.LBFGS, torch.optim.Adafactor):
        message = rf"{kind.__name__} is not known to be elementwise.*use one of ASGD, Adadelta.*`elementwise = True`"
        with pytest.raises(TypeError, match=message):
            Sparsifier.preset("set", layer, kind(layer.parameters()))


class SignDescent(Optimizer):
    """An elementwise optimizer of a user's own, with one tensor of state per entry."""

    elementwise = True
    shape: tuple[int, ...] = ()

    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state.setdefault("sum", torch.zeros(*parameter.shape, *self.shape))
            state["sum"] += torch.ones(self.shape)
            parameter.sub_(parameter.grad.sign(), alpha=0.1)


def test_an_elementwise_optimizer_of_ones_own() -> None:
    layer = layer_of()
    optimizer = SignDescent(layer.parameters())
    sparsifier = Sparsifier.preset("set", layer, optimizer, period=1, regrow="no", seed=0)
    train(layer, optimizer, 3)
    change = sparsifier.step()[""]
    assert optimizer.state[layer.values]["sum"].tolist() == [0 if source < 0 else 3 for source in change.source]


def test_state_of_another_shape_is_refused() -> None:
    class Mixing(SignDescent):
        shape = (2,)

    layer = layer_of()
    optimizer = Mixing(layer.parameters())
    train(layer, optimizer, 1)
    with pytest.raises(TypeError, match=r"state 'sum' of Mixing has shape \(15, 2\) for 15 connections"):
        carry_state(optimizer, layer.values, change_of(layer, [0], 1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_follows_freezing(name: str) -> None:
    layer = layer_of()
    optimizer = OPTIMIZERS[name](layer.parameters())
    sparsifier = Sparsifier(layer, optimizer, drop=None, grow=None)
    train(layer, optimizer, 4)
    before = per_connection(optimizer, layer)
    biases = {key: t.clone() for key, t in optimizer.state[layer.bias].items() if isinstance(t, Tensor) and t.dim()}
    kept = torch.tensor([index for index in range(15) if index not in (1, 4, 14)])
    sparsifier.freeze("", layer.positions[[1, 4, 14]], torch.tensor([0, 3]))
    after = per_connection(optimizer, layer)
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor[kept]), key
    for key, tensor in biases.items():
        assert torch.equal(optimizer.state[layer.bias][key], tensor[[1, 2, 4]]), key
    train(layer, optimizer, 2, seed=1)


def test_settings_come_back_with_the_state() -> None:
    def made(**chosen: Any) -> Adam:
        return Adam([torch.nn.Parameter(torch.ones(3))], **chosen)

    chosen = dict(lr=0.3, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.2, decoupled=True, warmup=7, ages=False)
    restored = made()
    restored.load_state_dict(made(**chosen).state_dict())
    assert {name: restored.param_groups[0][name] for name in chosen} == chosen
    # Of another optimizer's state what it does not know stays.
    mine, theirs = made(decoupled=True, warmup=5), torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], lr=0.25)
    mine.load_state_dict(theirs.state_dict())
    assert [mine.param_groups[0][name] for name in ("lr", "decoupled", "warmup")] == [0.25, True, 5]


def test_each_parameter_has_the_rate_of_its_group() -> None:
    one, two = (SparseLinear(4, 3, sparsity=0.5) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": one.parameters(), "lr": 0.1}, {"params": two.parameters(), "lr": 0.5}])
    assert [rate_of(optimizer, each) for each in (one, two)] == [0.1, 0.5]
