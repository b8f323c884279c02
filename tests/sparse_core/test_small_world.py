"""Small-worldness by hand, by law, and against networkx."""

from collections import Counter
from itertools import pairwise

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_core import Topology, small_world
from sparse_core.small_world import _clustering, _graph, _path_length, rewired


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ring(neurons: int, reach: int) -> Topology:
    """Neuron i reads inputs i … i + reach - 1, round a ring."""
    positions = [row * neurons + (row + step) % neurons for row in range(neurons) for step in range(reach)]
    return Topology.from_positions((neurons, neurons), torch.tensor(positions).sort().values)


def test_a_square_by_hand() -> None:
    # Two inputs, two neurons, all four connections: every path of three is closed, and there is no other such
    # topology. Four pairs are one step apart, two are two steps apart.
    assert small_world(Topology.full((2, 2)), seeded()) == (1, 1, pytest.approx(4 / 3), 1, pytest.approx(4 / 3))


def test_a_hexagon_by_hand() -> None:
    # No path of three connections is closed; from anywhere two neurons are at 1, two at 2, one at 3. Every topology of
    # these degrees is a hexagon, so there is no clustering to compare with.
    assert small_world(ring(3, 2), seeded()) == (None, 0, pytest.approx(9 / 5), 0, pytest.approx(9 / 5))


def test_nothing_to_count() -> None:
    star = Topology.full((1, 3))
    assert small_world(star, seeded()) == (None, None, pytest.approx(3 / 2), None, pytest.approx(3 / 2))
    assert small_world(Topology.from_positions((2, 2), torch.empty(0, dtype=torch.int64)), seeded()) == (None,) * 5


def test_a_ring_is_a_small_world_and_a_random_topology_is_not() -> None:
    assert (small_world(ring(60, 6), seeded(), references=2).sigma or 0) > 2
    drawn = Topology.random((60, 60), 360, seeded(1))
    assert small_world(drawn, seeded(), references=2).sigma == pytest.approx(1, abs=0.15)


def test_same_generator_same_answer_and_nothing_else_is_drawn() -> None:
    before = torch.get_rng_state()
    stack = [Topology.random((20, 15), 60, seeded(1)), Topology.random((10, 20), 50, seeded(2))]
    assert small_world(stack, seeded(3), sources=5) == small_world(stack, seeded(3), sources=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("widths", [(7, 9), (6, 8, 7), (4, 9, 6, 5)])
def test_clustering_and_path_length_are_those_of_networkx(widths: tuple[int, ...]) -> None:
    for seed in range(5):
        generator = seeded(seed)
        stack = [Topology.random((out, into), out * into // 3, generator) for into, out in pairwise(widths)]
        graph = nx.Graph()
        for level, topology in enumerate(stack):
            ends = zip(topology.columns.tolist(), topology.rows.tolist(), strict=True)
            graph.add_edges_from(((level, into), (level + 1, out)) for into, out in ends)
        distances = [
            length for _, reached in nx.all_pairs_shortest_path_length(graph) for length in reached.values() if length
        ]
        own = _graph(stack)
        assert own.sum() == graph.number_of_edges()
        assert _clustering(own) == pytest.approx(nx.bipartite.robins_alexander_clustering(graph))
        assert _path_length(own, generator, 1000) == pytest.approx(sum(distances) / len(distances))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31), outputs=st.integers(1, 12), inputs=st.integers(1, 12), density=st.floats(0, 1)
)  # fmt: skip
def test_random_topologies_keep_every_degree(seed: int, outputs: int, inputs: int, density: float) -> None:
    topology = Topology.random((outputs, inputs), round(density * outputs * inputs), seeded(seed))
    found = rewired(topology, seeded(seed + 1), trades=3)
    assert torch.equal(found.fan_in, topology.fan_in)
    assert torch.equal(found.fan_out, topology.fan_out)


def test_every_topology_of_these_degrees_comes_as_often() -> None:
    # Three neurons that read one input each, three inputs that are read once each: six orders.
    one, generator = ring(3, 1), seeded()
    counts = Counter(tuple(rewired(one, generator, trades=8).columns.tolist()) for _ in range(300))
    assert len(counts) == 6
    assert sum((count - 50) ** 2 / 50 for count in counts.values()) < 20.5  # chi², 5 degrees of freedom: 1 in 1000


def test_layers_that_do_not_read_one_another() -> None:
    with pytest.raises(ValueError, match=r"reads the outputs of the one before, got .*\[\(2, 3\), \(2, 3\)\]; give"):
        small_world([Topology.full((2, 3)), Topology.full((2, 3))], seeded())
    with pytest.raises(ValueError, match="a stack wants layers"):
        small_world([], seeded())
