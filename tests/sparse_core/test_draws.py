from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparse_core.draws import among, generators, largest, sample_distinct, sample_outside


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


@given(population=st.integers(0, 60), share=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_distinct_ascending_in_range(population: int, share: float, seed: int) -> None:
    count = round(share * population)
    drawn = sample_distinct(population, count, seeded(seed))
    assert drawn.dtype == torch.int64
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert drawn.numel() == count
    assert all(0 <= number < population for number in drawn.tolist())
    assert torch.equal(drawn, sample_distinct(population, count, seeded(seed)))


@given(wanted=st.lists(st.integers(-3, 20)), others=st.sets(st.integers(0, 17)))
def test_among_is_isin(wanted: list[int], others: set[int]) -> None:
    one, other = torch.tensor(wanted, dtype=torch.int64), torch.tensor(sorted(others), dtype=torch.int64)
    assert torch.equal(among(one, other), torch.isin(one, other))


# Six numbers: 15 pairs, and 15 sets of four, which are drawn as complements. 40 is the 0.0003 tail of 14 degrees.
@pytest.mark.parametrize("count", [2, 4])
def test_every_set_is_as_likely_as_any_other(count: int) -> None:
    generator = seeded(1)
    tally = dict.fromkeys(combinations(range(6), count), 0)
    for _ in range(3000):
        tally[tuple(sample_distinct(6, count, generator).tolist())] += 1
    assert chi_square(list(tally.values())) < 40


def test_every_free_pair_is_as_likely_as_any_other() -> None:
    # Free of 0 … 8 are 1, 2, 4, 5, 7, 8: again 15 pairs.
    generator = seeded(2)
    tally = dict.fromkeys(combinations([1, 2, 4, 5, 7, 8], 2), 0)
    for _ in range(3000):
        tally[tuple(sample_outside(9, 2, torch.tensor([0, 3, 6]), generator).tolist())] += 1
    assert chi_square(list(tally.values())) < 40


def test_a_huge_population_costs_only_what_is_drawn() -> None:
    # One bit per number of this population would be 128 GiB.
    population = 2**40
    taken = sample_distinct(population, 50_000, seeded(0))
    drawn = sample_outside(population, 50_000, taken, seeded(1))
    assert drawn.unique().numel() == 50_000
    assert not torch.isin(drawn, taken).any()
    assert abs(drawn.double().mean() / population - 0.5) < 0.01


@given(population=st.integers(1, 50), taken=st.sets(st.integers(0, 49)), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_outside_is_the_ranked_choice_among_the_free(population: int, taken: set[int], share: float, seed: int) -> None:
    blocked = sorted(number for number in taken if number < population)
    free = [number for number in range(population) if number not in taken]
    count = round(share * len(free))
    drawn = sample_outside(population, count, torch.tensor(blocked, dtype=torch.int64), seeded(seed))
    ranks = sample_distinct(len(free), count, seeded(seed))
    assert drawn.tolist() == [free[rank] for rank in ranks.tolist()]


@pytest.mark.parametrize(("population", "count"), [(3, 4), (3, -1)])
def test_an_impossible_count_is_an_error(population: int, count: int) -> None:
    with pytest.raises(ValueError, match=rf"`count` must be in \[0, {population}\].*got {count}"):
        sample_distinct(population, count, seeded())


def test_outside_with_too_few_free_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 2\].*got 3"):
        sample_outside(5, 3, torch.tensor([0, 1, 4]), seeded())


def test_largest_takes_ties_from_the_lowest_index() -> None:
    #                        0    1    2    3    4    5
    scores = torch.tensor([2.0, 5.0, 2.0, 2.0, 7.0, 0.0])
    assert largest(scores, 0).tolist() == []
    assert largest(scores, 2).tolist() == [1, 4]
    assert largest(scores, 4).tolist() == [0, 1, 2, 4]
    assert largest(scores, 6).tolist() == [0, 1, 2, 3, 4, 5]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.data())
def test_largest_is_the_sorted_choice(numbers: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(numbers)))
    order = sorted(range(len(numbers)), key=lambda index: (-numbers[index], index))
    assert largest(torch.tensor(numbers, dtype=torch.float64), count).tolist() == sorted(order[:count])


def draw(generator: torch.Generator) -> Tensor:
    return torch.randint(2**62, (4,), generator=generator)


def test_streams_do_not_move_each_other() -> None:
    alone, together = generators(5, "b"), generators(5, "a", "b", "c")
    numbers = {name: draw(generator) for name, generator in together.items()}
    assert torch.equal(draw(alone["b"]), numbers["b"])
    assert not torch.equal(numbers["a"], numbers["b"])
    assert not torch.equal(numbers["b"], draw(generators(6, "b")["b"]))


def test_without_a_seed_torchs_own_decides() -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return draw(generators(None, "a")["a"])

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
