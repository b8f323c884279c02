"""What people get wrong, and what they are told."""

import logging
from typing import Any

import pytest
import torch
from small_sparsifiers import learn, seeded
from torch import Tensor, nn

from sparse_core import (
    DROP_RULES,
    GROW_RULES,
    Adam,
    SparseLinear,
    SparseMLP,
    Sparsifier,
    drop_rule,
    grow_rule,
    sparse_layers,
    sparsify,
)


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


def said(model: nn.Module, name: str, caplog: pytest.LogCaptureFixture, steps: int = 12, **choices: Any) -> str:
    """What a sparsifier of this preset logs while it trains a model."""
    caplog.clear()
    optimizer = Adam(model.parameters())
    sparsifier = Sparsifier.preset(name, model, optimizer, **{"period": 5, "total_steps": 60, **choices})
    for step in range(steps):
        learn(model, optimizer, step, 6)
        sparsifier.step()
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


# Models that were not made for their method


def test_a_forgotten_sparsify_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    assert said(dense(), "set", caplog) == (
        "no connection will move: the model has no sparse layer; give the `Sparsifier` what `sparsify` returned"
    )
    assert said(sparsify(dense(), 0.5), "set", caplog) == ""
    assert said(sparsify(dense(), 0.5), "static", caplog) == ""


def test_a_model_that_is_as_sparse_already_is_said(caplog: pytest.LogCaptureFixture) -> None:
    # 384 cells, 154 weights; 32 of them in the dense output layer.
    heard = said(sparsify(dense(), 0.6), "gmp", caplog, sparsity=0.6)
    assert heard.startswith("no connection will move: the model begins with 122 connections, and is to end with 122;")
    assert said(sparsify(dense(), 0.6, topology="gmp"), "gmp", caplog, sparsity=0.6) == ""


@pytest.mark.parametrize(
    ("name", "made_for", "choices"),
    [
        ("granet", "static", {"sparsity": 0.6}),  # exchanges, too
        ("mest-soft", "static", {"sparsity": 0.6}),
        ("set:pruned_neurons=0.3:neurons_from=0", "gmp", {}),  # takes neurons out
    ],
)
def test_what_moves_all_the_same_is_not_said(
    name: str, made_for: str, choices: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = sparsify(dense(), 0.6, topology=made_for)
    before = [layer.topology for layer in sparse_layers(model).values()]
    assert said(model, name, caplog, **choices) == ""
    assert [layer.topology for layer in sparse_layers(model).values()] != before


def test_full_layers_are_said(caplog: pytest.LogCaptureFixture) -> None:
    wide = sparsify(dense(), 0.6, topology="gmp")  # begins with every connection
    assert "every sparse layer has all its connections" in said(wide, "set", caplog)


# Rules


@pytest.mark.parametrize("register", [drop_rule, grow_rule])
def test_a_rule_that_cannot_be_found_is_not_registered(register: Any) -> None:
    def rule(view: Any, count: int) -> Tensor:
        return torch.arange(count)

    def without_default(view: Any, count: int, *, share: float) -> Tensor:
        return torch.arange(count)

    before = {*DROP_RULES, *GROW_RULES}
    with pytest.raises(TypeError, match=r'under a name: write the decorator as \("mine"\)'):
        register(rule)
    with pytest.raises(ValueError, match="without a colon, as 'mine', got 'a:b'"):
        register("a:b")(rule)
    with pytest.raises(ValueError, match=r"options of .* rule 'wanting' need defaults: share"):
        register("wanting")(without_default)
    assert {*DROP_RULES, *GROW_RULES} == before


@pytest.mark.parametrize(("returned", "kind"), [(None, "NoneType"), ([0, 1], "list")])
def test_a_rule_that_returns_no_tensor_is_named(returned: Any, kind: str) -> None:
    DROP_RULES.rule("forgetful")(lambda view, count: returned)
    try:
        model = SparseMLP([6, 8, 2], sparsity=0.5, generator=seeded())
        optimizer = Adam(model.parameters())
        sparsifier = Sparsifier(model, optimizer, drop="forgetful", grow="random", period=1)
        learn(model, optimizer, 0, 6)
        with pytest.raises(RuntimeError, match=f"rule 'forgetful' must return a tensor of .* indices, got {kind}"):
            sparsifier.step()
    finally:
        del DROP_RULES._entries["forgetful"]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"drop_fraction": "0.3"}, "`drop_fraction` must be a number, got '0.3'"),
        ({"warmup": 5.5}, "`warmup` must be a whole number of steps"),
    ],
)
def test_numbers_that_are_none(choices: dict[str, Any], message: str) -> None:
    model = SparseMLP([6, 8, 2], sparsity=0.5, generator=seeded())
    with pytest.raises(ValueError, match=message):
        Sparsifier.preset("set", model, Adam(model.parameters()), **choices)


# Models


def test_layers_are_also_replaced_in_plain_containers() -> None:
    class Ordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.order = [self.first, self.second]
            self.named, self.pair = {"head": self.head}, (self.first, self.head)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.order:
                x = layer(x).relu()
            return self.named["head"](x)

    model = sparsify(Ordered(), 0.5, distribution="uniform", dense=())
    assert model.order == [model.first, model.second]
    assert (model.named, model.pair) == ({"head": model.head}, (model.first, model.head))
    model(torch.randn(4, 6)).sum().backward()
    assert all(layer.values.grad is not None for layer in (model.first, model.second, model.head))


def test_a_lazy_model_is_asked_to_run_first() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"0\.weight, 0\.bias, .* have no shape yet; run one batch"):
        sparsify(model, 0.5)
    model(torch.randn(4, 6))
    assert isinstance(sparsify(model, 0.5)[0], SparseLinear)


def test_a_dense_checkpoint_is_not_taken_in_silence() -> None:
    before = dense()
    model = sparsify(dense(), 0.5)
    missing, unexpected = model.load_state_dict(before.state_dict(), strict=False)
    assert {"0.values", "0.columns", "2.values"} <= set(missing)
    assert set(unexpected) == {"0.weight", "2.weight"}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*0\.weight"):
        model.load_state_dict(before.state_dict())
