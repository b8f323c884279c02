"""Where connections are before training: by hand, laws over the registry, and what theory says of degrees."""

import math
import re
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from sparse_core import (
    INITIAL_TOPOLOGIES,
    Correlated,
    SparseMLP,
    Topology,
    generators,
    initial_topology,
    plan,
    signals,
    sparse_layers,
    sparsify,
    weighted_draws,
)
from sparse_core.draws import distinct_in_rows
from sparse_core.initial_topologies import draw

ROOT = Path(__file__).parents[2]
DATA_FREE = [name for name, rule in INITIAL_TOPOLOGIES.items() if not rule.reads_inputs]
VARIANTS = [*DATA_FREE, "small-world:beta=0", "small-world:beta=1", "brf:r=0", "brf:r=0.01", "brf:r=1"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mask(name: str, shape: tuple[int, int], count: int, seed: int = 0) -> list[list[int]]:
    found: list[list[int]] = draw(name, shape, count, seeded(seed)).to_mask().int().tolist()
    return found


# By hand


def test_a_ring_lattice() -> None:
    # Six outputs and six inputs around one ring, two connections each: an input and the next.
    assert mask("small-world:beta=0", (6, 6), 12) == [
        [1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1],
        [1, 0, 0, 0, 0, 1],
    ]
    # Four outputs stand at inputs 1, 3, 5 and 7 of eight, and reach one to each side.
    receptive = [
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 0],
        [1, 0, 0, 0, 0, 0, 1, 1],
    ]
    assert mask("small-world:beta=0", (4, 8), 12) == mask("brf:r=0", (4, 8), 12) == receptive
    # One connection less: the third output goes without, since the larger shares are spread evenly.
    assert [sum(row) for row in mask("brf:r=0", (4, 8), 11)] == [2, 3, 3, 3]


def test_rewiring_keeps_every_outputs_number_and_about_one_minus_beta_of_the_lattice() -> None:
    lattice = draw("small-world:beta=0", (200, 300), 4000, seeded())
    for beta in (0.1, 0.5, 1.0):
        rewired = draw(f"small-world:beta={beta}", (200, 300), 4000, seeded())
        assert torch.equal(rewired.fan_in, lattice.fan_in)
        kept = int(torch.isin(rewired.positions, lattice.positions).sum())
        assert abs(kept - 4000 * (1 - beta)) <= 5 * math.sqrt(4000 * beta * (1 - beta))  # what moves goes elsewhere


def test_a_row_without_room_for_its_moves_moves_fewer() -> None:
    # Every output has nine of ten inputs: whatever β, each can move one connection, to the one place that is vacant.
    lattice = draw("small-world:beta=0", (8, 10), 72, seeded())
    rewired = draw("small-world:beta=1", (8, 10), 72, seeded())
    assert rewired.fan_in.tolist() == [9] * 8
    assert int(torch.isin(rewired.positions, lattice.positions).sum()) == 64


def test_correlated_inputs_by_hand() -> None:
    # Features 0 and 1 rise together, 2 falls, half as surely; 3 is constant. Correlations: 01: 1, 02 and 12: -1/√2.
    inputs = torch.tensor([[-1.0, -2, 1, 5], [-1, -2, 1, 5], [0, 0, 0, 5], [0, 0, -2, 5], [2, 4, 0, 5]])
    exact = np.corrcoef(inputs[:, :3].numpy().T)
    assert abs(exact[0, 2]) < exact[0, 1] == pytest.approx(1)
    placed = Correlated(inputs)
    assert draw(placed, (4, 4), 2, seeded()).positions.tolist() == [1, 4]
    assert draw(placed, (4, 4), 6, seeded()).positions.tolist() == [1, 2, 4, 6, 8, 9]
    # What is left has no correlation, a feature with itself included: the lowest positions come first.
    assert draw(placed, (4, 4), 7, seeded()).positions.tolist() == [0, 1, 2, 4, 6, 8, 9]
    # Twice as many outputs: each feature has two.
    assert draw(placed, (8, 4), 4, seeded()).positions.tolist() == [1, 5, 8, 12]


# Laws over the registry


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    share=st.floats(0, 1),
    name=st.sampled_from(VARIANTS),
    seed=st.integers(0, 99),
)
def test_the_count_is_exact_and_the_seed_says_all(rows: int, columns: int, share: float, name: str, seed: int) -> None:
    count = max(1, round(share * rows * columns))
    found = draw(name, (rows, columns), count, seeded(seed))
    assert found.nnz == count
    assert found.shape == (rows, columns)
    torch.manual_seed(1)  # nothing is drawn but from the generator
    assert found == draw(name, (rows, columns), count, seeded(seed))


