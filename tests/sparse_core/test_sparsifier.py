import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from small_sparsifiers import MOVING, OPTIMIZERS, SEARCHING, again, assert_equal, learn, network, seeded, sparsifier_of
from torch import Tensor, nn

from sparse_core import (
    DROP_RULES,
    GROW_RULES,
    PRESETS,
    Adam,
    Constraint,
    LayerView,
    SparseLinear,
    SparseMLP,
    Sparsifier,
    Topology,
    drop_rule,
    grow_rule,
    sparse_layers,
)

# When


def test_changes_come_when_they_are_due() -> None:
    model = network("rigl")
    optimizer = OPTIMIZERS["ours"](model.parameters())
    sparsifier = sparsifier_of("rigl", model, optimizer, total_steps=40)  # until step 30
    changed = []
    for step in range(1, 41):
        learn(model, optimizer, step, 6)
        if sparsifier.step():
            changed.append(step)
    assert changed == [5, 10, 15, 20, 25, 30]
    assert sparsifier.changes == 5  # at step 30 the cosine is zero: nothing moves


def test_the_share_that_changes_follows_the_schedule() -> None:
    layer = SparseLinear(20, 20, sparsity=0.5, generator=seeded())
    optimizer = OPTIMIZERS["SGD"](layer.parameters())
    sparsifier = Sparsifier(
        layer, optimizer, drop="random", grow="random", drop_fraction=0.5, schedule="linear", period=10,
        total_steps=50, stop=0.8, seed=0,
    )  # fmt: skip
    counts = [change[""].grown.numel() for _ in range(50) if (change := sparsifier.step())]
    # ζ = 0.5 · (1 - step / 40) of 200 connections at steps 10, 20, 30, 40.
    assert counts == [75, 50, 25, 0]


@pytest.mark.parametrize("name", [name for name in MOVING if not PRESETS[name].masking])  # masks do not wait
def test_a_change_that_is_not_allowed_waits(name: str) -> None:
    model = network(name)
    optimizer = OPTIMIZERS["ours"](model.parameters())
    sparsifier = sparsifier_of(name, model, optimizer)
    changed = []
    for step in range(1, 13):
        learn(model, optimizer, step, 6)
        if sparsifier.step(allowed=step not in (5, 6, 7), closure=again(model, step)):
            changed.append(step)
    # The one of step 5 late, the next one, if there is one, on time.
    assert changed == ([8] if PRESETS[name].once else [8, 10])


# Dropped and grown in one change


