"""The ledger: grants that fit, books that add up, and what happens when a network is full."""

from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from synthetic import blobs

from continual.catalogue import build_strategy
from continual.learner import Setup
from continual.ledger import CapacityError, Demand, Grant, TaskLedger
from continual.options import Sizes

SHAPES = {"first": (4, 3), "second": (4, 4), "output": (2, 4)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def demands(selected: int = 2, connections: tuple[int, int, int] = (4, 3, 2), reserved: int = 1) -> dict[str, Demand]:
    first, second, output = connections
    return {
        "first": Demand(selected, first, reserved),
        "second": Demand(selected, second, reserved),
        "output": Demand(0, output, 0),
    }


def books(ledger: TaskLedger) -> str:
    return str({key: {k: v.tolist() for k, v in part.items()} if isinstance(part, dict) else part
                for key, part in ledger.state_dict().items()})  # fmt: skip


def lists(grant: Grant) -> list[list[int]]:
    return [part.tolist() for part in (grant.outputs, grant.inputs, grant.positions, grant.released, grant.given_back)]


# ---- by hand


def full_books() -> TaskLedger:
    """Neurons 0, 1 of "first" reserved by task 1, 2 by task 2; "second" 0 by task 1, 1 by task 2."""
    ledger = TaskLedger(SHAPES)
    no_neurons = torch.tensor([], dtype=torch.int64)
    ledger.close_task(
        {"first": torch.tensor([0, 4, 5]), "second": torch.tensor([0, 1, 9]), "output": torch.tensor([0, 1])},
        {"first": torch.tensor([0, 1]), "second": torch.tensor([0])},
        {"first": torch.tensor([5.0, 2.0, 0.0, 0.0]), "second": torch.tensor([1.0, 0.0, 0.0, 0.0])},
    )
    ledger.close_task(
        {"first": torch.tensor([7, 9]), "second": torch.tensor([6, 8]), "output": no_neurons},
        {"first": torch.tensor([2]), "second": torch.tensor([1])},
        {"first": torch.tensor([0.0, 0.0, 3.0, 0.0]), "second": torch.tensor([0.0, 4.0, 0.0, 0.0])},
    )
    return ledger


def test_table_by_hand() -> None:
    first, second, output = full_books().table()
    # Positions // inputs: rows 0, 1, 1 and 2, 3 of "first".
    assert (first.used, first.reserved, first.free, first.cells, first.connections) == (4, 3, 1, 12, 5)
    assert (first.by_task, second.by_task, output.by_task) == ((3, 2), (3, 2), (2, 0))
    assert (second.used, second.reserved, second.free) == (3, 2, 2)
    assert (output.used, output.reserved, output.free) == (1, 0, 2)


def test_owners_by_hand() -> None:
    ledger = full_books()
    assert ledger.taken("first").tolist() == [0, 4, 5, 7, 9]
    assert ledger.owned_by("first", 1).tolist() == [7, 9]
    assert ledger.owners("first", torch.tensor([11, 0, 7, 1, 9])).tolist() == [-1, 0, 1, -1, 1]
    assert TaskLedger(SHAPES).owners("first", torch.tensor([3])).tolist() == [-1]
    assert ledger.free("first").tolist() == [3]


@pytest.mark.parametrize(
    ("shared", "inputs", "cells"), [(True, [0, 1, 2, 3], {10, 11, 12, 13, 14, 15}), (False, [3], {11, 15})]
)
def test_plan_by_hand(shared: bool, inputs: list[int], cells: set[int]) -> None:
    ledger = full_books()
    ledger.shared_inputs = shared
    # One neuron of "first" is free (3); both free ones of "second" (2, 3) are taken; 8 and 9 belong to earlier tasks.
    wanted = {"first": Demand(1, 2, 1), "second": Demand(2, len(cells), 1), "output": Demand(0, 1, 0)}
    grants = ledger.plan(wanted, torch.tensor([1]), generator())
    assert grants["first"].outputs.tolist() == [3]
    assert grants["first"].inputs.tolist() == [0, 1, 2]
    assert grants["first"].positions.tolist() == [10, 11]
    assert grants["second"].outputs.tolist() == [2, 3]
    assert grants["second"].inputs.tolist() == inputs
    assert set(grants["second"].positions.tolist()) == cells
    assert grants["output"].outputs.tolist() == [1]
    assert grants["output"].inputs.tolist() == ([0, 1, 2, 3] if shared else [2, 3])


def test_neurons_that_feed_several_inputs() -> None:
    # Each channel below gives two inputs.
    ledger = TaskLedger({"conv": (3, 1), "linear": (2, 6), "output": (2, 2)})
    ledger.close_task({}, {"conv": torch.tensor([0])}, {"conv": torch.ones(3)})
    wanted = {"conv": Demand(2, 2, 0), "linear": Demand(1, 6, 0), "output": Demand(0, 1, 0)}
    grants = ledger.plan(wanted, torch.tensor([0]), generator())
    assert grants["conv"].outputs.tolist() == [1, 2]
    assert grants["linear"].inputs.tolist() == [0, 1, 2, 3, 4, 5]
    ledger.shared_inputs = False
    grants = ledger.plan({**wanted, "linear": Demand(1, 4, 0)}, torch.tensor([0]), generator())
    assert grants["linear"].inputs.tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("what", ["connections", "neurons"])
def test_nobody_takes_what_is_owned(what: str) -> None:
    ledger = full_books()
    before = books(ledger)
    own = {"first": torch.tensor([10]), "second": torch.tensor([9 if what == "connections" else 12])}
    reserved = {"first": torch.tensor([3]), "second": torch.tensor([1 if what == "neurons" else 3])}
    with pytest.raises(ValueError, match=rf"task 3 .*{what} in layer 'second' that another task"):
        ledger.close_task(own, reserved, {"first": torch.ones(4), "second": torch.ones(4)})
    assert books(ledger) == before  # not even the layers before


# ---- laws


@st.composite
def histories(draw: st.DrawFn) -> tuple[TaskLedger, list[dict[str, Grant]], Sizes, int]:
    """A ledger after some tasks that fitted, and what each of them got."""
    widths = draw(st.lists(st.integers(3, 9), min_size=3, max_size=4))
    shapes = {f"l{index}": (rows, widths[index]) for index, rows in enumerate([*widths[1:], 4])}
    ledger = TaskLedger(shapes, shared_inputs=draw(st.booleans()))
    hidden = len(shapes) - 1
    sizes = Sizes(
        tuple(draw(st.integers(1, 3)) for _ in range(hidden)), tuple(draw(st.integers(0, 2)) for _ in range(hidden)),
        tuple(draw(st.integers(1, 4)) for _ in range(hidden + 1)),
    )  # fmt: skip
    seed = draw(st.integers(0, 2**32))
    draws, history = generator(seed), []
    for task in range(draw(st.integers(0, 5))):
        try:
            grants = ledger.plan(sizes.demands(ledger.names), torch.tensor([task % 4]), draws)
        except CapacityError:
            break
        close(ledger, grants, draws)
        history.append(grants)
    return ledger, history, sizes, seed


def close(ledger: TaskLedger, grants: dict[str, Grant], draws: torch.Generator) -> None:
    scores = {name: torch.rand(ledger.shapes[name][0], generator=draws) for name in ledger.hidden}
    reserved = {name: grants[name].outputs[: grants[name].reserved] for name in ledger.hidden}
    ledger.close_task({name: grant.positions for name, grant in grants.items()}, reserved, scores)


@settings(max_examples=80, deadline=None)
@given(histories())
def test_what_was_granted_lies_where_it_may_and_belongs_to_one(made: Any) -> None:
    ledger, history, sizes, _ = made
    for index, name in enumerate(ledger.names):
        rows, width = ledger.shapes[name]
        owned, reserved = set(), set()
        for task, grants in enumerate(history):
            grant = grants[name]
            positions = grant.positions.tolist()
            assert len(positions) == sizes.connections[index] == len(set(positions))
            assert {p // width for p in positions} <= set(grant.outputs.tolist()) <= set(range(rows)) - reserved
            assert {p % width for p in positions} <= set(grant.inputs.tolist())
            if index:
                below = grants[ledger.names[index - 1]].outputs.tolist()
                assert set(below) <= set(grant.inputs.tolist())
            assert not owned & set(positions)
            assert ledger.owned_by(name, task).tolist() == positions
            owned |= set(positions)
            if name in ledger.hidden:
                assert grant.outputs.numel() == sizes.selected[index]
                reserved |= set(grant.outputs[: grant.reserved].tolist())
        assert ledger.taken(name).tolist() == sorted(owned)
        assert ledger.free(name).tolist() == sorted(set(range(rows)) - reserved)


@settings(max_examples=40, deadline=None)
@given(histories())
def test_tables_add_up(made: Any) -> None:
    ledger, history, _, _ = made
    for row in ledger.table():
        assert row.reserved + row.free == row.neurons
        assert sum(row.by_task) == row.connections == ledger.taken(row.layer).numel() <= row.cells
        assert len(row.by_task) == len(history)
        assert row.used == len(set((ledger.taken(row.layer) // ledger.shapes[row.layer][1]).tolist()))


@settings(max_examples=40, deadline=None)
@given(histories(), st.integers(0, 99))
def test_books_come_back_and_go_on_alike(made: Any, seed: int) -> None:
    ledger, _, sizes, _ = made
    again = TaskLedger(ledger.shapes, shared_inputs=ledger.shared_inputs)
    again.load_state_dict(ledger.state_dict())
    assert books(again) == books(ledger)
    plans = []
    for each in (ledger, again):
        try:
            plan = each.plan(sizes.demands(each.names), torch.tensor([0]), generator(seed))
            plans.append({name: lists(grant) for name, grant in plan.items()})
        except CapacityError as error:
            plans.append({"error": [[str(error)]]})
    assert plans[0] == plans[1]
    if again.tasks:
        before = books(ledger)
        again.release(again.names[0], torch.arange(2))
        again.give_back(again.names[0], again.taken(again.names[0])[:1])
        assert books(ledger) == before  # nothing is shared


def test_books_of_another_network() -> None:
    with pytest.raises(ValueError, match=r"has layers \['first', 'second', 'output'\], this network \['other'\]"):
        TaskLedger({"other": (2, 2)}).load_state_dict(full_books().state_dict())


# ---- when it does not fit


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            demands(selected=3),
            r"task 3 wants 3 free neurons in layer 'first', but 1 of 4 are free; widen .* select or reserve fewer, "
            r"or take another policy \(shrink, reclaim\)",
        ),
        (
            {**demands(1, (2, 1, 9)), "output": Demand(0, 9, 0)},
            r"task 3 wants 9 connections in layer 'output', but 3 of the 3 positions between its neurons are free; "
            r"widen the layer, ask for fewer connections, or take another policy",
        ),
    ],
)
def test_error_says_what_and_changes_nothing(wanted: dict[str, Demand], message: str) -> None:
    ledger = full_books()
    before = books(ledger)
    with pytest.raises(CapacityError, match=message):
        ledger.plan(wanted, torch.tensor([1]), generator())
    assert books(ledger) == before


def test_shrink_takes_what_there_is() -> None:
    ledger = full_books()
    grants = ledger.plan(demands(selected=3, connections=(9, 9, 9)), torch.tensor([1]), generator(), policy="shrink")
    # Neuron 3 reads 0, 1, 2, and 9 = 3·3 + 0 is taken.
    assert lists(grants["first"]) == [[3], [0, 1, 2], [10, 11], [], []]
    assert grants["second"].outputs.tolist() == [2, 3]
    assert grants["second"].positions.tolist() == [10, 11, 12, 13, 14, 15]
    ledger.close_task({}, {"first": torch.tensor([3])}, {"first": torch.ones(4)})
    with pytest.raises(CapacityError, match="but 0 of 4 are free"):  # nothing is not something
        ledger.plan(demands(), torch.tensor([1]), generator(), policy="shrink")


def test_reclaim_releases_the_least_important_and_gives_back_the_least_worth() -> None:
    ledger = full_books()
    worth = {name: torch.arange(rows * columns).float() for name, (rows, columns) in SHAPES.items()}
    worth["first"][7] = 0.5
    asked: list[tuple[str, list[int]]] = []

    def value(name: str, positions: torch.Tensor) -> torch.Tensor:
        asked.append((name, positions.tolist()))
        return worth[name][positions]

    # Neuron 1 has importance 2, neuron 2 has 3 and neuron 0 has 5: with 3 free, 1 and 2 make three.
    wanted = {**demands(3, (7, 2, 2)), "second": Demand(2, 7, 1)}
    before = books(ledger)
    grants = ledger.plan(wanted, torch.tensor([1]), generator(), policy="reclaim", worth=value)
    assert books(ledger) == before
    assert grants["first"].outputs.tolist() == [1, 2, 3]
    assert grants["first"].released.tolist() == [1, 2]
    # Of their 9 cells 4, 5, 7 and 9 are taken, so 5 are free: the two of least worth go, neurons released or not.
    assert grants["first"].given_back.tolist() == [4, 7]
    assert asked[0] == ("first", [4, 5, 7, 9])
    assert set(grants["first"].positions.tolist()) == {3, 4, 6, 7, 8, 10, 11}
    # "second" has 2 and 3 free, all inputs readable: 8 and 9 are taken but in no reserved neuron; 6 is left alone.
    assert grants["second"].released.tolist() == []
    assert grants["second"].given_back.tolist() == [8]
    assert grants["output"].given_back.tolist() == []
    lost = ledger.give_back("first", grants["first"].given_back)
    assert lost.tolist() == [1, 1]
    ledger.release("first", grants["first"].released)
    assert ledger.free("first").tolist() == [1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(histories(), st.integers(0, 99))
def test_reclaim_touches_no_reserved_neuron_and_no_more_than_is_missing(made: Any, seed: int) -> None:
    ledger, _, sizes, _ = made
    draws = generator(seed)
    worth = {name: torch.rand(rows * columns, generator=draws) for name, (rows, columns) in ledger.shapes.items()}
    try:
        plan = ledger.plan(
            sizes.demands(ledger.names), torch.tensor([0]), draws, policy="reclaim",
            worth=lambda name, positions: worth[name][positions],
        )  # fmt: skip
    except CapacityError:
        return
    for name, grant in plan.items():
        order, reserved = ledger.reserve_order[name], ledger.reserved_by[name] >= 0
        kept = reserved.clone()
        kept[grant.released] = False
        assert reserved[grant.released].all()
        if grant.released.numel() and kept.any():
            assert order[grant.released].max() <= order[kept].min()
        if name in ledger.hidden:
            missing = sizes.selected[ledger.names.index(name)] - ledger.free(name).numel()
            assert grant.released.numel() == max(0, min(missing, int(reserved.sum())))
        assert not kept[grant.given_back // ledger.shapes[name][1]].any()
        assert (ledger.owners(name, grant.given_back) >= 0).all()
        # What keeps its place was either protected, out of reach, or worth more; no more goes than is missing.
        stays = ledger.owners(name, grant.positions) >= 0
        assert set(grant.positions[stays].tolist()) <= set(grant.given_back.tolist())
        width = ledger.shapes[name][1]
        taken = ledger.taken(name)
        inside = torch.isin(taken // width, grant.outputs) & torch.isin(taken % width, grant.inputs)
        reach = taken[inside & ~kept[taken // width]]
        free = grant.outputs.numel() * grant.inputs.numel() - int(inside.sum())
        missing = sizes.connections[ledger.names.index(name)] - free
        assert grant.given_back.numel() == max(0, min(missing, reach.numel()))
        stay = reach[~torch.isin(reach, grant.given_back)]
        if stay.numel() and grant.given_back.numel():
            assert worth[name][grant.given_back].max() <= worth[name][stay].min()
            event("something is given back, something stays")
        assert grant.positions.unique().numel() == grant.positions.numel()


# ---- end to end

TIGHT = Sizes(selected=(8, 8), reserved=(4, 4), connections=(16, 16, 6))


def crowded(policy: str, **choices: Any) -> tuple[Any, Any]:
    benchmark = blobs(tasks=6)
    setup = Setup(
        benchmark, hidden=(16, 16), epochs=2, batch_size=8, learning_rate=0.1, policy=policy, seed=3,
        options={"sizes": TIGHT, **choices},
    )  # fmt: skip
    return build_strategy("spacenet-2021", setup), benchmark


def test_neurons_run_out_with_an_error_and_what_was_learned_stays() -> None:
    strategy, benchmark = crowded("error")
    for experience in benchmark.train[:3]:
        strategy.train(experience, [])
    x, _ = benchmark.tensors("test", 0)
    before, scores = books(strategy.ledger), strategy.class_scores(x)
    with pytest.raises(CapacityError, match=r"task 4 wants 8 free neurons in layer 'layers\.0', but 4 of 16 are free"):
        strategy.train(benchmark.train[3], [])
    assert books(strategy.ledger) == before
    assert torch.equal(strategy.class_scores(x), scores)
    assert len(strategy.tasks) == 3


def test_neurons_run_out_and_tasks_shrink() -> None:
    strategy, benchmark = crowded("shrink")
    for experience in benchmark.train[:4]:
        strategy.train(experience, [])
    assert [row.free for row in strategy.ledger.table()[:2]] == [0, 0]
    assert strategy.ledger.table()[0].by_task[3] > 0
    with pytest.raises(CapacityError, match="0 of 16 are free"):
        strategy.train(benchmark.train[4], [])


def test_neurons_run_out_and_are_reclaimed(caplog: pytest.LogCaptureFixture) -> None:
    strategy, benchmark = crowded("reclaim")
    for number, experience in enumerate(benchmark.train):
        caplog.clear()
        strategy.train(experience, [])
        assert ("layer layers.0: 4 reserved neurons of tasks" in caplog.text) == (number >= 3)
    assert len(strategy.tasks) == 6
    assert strategy.ledger.table()[0].by_task[5] == 16
    x, y = benchmark.tensors("test", 5)
    assert (strategy.task_scores(x, 5).argmax(1) == y).float().mean() > 0.8


@pytest.mark.parametrize("isolation", ["shared", "strict"])
def test_connections_given_back_are_gone_from_the_network_and_their_loss_is_said(
    isolation: str, caplog: pytest.LogCaptureFixture
) -> None:
    benchmark = blobs(tasks=6)
    # Each task fills a quarter of the first layer, so that the fifth finds no place for its own.
    sizes = Sizes(selected=(16, 16), reserved=(0, 0), connections=(64, 32, 16))
    setup = Setup(
        benchmark, hidden=(16, 16), epochs=1, batch_size=16, policy="reclaim", isolation=isolation,
        options={"sizes": sizes, "drop": None, "grow": None},
    )  # fmt: skip
    strategy = build_strategy("spacenet", setup)
    for experience in benchmark.train[:4]:
        strategy.train(experience, [])
    assert not caplog.records
    values = strategy.archive.worth("layers.0", strategy.ledger.taken("layers.0"))
    least = strategy.ledger.taken("layers.0")[values.argsort(stable=True)[:64]]
    strategy.train(benchmark.train[4], [])
    table = strategy.ledger.table()[0]
    assert (table.connections, table.by_task[4]) == (256, 64)
    assert set(strategy.ledger.owned_by("layers.0", 4).tolist()) == set(least.tolist())
    costs = ", ".join(f"task {task + 1}: {64 - kept}" for task, kept in enumerate(table.by_task[:4]) if kept < 64)
    assert f"layer layers.0: connections given back to make room ({costs})" in caplog.text
    for number in range(5):
        view = strategy._network_of(number).chain["layers.0"]
        assert set(view.topology.positions.tolist()) <= set(strategy.ledger.taken("layers.0").tolist())
    assert strategy.costs().nnz == sum(row.connections for row in strategy.ledger.table())


# ---- sizes that fit


@pytest.mark.parametrize("tasks", [5, 10, 20, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("widths", [(784, 400, 400), (64, 60, 60), (16, 40)])
@pytest.mark.parametrize("reserve", [0.0, 0.5, 1.0])
def test_fitting_sizes_fit(tasks: int, shared: bool, widths: tuple[int, ...], reserve: float) -> None:
    ends = [*widths[1:], 2 * tasks]
    shapes = {f"l{index}": (rows, columns) for index, (rows, columns) in enumerate(zip(ends, widths, strict=True))}
    sizes = Sizes.fitting([*shapes.values()], 2, tasks, reserve=reserve)
    assert all(kept <= chosen for kept, chosen in zip(sizes.reserved, sizes.selected, strict=True))
    ledger, draws = TaskLedger(shapes, shared_inputs=shared), generator(tasks)
    for task in range(tasks):
        close(ledger, ledger.plan(sizes.demands(ledger.names), torch.tensor([2 * task, 2 * task + 1]), draws), draws)
    assert ledger.tasks == tasks


def test_fitting_five_tasks_of_mnist_is_the_release() -> None:
    sizes = Sizes.fitting([(400, 784), (400, 400), (10, 400)], 2, 5)
    assert (sizes.selected, sizes.reserved) == ((80, 80), (40, 40))
    assert sizes.connections == (round(0.16 * 784 * 80), round(0.256 * 6400), 80)


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", ["spacenet", "spacenet-2021", "afaf", "spacenet-rehearsal"])
@pytest.mark.parametrize("tasks", [20, pytest.param(50, marks=pytest.mark.slow)])
def test_many_tasks_end_to_end(name: str, tasks: int) -> None:
    benchmark = blobs(tasks=tasks, samples=8)
    strategy = build_strategy(name, Setup(benchmark, hidden=(100, 100), epochs=1, batch_size=8))
    for experience in benchmark.train:
        strategy.train(experience, [])
    assert len(strategy.tasks) == tasks
    assert all(min(row.by_task) > 0 for row in strategy.ledger.table()[-1:])


@pytest.mark.parametrize("isolation", ["shared", "strict"])
def test_many_tasks_that_share_their_classes(isolation: str) -> None:
    benchmark = blobs(tasks=20, samples=8, shared_classes=True)
    strategy = build_strategy(
        "spacenet", Setup(benchmark, hidden=(40, 40), epochs=1, batch_size=8, isolation=isolation)
    )
    for experience in benchmark.train:
        strategy.train(experience, [])
    assert len(strategy.tasks) == 20