@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 30),
    features=st.integers(1, 30),
    share=st.floats(0, 1),
    data=st.data(),
)
def test_correlated_agrees_with_a_sorted_dense_matrix(
    rows: int, columns: int, features: int, share: float, data: st.DataObject
) -> None:
    inputs = torch.randn(9, features, generator=seeded(data.draw(st.integers(0, 9))), dtype=torch.float64)
    count = max(1, round(share * rows * columns))
    with mock.patch.object(signals, "BLOCK_CELLS", 50):
        found = draw(Correlated(inputs), (rows, columns), count, seeded())
    assert found.nnz == count
    correlation = np.corrcoef(inputs.numpy().T).reshape(features, features)
    np.fill_diagonal(correlation, 0)
    of_rows, of_columns = (np.arange(size) * features // size for size in (rows, columns))
    scores = np.abs(correlation[np.ix_(of_rows, of_columns)]).flatten()
    least = np.sort(scores)[::-1][count - 1]
    chosen = np.zeros(rows * columns, bool)
    chosen[found.positions.numpy()] = True
    assert (chosen | (scores <= least + 1e-9)).all()
    assert (~chosen | (scores >= least - 1e-9)).all()


@given(rows=st.integers(1, 30), data=st.data(), seed=st.integers(0, 99))
def test_rows_of_distinct_draws(rows: int, data: st.DataObject, seed: int) -> None:
    populations = [data.draw(st.integers(0, 20)) for _ in range(rows)]
    counts = [data.draw(st.integers(0, population)) for population in populations]
    row, place = distinct_in_rows(torch.tensor(counts), torch.tensor(populations), seeded(seed))
    assert torch.bincount(row, minlength=rows).tolist() == counts
    pairs = list(zip(row.tolist(), place.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    assert all(0 <= own < populations[of] for of, own in pairs)


def test_rows_of_distinct_draws_are_uniform() -> None:
    # Two of four, and three of four by what is left out: each of the six and four sets as often.
    _, place = distinct_in_rows(torch.full((12_000,), 2), torch.full((12_000,), 4), seeded())
    assert stats.chisquare(torch.bincount((2**place).view(-1, 2).sum(1))[[3, 5, 6, 9, 10, 12]]).pvalue > 1e-3
    _, place = distinct_in_rows(torch.full((12_000,), 3), torch.full((12_000,), 4), seeded())
    assert stats.chisquare(torch.bincount((2**place).view(-1, 3).sum(1))[[7, 11, 13, 14]]).pvalue > 1e-3


@pytest.mark.parametrize("name", ["constant-fan-in", "small-world", "brf", "brf:r=0"])
def test_fan_in_differs_by_one_at_most(name: str) -> None:
    fan_in = draw(name, (37, 91), 1000, seeded()).fan_in
    assert set(fan_in.tolist()) == {27, 28}


def test_random_is_what_it_was() -> None:
    # As `Topology.random` draws it, and so as every model before there was a choice.
    shapes, counts = [(30, 20), (40, 30)], [77, 500]
    one, other = seeded(5), seeded(5)
    for shape, count in zip(shapes, counts, strict=True):
        assert draw("random", shape, count, one) == Topology.random(shape, count, other)
    assert torch.equal(one.get_state(), other.get_state())
    drawn = [
        SparseMLP([20, 30, 5], sparsity=0.7, generator=seeded(3), **options)
        for options in ({}, dict(initial_topology="random"))
    ]
    for name, value in drawn[0].state_dict().items():
        assert torch.equal(value, drawn[1].state_dict()[name])


# What theory says


def test_preferential_attachment_has_a_heavy_tail() -> None:
    # Barabási and Albert: P(degree ≥ k) ∝ k^-2, where inputs and outputs come alike; random degrees are binomial.
    shape, count = (3000, 3000), 36_000  # twelve a neuron
    found, random = (draw(name, shape, count, seeded()) for name in ("scale-free", "random"))
    for degrees, reference in ((found.fan_in, random.fan_in), (found.fan_out, random.fan_out)):
        assert degrees.min() >= 4  # everyone brings its own six, of which few fall together
        assert degrees.max() > 4 * reference.max()
        tail = degrees[degrees >= 18].double().log() - math.log(17.5)
        assert 1.5 < 1 / float(tail.mean()) < 2.5  # Hill's estimate of the 2
        assert not (reference >= 48).any()
        assert (degrees >= 48).double().mean() > 0.01


def test_a_lattice_is_clustered_and_rewiring_undoes_it() -> None:
    def closed(topology: Topology) -> float:
        """Of pairs of outputs with a common input, the mean share of their inputs that they have in common."""
        dense = topology.to_mask().double()
        common, size = dense @ dense.T, dense.sum(1)
        shares = common / (size[:, None] + size - common)
        return float(shares[(common > 0) & ~torch.eye(len(dense), dtype=torch.bool)].mean())

    shape, count = (200, 200), 2000
    found = {name: closed(draw(name, shape, count, seeded())) for name in VARIANTS}
    lattice, random = found["small-world:beta=0"], found["random"]
    assert lattice > 4 * random  # a lattice's neighbours share from one to nine of ten inputs
    assert lattice > found["small-world"] > 1.2 * found["small-world:beta=1"]
    assert found["small-world:beta=1"] == pytest.approx(random, rel=0.05)
    assert found["brf:r=0"] == lattice
    assert lattice > found["brf"] > 1.1 * found["brf:r=1"]
    assert found["brf:r=1"] == pytest.approx(random, rel=0.05)


def test_receptive_fields_have_the_odds_of_the_paper() -> None:
    # One connection an output: at distance d of eight inputs with odds (1 + d)^-1 for r = 1/2: 1, 1/2, 1/3, 1/4, 1/5.
    found = draw("brf:r=0.5", (8000, 8), 8000, seeded())
    centre = (2 * torch.arange(8000) + 1) * 8 // 16_000
    distance = (found.columns.long() - centre) % 8
    odds = np.array([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 4, 1 / 3, 1 / 2])
    assert stats.chisquare(torch.bincount(distance, minlength=8), odds / odds.sum() * 8000).pvalue > 1e-3


@pytest.mark.parametrize("r", [0.2, 0.6])
def test_receptive_fields_are_drawn_one_after_the_other_without_replacement(r: float) -> None:
    # Outputs of seven inputs that take three of them. All that stand at input 3, shown as seen from there.
    found = draw(f"brf:r={r}", (28_000, 7), 84_000, seeded()).to_mask()[12_000:16_000].double().mean(0)
    weights = [(1 + min(abs(at - 3), 7 - abs(at - 3))) ** (-(1 - r) / r) for at in range(7)]
    exact = np.zeros(7)
    for order in permutations(range(7), 3):
        left, odds = sum(weights), 1.0
        for at in order:
            odds, left = odds * weights[at] / left, left - weights[at]
        exact[list(order)] += odds
    assert exact.sum() == pytest.approx(3)
    assert (abs(found.numpy() - exact) <= 4.5 * np.sqrt(exact * (1 - exact) / 4000)).all()


@given(rows=st.integers(1, 20), places=st.integers(1, 300), steep=st.floats(0, 50), data=st.data())
def test_weighted_draws_are_distinct_and_as_many_as_wanted(
    rows: int, places: int, steep: float, data: st.DataObject
) -> None:
    counts = torch.tensor([data.draw(st.integers(0, min(places, 40))) for _ in range(rows)])
    log_odds = -steep * torch.arange(places).add(1).double().log()
    row, place = weighted_draws.first_drawn(log_odds, counts, seeded(data.draw(st.integers(0, 9))))
    assert torch.equal(torch.bincount(row, minlength=rows), counts)
    assert len((row * places + place).unique()) == len(row)
    assert not len(place) or 0 <= int(place.min()) <= int(place.max()) < places


@pytest.mark.parametrize("early", [1.0, 0.02])
def test_looking_at_early_arrivals_alone_gives_the_same_odds(early: float) -> None:
    # Three of 200 places in 8,000 rows; where the moment is too early by far, most rows wait for later arrivals.
    log_odds, counts = -1.5 * torch.arange(200).add(1).double().log(), torch.full((8_000,), 3)
    moment = weighted_draws._moment
    with mock.patch.object(weighted_draws, "_moment", lambda *given: early * moment(*given)):
        _, place = weighted_draws.first_drawn(log_odds, counts, seeded(1))
    _, raced = weighted_draws._raced(log_odds, counts, seeded(2))
    table = torch.stack([torch.bincount(each, minlength=200)[:60] for each in (place, raced)]).numpy()
    assert stats.chi2_contingency(table).pvalue > 1e-3


# Where it is named


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))


@pytest.mark.parametrize("name", ["small-world:beta=0.2", "scale-free"])
def test_every_way_to_make_a_network_takes_it(name: str) -> None:
    made = sparsify(network(), 0.8, dense=(), initial_topology=name, generator=seeded())
    by_preset = sparsify(network(), 0.8, dense=(), topology=f"set:initial_topology={name.partition(':')[0]}")
    own = SparseMLP([20, 30, 10], sparsity=0.8, dense=(), initial_topology=name, generator=seeded())
    generator = seeded()
    for layer in sparse_layers(made).values():
        assert layer.topology == draw(name, layer.shape, layer.nnz, generator)
    assert sparse_layers(own)["0"].topology == sparse_layers(made)["0"].topology
    assert [layer.nnz for layer in sparse_layers(by_preset).values()] == [
        layer.nnz for layer in sparse_layers(made).values()
    ]


def test_convolutions_take_it_and_correlations_do_not() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 5))

    made = sparsify(model(), 0.5, initial_topology="constant-fan-in", generator=seeded())
    for layer in sparse_layers(made).values():
        assert layer.topology.fan_in.max() - layer.topology.fan_in.min() <= 1
    with pytest.raises(ValueError, match="`Correlated` places connections of linear layers only; exclude the conv"):
        sparsify(model(), 0.5, initial_topology=Correlated(torch.randn(9, 4)))