@pytest.mark.parametrize("regrow", ["no", "kept", "fresh"])
def test_what_becomes_of_a_dropped_connection_that_grows_again(regrow: str) -> None:
    # A full row but one: of 8 cells 7 are taken. Dropping 3 leaves 4 free ones, of which 3 were just dropped.
    layer = SparseLinear(8, 1, topology=Topology.from_positions((1, 8), torch.arange(7)), bias=False)
    with torch.no_grad():
        layer.values.copy_(torch.tensor([0.1, 0.2, 0.3, 4.0, 5.0, 6.0, 7.0]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    sparsifier = Sparsifier(
        layer, optimizer, drop="magnitude", grow="random", drop_fraction=3 / 7, regrow=regrow, birth=-1.0, seed=0
    )
    change = sparsifier.update()[""]
    row = layer.to_dense().weight[0]
    torch.testing.assert_close(row[3:7], torch.tensor([4.0, 5.0, 6.0, 7.0]))
    if regrow == "no":  # one vacant cell, one change: 0.1 goes
        assert change.grown.tolist() == [7]
        torch.testing.assert_close(row, torch.tensor([0.0, 0.2, 0.3, 4.0, 5.0, 6.0, 7.0, -1.0]))
        return
    assert layer.nnz == 7
    back = [cell for cell in range(3) if cell in layer.positions.tolist()]
    assert len(back) >= 2  # three grow in four free cells
    for cell in back:
        assert row[cell].item() == pytest.approx([0.1, 0.2, 0.3][cell] if regrow == "kept" else -1.0)


def test_reset_in_place_refreshes_weights_and_state_where_they_are() -> None:
    #                    0     1    2     3    4: of each sign the weakest goes, and comes back as new
    values = torch.tensor([-2.0, -0.1, 0.3, 4.0, 5.0])
    layer = SparseLinear(8, 1, topology=Topology.from_positions((1, 8), torch.arange(5)), bias=False)
    target = copy.deepcopy(layer)
    for each in (layer, target):
        with torch.no_grad():
            each.values.copy_(values)
    optimizer = Adam(layer.parameters(), lr=0.0)
    layer(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    sparsifier = Sparsifier.preset("reset-in-place", layer, optimizer, drop_fraction=0.4, seed=0, followers=[target])
    change = sparsifier.update()[""]
    assert change.dropped.tolist() == change.grown.tolist() == [1, 2]
    assert layer.positions.tolist() == target.positions.tolist() == [0, 1, 2, 3, 4]
    assert layer.values.tolist() == target.values.tolist() == [-2.0, 0.0, 0.0, 4.0, 5.0]
    state = optimizer.state[layer.values]
    assert (state["exp_avg"] == 0).tolist() == [False, True, True, False, False]
    assert state["age"].tolist() == [1, 0, 0, 1, 1]
    assert sparsifier.changes == 1


@pytest.mark.parametrize("regrow", ["no", "kept"])
def test_growth_in_place_wants_fresh_connections(regrow: str) -> None:
    layer = SparseLinear(8, 2, sparsity=0.5)
    with pytest.raises(
        ValueError, match=f"'in-place' grows what was dropped, anew; give `regrow='fresh'`, got '{regrow}'"
    ):
        sparsifier_of("reset-in-place", layer, torch.optim.SGD(layer.parameters(), lr=0.1), regrow=regrow)


# Constraints


@pytest.mark.parametrize("name", SEARCHING)
def test_growth_stays_where_it_is_allowed(name: str) -> None:
    model = network(name)
    optimizer = OPTIMIZERS["ours"](model.parameters())
    before = sparse_layers(model)["2"].topology.to_mask()
    sparsifier = sparsifier_of(name, model, optimizer, constraints={"2": Constraint(outputs=torch.tensor([2, 7]))})
    for step in range(30):
        learn(model, optimizer, step, 6)
        sparsifier.step()
    grown = sparse_layers(model)["2"].topology.to_mask() & ~before
    assert grown.any()
    assert set(grown.nonzero()[:, 0].tolist()) <= {2, 7}


def test_nothing_is_dropped_where_nothing_may_grow() -> None:
    layer = SparseLinear(4, 4, topology=Topology.from_positions((4, 4), torch.arange(8)))  # outputs 0 and 1 are full
    optimizer = OPTIMIZERS["ours"](layer.parameters())
    constraints = {"": Constraint(outputs=torch.tensor([0, 1]))}
    for regrow in ("no", "kept", "fresh"):
        options = {"regrow": regrow, "constraints": constraints, "drop_fraction": 0.5, "seed": 0}
        Sparsifier(layer, optimizer, drop="magnitude", grow="random", **options).update()
        assert layer.topology.positions.tolist() == list(range(8))
    elsewhere = {"": Constraint(inputs=torch.empty(0, dtype=torch.int64))}
    Sparsifier(layer, optimizer, drop="magnitude", grow="random", constraints=elsewhere).update()
    assert layer.topology.positions.tolist() == list(range(8))


# Rules from outside the package


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (DROP_RULES, GROW_RULES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.mark.usefixtures("own_registries")
def test_rules_of_ones_own() -> None:
    @drop_rule("first")
    def first(view: LayerView, count: int) -> Tensor:
        return torch.arange(count)

    @grow_rule("last", needs_capture=True)
    def last(view: LayerView, count: int) -> Tensor:
        assert len(view.capture) == 1
        vacant = [cell for cell in range(view.shape[0] * view.shape[1]) if cell not in view.blocked.tolist()]
        return torch.tensor(vacant[-count:])

    layer = SparseLinear(4, 2, topology=Topology.from_positions((2, 4), torch.tensor([0, 1, 2, 7])))
    optimizer = OPTIMIZERS["ours"](layer.parameters())
    sparsifier = Sparsifier(layer, optimizer, drop="first", grow="last", drop_fraction=0.5, period=1)
    learn(layer, optimizer, 0, 4)
    sparsifier.step()
    assert layer.positions.tolist() == [2, 5, 6, 7]


WRONG_DROPS = {
    "too few": lambda view, count: torch.arange(count - 1),
    "too many": lambda view, count: torch.arange(count + 1),
    "twice": lambda view, count: torch.zeros(count, dtype=torch.int64),
    "descending": lambda view, count: torch.arange(count).flip(0),
    "outside": lambda view, count: torch.arange(count) + view.count - 1,
    "negative": lambda view, count: torch.arange(count) - 1,
    "a column": lambda view, count: torch.arange(count)[:, None],
}
WRONG_GROWTHS = {
    "too few": lambda view, count: view.sample_vacant(count - 1),
    "twice": lambda view, count: view.sample_vacant(1).expand(count),
    "taken": lambda view, count: view.blocked[:count],
    "outside": lambda view, count: torch.arange(count) + view.shape[0] * view.shape[1],
    "negative": lambda view, count: torch.arange(-count, 0),
}


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize(
    ("kind", "wrong"),
    [("drop", name) for name in WRONG_DROPS] + [("grow", name) for name in WRONG_GROWTHS],
)
def test_a_misbehaving_rule_is_refused_and_nothing_changes(kind: str, wrong: str) -> None:
    # Right on the layers before the last, so that a change in part would show.
    drop, grow = DROP_RULES["random"].choose, GROW_RULES["random"].choose
    last = (12, 16)
    if kind == "drop":
        drop_rule("wrong")(lambda view, count: (WRONG_DROPS[wrong] if view.shape == last else drop)(view, count))
    else:
        grow_rule("wrong")(lambda view, count: (WRONG_GROWTHS[wrong] if view.shape == last else grow)(view, count))
    model = SparseMLP([6, 16, 12, 2], sparsity=0.6, generator=seeded())
    optimizer = OPTIMIZERS["ours"](model.parameters())
    options = {"drop": "random", "grow": "random", kind: "wrong"}
    sparsifier = Sparsifier(model, optimizer, period=1, seed=0, **options)
    learn(model, optimizer, 0, 6)
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    with pytest.raises(RuntimeError, match=r"rule 'wrong'.* (distinct indices in ascending order|vacant ones)"):
        sparsifier.step()
    assert_equal([model.state_dict(), optimizer.state_dict()], before)
    assert sparsifier.changes == 0


@pytest.mark.usefixtures("own_registries")
def test_rules_see_the_temperature_of_their_step() -> None:
    seen = []

    @drop_rule("spy")
    def spy(view: LayerView, count: int) -> Tensor:
        seen.append((view.choosing.temperature, view.choosing.mix))
        return torch.arange(count)

    layer = SparseLinear(8, 8, sparsity=0.5, generator=seeded())
    sparsifier = Sparsifier(
        layer, OPTIMIZERS["SGD"](layer.parameters()), drop="spy", grow="random", period=1, total_steps=4, seed=0,
        drop_temperature=1.0, final_drop_temperature=9.0, drop_mix=0.25,
    )  # fmt: skip
    for _ in range(4):
        sparsifier.step()
    assert seen == [(3.0, 0.25), (5.0, 0.25), (7.0, 0.25), (9.0, 0.25)]


def test_a_mix_of_one_grows_as_set() -> None:
    def grown(**choices: Any) -> list[int]:
        layer = SparseLinear(12, 9, sparsity=0.5, generator=seeded())
        optimizer = OPTIMIZERS["SGD"](layer.parameters())
        sparsifier = Sparsifier(layer, optimizer, drop="magnitude", period=1, seed=3, **choices)
        learn(layer, optimizer, 0, 12)
        return sparsifier.step()[""].grown.tolist()

    by_gradient = grown(grow="gradient")
    assert grown(grow="gradient", grow_mix=1.0) == grown(grow="random") != by_gradient
    assert len(by_gradient) == 16
    assert 8 <= len({*grown(grow="gradient", grow_mix=0.5)} & {*by_gradient}) < 16
    assert grown(grow="gradient", grow_temperature=0.0) != by_gradient


@pytest.mark.usefixtures("own_registries")
def test_a_rule_cannot_reach_the_layer_through_its_view() -> None:
    @drop_rule("vandal")
    def vandal(view: LayerView, count: int) -> Tensor:
        for tensor in (view.values, view.positions, view.blocked):
            tensor.zero_()
        raise ZeroDivisionError

    layer = SparseLinear(4, 4, sparsity=0.5)
    before = copy.deepcopy(layer.state_dict())
    sparsifier = Sparsifier(layer, OPTIMIZERS["SGD"](layer.parameters()), drop="vandal", grow="random")
    with pytest.raises(ZeroDivisionError):
        sparsifier.update()
    assert_equal(layer.state_dict(), before)
    layer(torch.ones(1, 4))


# Presets


def test_the_papers_choices() -> None:
    # SET: weakest of each sign, random growth, a constant share to the end. RigL: weakest, steepest, cosine to 3/4.
    model = network("set")
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    set_, rigl = (sparsifier_of(name, model, optimizer, total_steps=100) for name in ("set", "rigl"))
    assert [set_.fraction(step) for step in (0, 50, 100)] == [0.3, 0.3, 0.3]
    assert set_.every.until == 100
    assert not set_.needs_capture
    assert [rigl.fraction(step) for step in (0, 75)] == pytest.approx([0.3, 0])
    assert rigl.fraction(25) == pytest.approx(0.15 * (1 + math.cos(math.pi / 3)))
    assert rigl.every.until == 75
    assert rigl.needs_capture
    assert (PRESETS["set"].drop, PRESETS["set"].grow) == ("signed", "random")
    assert (PRESETS["rigl"].drop, PRESETS["rigl"].grow) == ("magnitude", "gradient")
    assert {PRESETS["set"].regrow, PRESETS["rigl"].regrow} == {"kept"}


@pytest.mark.parametrize("name", ["static", "dense"])
def test_a_static_topology_stays_and_captures_nothing(name: str) -> None:
    model = network(name)
    before = [layer.topology for layer in sparse_layers(model).values()]
    optimizer = OPTIMIZERS["ours"](model.parameters())
    sparsifier = sparsifier_of(name, model, optimizer)
    for step in range(12):
        learn(model, optimizer, step, 6)
        assert sparsifier.step() == {}
        assert all(layer.capture is None for layer in sparse_layers(model).values())
    assert sparsifier.update() == {}
    assert [layer.topology for layer in sparse_layers(model).values()] == before
    assert (sparsifier.steps, sparsifier.changes) == (12, 0)


# Errors at the door


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": "magnitude", "grow": None}, "give both `drop` and `grow`, or neither.*got 'magnitude' and None"),
        ({"drop_fraction": 1.5}, r"`drop_fraction` must be in \[0, 1\], got 1.5"),
        ({"drop_fraction": math.nan}, r"`drop_fraction` must be in \[0, 1\]"),
        ({"stop": 2.0}, r"`stop` must be a share of the training steps in \[0, 1\], got 2.0"),
        ({"regrow": "yes"}, "`regrow` must be 'no', 'kept' or 'fresh', got 'yes'"),
        ({"capture_batches": 0}, "must be at least 1, got 0 and 1"),
        ({"capture_stride": 0}, "must be at least 1, got 1 and 0"),
        ({"period": 0}, "`period` must be at least 1 step"),
        ({"schedule": "cosine"}, "schedule 'cosine' with `stop` 1 needs `total_steps`"),
        ({"stop": 0.5}, "schedule 'constant' with `stop` 0.5 needs `total_steps`"),
        ({"drop": "magnitud"}, r"no drop rule called 'magnitud'; did you mean 'magnitude'\?"),
        ({"grow": "gradiant"}, r"no grow rule called 'gradiant'; did you mean 'gradient'\?"),
        ({"schedule": "cosinus", "total_steps": 9}, r"no schedule called 'cosinus'; did you mean 'cosine'\?"),
        ({"constraints": {"3": Constraint()}}, r"`constraints` names no sparse layer with \['3'\]; known: 0, 2"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    model = network("set")
    with pytest.raises(ValueError, match=message):
        Sparsifier(model, OPTIMIZERS["SGD"](model.parameters()), **{"drop": "random", "grow": "random", **options})
    assert all(layer.capture is None for layer in sparse_layers(model).values())


def test_a_wrong_preset_gets_a_suggestion() -> None:
    model = network("set")
    with pytest.raises(ValueError, match=r"no topology called 'rigle'; did you mean 'rigl'\?"):
        Sparsifier.preset("rigle", model, OPTIMIZERS["SGD"](model.parameters()))


def test_the_dense_preset_refuses_a_sparse_model() -> None:
    model = network("set")
    with pytest.raises(ValueError, match="preset 'dense' is the dense baseline, but the model has sparse layers"):
        Sparsifier.preset("dense", model, OPTIMIZERS["SGD"](model.parameters()))


def test_an_optimizer_made_for_other_parameters_is_refused() -> None:
    model = network("set")
    with pytest.raises(
        ValueError, match="the optimizer does not hold the values of '0', '2'; make it after the layers"
    ):
        sparsifier_of("set", model, OPTIMIZERS["SGD"](nn.Linear(2, 2).parameters()))
    model.requires_grad_(False)  # a part that is not trained needs no optimizer
    sparsifier_of("set", model, OPTIMIZERS["SGD"](nn.Linear(2, 2).parameters()))


@pytest.mark.parametrize("other", [network("set", seed=1), SparseMLP([6, 16, 2], sparsity=0.5), nn.Linear(6, 2)])
def test_a_follower_of_another_topology_is_refused(other: nn.Module) -> None:
    model = network("set")
    with pytest.raises(ValueError, match=r"a follower must have .* the same topology; make it with `copy\.deepcopy"):
        sparsifier_of("set", model, OPTIMIZERS["SGD"](model.parameters()), followers=[other])


def test_a_follower_with_other_frozen_parts_is_refused() -> None:
    model = network("set")
    target = copy.deepcopy(model)
    target[0].freeze(target[0].positions[:1])
    with pytest.raises(ValueError, match="a follower must have"):
        sparsifier_of("set", model, OPTIMIZERS["SGD"](model.parameters()), followers=[target])


def test_diverged_training_is_an_error_and_changes_nothing() -> None:
    model = network("set")
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    sparsifier = sparsifier_of("set", model, optimizer)
    with torch.no_grad():
        model[2].values[3] = torch.nan
    before = [layer.topology for layer in sparse_layers(model).values()]
    with pytest.raises(FloatingPointError, match="layer '2' has values that are not finite: training has diverged"):
        sparsifier.update()
    assert [layer.topology for layer in sparse_layers(model).values()] == before


@pytest.mark.gpu
@pytest.mark.parametrize("name", MOVING)
def test_a_seed_gives_the_same_topologies_on_cuda(name: str) -> None:
    def trained(device: str) -> list[Topology]:
        model = network(name).double().to(device)
        optimizer = OPTIMIZERS["ours"](model.parameters())
        sparsifier = sparsifier_of(name, model, optimizer)
        for step in range(11):
            inputs = torch.randn(8, 6, generator=seeded(step), dtype=torch.float64).to(device)
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            sparsifier.step(closure=partial(lambda inputs: model(inputs).square().mean().backward(), inputs))
        return [layer.topology for layer in sparse_layers(model).values()]

    assert trained("cuda") == trained("cpu")


def test_an_argument_that_is_not_there_is_named() -> None:
    model = nn.Sequential(SparseLinear(4, 3, sparsity=0.5))
    optimizer = Adam(model.parameters())
    with pytest.raises(
        TypeError, match=r"a `Sparsifier` has no argument 'dropfraction'; did you mean 'drop_fraction'\?"
    ):
        Sparsifier.preset("set", model, optimizer, dropfraction=0.2)
    with pytest.raises(TypeError, match="no argument 'summary'"):
        Sparsifier(model, optimizer, drop="magnitude", grow="random", summary="mine")


def test_more_of_the_papers_choices() -> None:
    for name in ("cht", "chts"):
        assert (PRESETS[name].chains, PRESETS[name].regrow, PRESETS[name].distribution) == (True, "fresh", "uniform")
    chts, smet, soft = PRESETS["chts"], PRESETS["smet"], PRESETS["mest-soft"]
    assert (chts.drop_temperature, chts.final_drop_temperature, chts.grow_temperature, chts.stop) == (1, 9, 1, 0.75)
    assert (smet.warmup, smet.drop_fraction, smet.schedule, smet.distribution) == (100, 0.2, "cosine", "uniform")
    assert (soft.overshoot, soft.course, soft.schedule) == (1.2, "staged", "staged")
    fractions = {"dsr": 0.1, "itop-set": 0.5, "itop-rigl": 0.5, "similarity": 0.05, "wast": 0.3}
    assert {name: PRESETS[name].drop_fraction for name in fractions} == fractions
    assert {PRESETS[name].regrow for name in ("rigl-fresh", "set-fresh", "smet", "deepr")} == {"no"}