def test_a_network_of_correlated_inputs_learns() -> None:
    draws = generators(0, "data", "network")
    inputs = torch.randn(64, 5, generator=draws["data"]).repeat(1, 4) + 0.1 * torch.randn(
        64, 20, generator=draws["data"]
    )
    model = SparseMLP([20, 40, 3], sparsity=0.8, initial_topology=Correlated(inputs), generator=draws["network"])
    first = sparse_layers(model)["0"].topology
    # Feature i is a copy of i + 5, i + 10 and i + 15; outputs come twice.
    assert ((first.rows // 2 - first.columns) % 5 == 0).all()
    optimizer, labels = torch.optim.Adam(model.parameters(), lr=0.01), inputs[:, :3].argmax(1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ("smallworld", "no initial topology called 'smallworld'; did you mean 'small-world'?"),
        ("small-world:b=1", "initial topology 'small-world' has no option 'b'; "),
        ("small-world:beta=1.5", "option 'beta' of initial topology 'small-world' must be in [0, 1], got 1.5"),
        ("brf:r=nan", "option 'r' of initial topology 'brf' must be in [0, 1], got nan"),
        ("correlated", "initial topology 'correlated' reads inputs, which are not known here; give `sparsify` or"),
    ],
)
def test_what_cannot_be_leaves_the_model_as_it_was(initial: Any, message: str) -> None:
    model = network()
    for make in (
        lambda: sparsify(model, 0.5, initial_topology=initial),
        lambda: plan(model, 0.5, initial_topology=initial),
        lambda: SparseMLP([4, 3, 2], sparsity=0.5, initial_topology=initial),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            make()
    assert not sparse_layers(model)


@pytest.mark.parametrize("inputs", [torch.ones(4), torch.ones(1, 4), torch.full((3, 4), torch.nan), torch.ones(3, 0)])
def test_inputs_that_cannot_be_correlated(inputs: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`Correlated` wants finite inputs \(samples, features\) .* got shape"):
        Correlated(inputs)


def test_one_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(INITIAL_TOPOLOGIES, "_entries", dict(INITIAL_TOPOLOGIES._entries))

    @initial_topology("first")
    def first(shape: tuple[int, int], count: int, generator: torch.Generator, *, skip: int = 0) -> Tensor:
        """The first positions."""
        return torch.arange(skip, skip + count)

    made = sparsify(network(), 0.8, dense=(), initial_topology="first:skip=2")
    assert sparse_layers(made)["0"].positions.tolist() == list(range(2, 2 + sparse_layers(made)["0"].nnz))
    with pytest.raises(RuntimeError, match="must return 60 positions, got shape"):
        draw(lambda shape, count, generator: torch.arange(count - 1), (10, 10), 60, seeded())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no resource module")
@pytest.mark.parametrize("name", DATA_FREE)
def test_at_65536_wide_memory_is_that_of_the_connections(name: str) -> None:
    script = f"""
import resource, torch
from sparse_core.initial_topologies import draw
width = 1 << 16
found = draw({name!r}, (width, width), width * width // 1000, torch.Generator().manual_seed(0))
assert found.nnz == width * width // 1000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if {sys.platform == "darwin"} else 1024))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2.5e9  # a boolean matrix alone takes 4.3e9
