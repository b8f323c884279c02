import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparse_core import (
    DISTRIBUTIONS,
    SparseMLP,
    Sparsifier,
    allocate,
    density_of_epsilon,
    distribution,
    epsilon_of_density,
    plan,
    sparse_layers,
    sparsify,
)
from sparse_core.distributions import fixes_total, repeated

MLP = [(6, 4), (2, 6)]  # 24 + 12 cells


def test_uniform_by_hand() -> None:
    # A quarter of 36 is 9: 6 of 24 and 3 of 12.
    assert allocate(MLP, 0.75, "uniform") == [6, 3]


def test_erdos_renyi_by_hand() -> None:
    # Connections ∝ in + out, here 10 : 8, and 9 of them in all.
    assert allocate(MLP, 0.75, "er") == [5, 4]


def test_the_kernel_counts_in_erk_alone() -> None:
    # 8×4×3×3 = 288 and 10×8 = 80 cells; 36 connections are kept.
    shapes = [(8, 4, 3, 3), (10, 8)]
    sparsity = 1 - 36 / 368
    # erk ∝ Σ dims: 18 : 18.   er ∝ (out + in) · kernel: 12 · 9 = 108 : 18.
    assert allocate(shapes, sparsity, "erk") == [18, 18]
    assert allocate(shapes, sparsity, "er") == [31, 5]  # 36 · 108/126 = 30.86, 36 · 18/126 = 5.14


def test_a_layer_that_would_pass_density_one_is_dense() -> None:
    # er ∝ 4 : 20 would give the 2×2 layer 8.7 of 52 connections; it takes its 4, the rest goes on.
    assert allocate([(2, 2), (10, 10)], 0.5, "er") == [4, 48]


def test_rounding_goes_to_the_largest_remainder() -> None:
    # 9 of 30: 3.3 and 5.7; then 15 of 30: 6.5 and 8.5, where the first of two equals gets it.
    assert allocate([(1, 11), (1, 19)], 0.7, "uniform") == [3, 6]
    assert allocate([(1, 13), (1, 17)], 0.5, "uniform") == [7, 8]


def test_every_layer_keeps_a_connection() -> None:
    # 10 of 104: 9.6 and 0.4; no layer is cut, and the largest pays.
    assert allocate([(10, 10), (2, 2)], 1 - 10 / 104, "uniform") == [9, 1]
    # 11 of 112: 9.8 and twice 0.6.
    assert allocate([(10, 10), (2, 3), (3, 2)], 1 - 11 / 112, "uniform") == [9, 1, 1]
    # 8 of 808: 7.9 and twice 0.04.
    assert allocate([(20, 40), (2, 2), (2, 2)], 1 - 8 / 808, "uniform") == [6, 1, 1]


def test_dense_layers_count_as_connections() -> None:
    # Half of 36 is 18; the output keeps its 12, which leaves 6 of 24.
    assert allocate(MLP, 0.5, "er", dense=[1]) == [6, 12]


def test_ds_td3_on_half_cheetah() -> None:
    # DS-TD3: density = λ (in + out) / (in · out), λ = 7 and 64, output dense:
    # 7 · 273 = 1,911 of 4,352 (0.439), 64 · 512 = 32,768 of 65,536 (0.5).
    shapes = [(256, 17), (256, 256), (6, 256)]
    total = 256 * 17 + 256 * 256 + 6 * 256
    sparsity = 1 - (1911 + 32768 + 1536) / total
    counts = allocate(shapes, sparsity, "er:7,64", dense=[2])
    assert counts == [1911, 32768, 1536]
    assert counts[0] / (256 * 17) == pytest.approx(0.439, abs=5e-4)


def test_factors_matter_only_up_to_scale() -> None:
    assert allocate([(9, 9)] * 3, 0.7, "uniform:1,2,3") == allocate([(9, 9)] * 3, 0.7, "uniform:10,20,30")


layers = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5)


@given(
    shapes=layers,
    sparsity=st.floats(0, 1, exclude_max=True),
    name=st.sampled_from([name for name, rule in DISTRIBUTIONS.items() if not rule.fixed] + ["er-power:power=-0.7"]),
    data=st.data(),
)
def test_the_total_is_exact_for_every_distribution(
    shapes: list[tuple[int, int]], sparsity: float, name: str, data: st.DataObject
) -> None:
    dense = data.draw(st.sets(st.integers(0, len(shapes) - 1)))
    cells = [math.prod(shape) for shape in shapes]
    kept = sum(cells) - round(sparsity * sum(cells))
    least = sum(cells[index] if index in dense else 1 for index in range(len(shapes)))
    if kept < least:
        with pytest.raises(ValueError, match="cannot be met"):
            allocate(shapes, sparsity, name, dense)
        return
    counts = allocate(shapes, sparsity, name, dense)
    assert sum(counts) == kept
    assert all(1 <= count <= size for count, size in zip(counts, cells, strict=True))
    assert all(counts[index] == cells[index] for index in dense)


@given(shapes=layers, sparsity=st.floats(0, 0.95))
def test_uniform_is_within_one_connection_of_its_density(shapes: list[tuple[int, int]], sparsity: float) -> None:
    shapes = [(rows + 20, columns + 20) for rows, columns in shapes]  # no layer needs to be lifted to one
    cells = [math.prod(shape) for shape in shapes]
    kept = sum(cells) - round(sparsity * sum(cells))
    for count, size in zip(allocate(shapes, sparsity, "uniform"), cells, strict=True):
        assert abs(count - kept / sum(cells) * size) <= 1


def test_sparsity_zero_keeps_everything_whatever_the_distribution() -> None:
    assert allocate(MLP, 0, "er:7,64") == [24, 12]
    assert allocate(MLP, 0.0, "er:7,64", dense=[0, 1]) == [24, 12]
    with pytest.raises(ValueError, match="no distribution called 'err'"):
        allocate(MLP, 0, "err")


@pytest.mark.parametrize("sparsity", [1.0, -0.1, math.nan, math.inf, "0.5", None, True])
def test_a_sparsity_out_of_range_is_an_error(sparsity: float) -> None:
    with pytest.raises(ValueError, match=rf"`sparsity` must be a number in \[0, 1\).*got {sparsity!r}"):
        allocate(MLP, sparsity)


def test_a_sparsity_that_cannot_be_met_says_what_can() -> None:
    # The output keeps 12 and the first layer needs one: at most 1 - 13/36 = 0.638889.
    with pytest.raises(
        ValueError, match=r"`sparsity` 0\.9 cannot be met: of 36 connections 12 are.* at most 0\.638889"
    ):
        allocate(MLP, 0.9, dense=[1])
    assert allocate(MLP, 0.638889, dense=[1]) == [1, 12]
    # Everything dense and yet half of it gone: no.
    with pytest.raises(ValueError, match="cannot be met"):
        allocate(MLP, 0.5, dense=[0, 1])


def test_a_wrong_name_gets_a_suggestion() -> None:
    known = "counts, densities, epsilon, er, er-power, erk, uniform"
    with pytest.raises(ValueError, match=rf"no distribution called 'unifrom'; did you mean 'uniform'\? known: {known}"):
        allocate(MLP, 0.5, "unifrom")


@pytest.mark.parametrize("factors", ["7", "7,64,1", "7,x", "7,-64", "7,inf", "7,nan"])
def test_wrong_factors_are_an_error(factors: str) -> None:
    with pytest.raises(ValueError, match="one positive factor for each of the 2 sparse layers, as in 'er:1,1'"):
        allocate(MLP, 0.5, f"er:{factors}")


@pytest.mark.parametrize("dense", [[-1], [2]])
def test_dense_indices_outside_the_network_are_an_error(dense: list[int]) -> None:
    with pytest.raises(ValueError, match=r"indices of the 2 layers from 0 on"):
        allocate(MLP, 0.5, dense=dense)


@pytest.mark.parametrize("densities", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan]])
def test_a_function_must_return_a_density_per_layer(densities: list[float]) -> None:
    with pytest.raises(ValueError, match="must return one positive density for each of the 2 sparse layers"):
        allocate(MLP, 0.5, lambda shapes: densities)


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DISTRIBUTIONS, "_entries", dict(DISTRIBUTIONS._entries))


@pytest.mark.usefixtures("own_registry")
def test_a_distribution_of_ones_own_is_known_by_name() -> None:
    @distribution("by inputs")
    def by_inputs(shapes: list[tuple[int, ...]]) -> list[float]:
        return [shape[1] for shape in shapes]

    # 24 · 4 : 12 · 6 = 96 : 72, of 14 connections 8 and 6.
    assert allocate(MLP, 1 - 14 / 36, "by inputs") == [8, 6]
    with pytest.raises(ValueError, match="a distribution called 'er' is registered already"):
        distribution("er")(by_inputs)


def test_a_power_of_erdos_renyi_by_hand() -> None:
    # (n + n) / (n · n) is 1/2 in a 4×4 and 1 in a 2×2 layer, which have 16 and 4 cells.
    # Power 2: 1/4 · 16 and 1 · 4 connections, up to scale, so of 6 three each. Power 0: 16 : 4, of 5 four and one.
    assert allocate([(4, 4), (2, 2)], 1 - 6 / 20, "er-power:power=2") == [3, 3]
    assert allocate([(4, 4), (2, 2)], 1 - 5 / 20, "er-power:power=0") == [4, 1]


@given(shapes=layers, sparsity=st.floats(0, 0.9))
def test_powers_zero_and_one_are_uniform_and_er(shapes: list[tuple[int, int]], sparsity: float) -> None:
    shapes = [(rows + 20, columns + 20) for rows, columns in shapes]
    assert allocate(shapes, sparsity, "er-power:power=0") == allocate(shapes, sparsity, "uniform")
    assert allocate(shapes, sparsity, "er-power") == allocate(shapes, sparsity, "er")


def test_options_and_factors_go_together() -> None:
    shapes = [(9, 9), (9, 9)]
    assert allocate(shapes, 0.5, "er-power:power=3:1,2") == allocate(shapes, 0.5, "er:1,2") == [27, 54]


def test_sets_epsilon_by_hand() -> None:
    # ε = 20 and 1000 neurons: 20 · 2000 = 40,000 of a million, 4 % (Mocanu et al.); 784 → 1000: 20 · 1784.
    assert allocate([(1000, 1000)], None, "epsilon") == [40_000]
    assert allocate([(1000, 784), (1000, 1000)], None, "epsilon:epsilon=20") == [35_680, 40_000]
    # 20 · 20 would be more than the 100 cells of a small layer, which is full.
    assert allocate([(1000, 1000), (10, 10)], None, "epsilon:epsilon=20") == [40_000, 100]
    # ε of every layer: DS-TD3's λ = 7 and 64 as densities of their own, its output layer dense.
    assert allocate([(256, 17), (256, 256), (6, 256)], None, "epsilon:7,64", dense=[2]) == [1911, 32768, 1536]


def test_densities_and_counts_by_hand() -> None:
    assert allocate(MLP, None, "densities:0.25,0.5") == [6, 6]
    assert allocate(MLP, None, "densities:0.3,0.3") == [7, 4]  # 7.2 + 3.6 = 10.8, of which the second gets the rest
    assert allocate(MLP, None, "densities:0.5", dense=[1]) == [12, 12]
    assert allocate(MLP, None, "counts:7,1") == [7, 1]
    assert allocate([(6, 4, 3, 3), *MLP], None, "counts:1,24,12") == [1, 24, 12]


@given(shapes=layers, data=st.data())
def test_counts_are_those_given(shapes: list[tuple[int, int]], data: st.DataObject) -> None:
    counts = [data.draw(st.integers(1, math.prod(shape))) for shape in shapes]
    name = "counts:" + ",".join(map(str, counts))
    total = sum(map(math.prod, shapes))
    assert allocate(shapes, None, name) == counts
    assert allocate(shapes, 1 - sum(counts) / total, name) == counts
    for wrong in (1 - (sum(counts) - 1) / total, 1 - (sum(counts) + 1) / total):
        if 0 <= wrong < 1:
            with pytest.raises(ValueError, match=r"fixes the number of connections, .* but `sparsity`"):
                allocate(shapes, wrong, name)


@given(shapes=layers, data=st.data())
def test_densities_are_within_a_connection(shapes: list[tuple[int, int]], data: st.DataObject) -> None:
    densities = [data.draw(st.floats(0.01, 1)) for _ in shapes]
    counts = allocate(shapes, None, "densities:" + ",".join(map(repr, densities)))
    for count, density, shape in zip(counts, densities, shapes, strict=True):
        assert abs(count - max(1, density * math.prod(shape))) < 1 + 1e-6


@given(shapes=layers, epsilon=st.floats(0.01, 100), data=st.data())
def test_epsilon_and_density_convert_into_each_other(
    shapes: list[tuple[int, int]], epsilon: float, data: st.DataObject
) -> None:
    dense = data.draw(st.sets(st.integers(0, len(shapes) - 1), max_size=len(shapes) - 1))
    density = density_of_epsilon(shapes, epsilon, dense)
    back = epsilon_of_density(shapes, density, dense)
    assert back <= epsilon * (1 + 1e-9)
    assert density_of_epsilon(shapes, back, dense) == pytest.approx(density, rel=1e-12)
    if density < 1:
        assert back == pytest.approx(epsilon, rel=1e-9)
    # What `allocate` makes of it is that density, but for rounding and the one connection every layer keeps.
    counts = allocate(shapes, None, f"epsilon:epsilon={epsilon!r}", dense)
    assert abs(sum(counts) - density * sum(map(math.prod, shapes))) <= len(shapes)


def test_epsilon_of_a_density_by_hand() -> None:
    # 1000 × 1000 at 4 %: 40,000 / 2000. With a 10 × 10 layer, full from ε = 5 on: (40,000 + 100) / 1,000,100.
    assert epsilon_of_density([(1000, 1000)], 0.04) == pytest.approx(20)
    assert epsilon_of_density([(1000, 1000), (10, 10)], 40_100 / 1_000_100) == pytest.approx(20)
    assert epsilon_of_density([(1000, 1000), (10, 10)], 1.0) == pytest.approx(500)  # where the larger layer is full
    with pytest.raises(ValueError, match=r"`density` must be in \(0\.333333, 1\].*got 0\.3"):
        epsilon_of_density(MLP, 0.3, dense=[1])
    with pytest.raises(ValueError, match=r"got 1\.5"):
        epsilon_of_density(MLP, 1.5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("densities", r"wants a density in \(0, 1\] .* as in 'densities:0.1,0.1', got none"),
        ("densities:0.5", r"must give one positive number for each of the 2 sparse layers, as in 'densities:1,1'"),
        ("densities:0.5,1.5", r"wants a density in \(0, 1\].*got 0.5,1.5"),
        ("counts", r"wants a whole number .* at most 24, 12, got none"),
        ("counts:5,13", r"wants a whole number .* at most 24, 12, got 5,13"),
        ("counts:5,0.5", r"wants a whole number"),
        ("counts:5,x", r"must give one positive number"),
        ("counts:5,inf", r"must give one positive number"),
        ("epsilon:epsilon=0", r"ε must be a positive number, got 0"),
        ("epsilon:epsilon=nan", r"ε must be a positive number"),
        ("epsilon:epsilon=3:1,2", r"give ε once"),
        ("epsilon:eps=3", r"distribution 'epsilon' has no option 'eps'; did you mean 'epsilon'\?"),
        ("er-power:power=x", r"option 'power' of distribution 'er-power' must be a number, got 'x'"),
        ("er-power:power=inf", r"must be finite"),
        ("er:1,2:3,4", r"has two lists of numbers"),
        ("epsilon:1,2:power=3", r"has no option 'power'"),
    ],
)
def test_what_a_distribution_cannot_be(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(MLP, None if fixes_total(name) else 0.5, name)


def test_a_sparsity_that_contradicts_is_an_error_and_one_that_does_not_is_met() -> None:
    with pytest.raises(
        ValueError, match=r"'counts:6,3' fixes .* 9 of 36, which is a sparsity of 0\.75, but .* 0\.8 was"
    ):
        allocate(MLP, 0.8, "counts:6,3")
    with pytest.raises(ValueError, match=r"but `sparsity` 0 was asked for"):
        allocate(MLP, 0, "epsilon:epsilon=0.1")
    assert allocate(MLP, 0.75, "counts:6,3") == [6, 3]
    # 0.1 of 36 is 3.6: the sparsity 0.9 leaves 36 - 32 = 4.
    assert sum(allocate(MLP, 0.9, "densities:0.1,0.1")) == 4


def test_every_way_to_make_a_network_takes_them() -> None:
    model = SparseMLP([4, 6, 2], sparsity=None, distribution="counts:5,3", dense=())
    assert [layer.nnz for layer in sparse_layers(model).values()] == [5, 3]
    dense = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    assert dict(plan(dense, distribution="densities:0.5").counts) == {"0": 12}  # the output stays dense
    assert [layer.nnz for layer in sparse_layers(sparsify(dense, distribution="epsilon:epsilon=1.5")).values()] == [15]


def test_methods_that_come_down_cannot_start_from_a_fixed_number() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"'counts:5' fixes the number of connections, which this method brings down"):
        sparsify(model, 0.5, topology="gmp", distribution="counts:5")
    sparsify(model, 0.5, topology="gmp", dense=())
    with pytest.raises(ValueError, match=r"'epsilon' fixes the number of connections, which this method brings down"):
        Sparsifier.preset(
            "gmp", model, torch.optim.SGD(model.parameters()), sparsity=0.5, total_steps=9, distribution="epsilon"
        )


def test_numbers_are_repeated_for_alike_networks() -> None:
    assert repeated("er:7,64", 2) == "er:7,64,7,64"
    assert repeated("er-power:power=2:7,64", 2) == "er-power:power=2:7,64,7,64"
    assert repeated("epsilon:epsilon=20", 2) == "epsilon:epsilon=20"
    assert (repeated("er:7", 2), repeated("er", 2)) == ("er:7,7", "er")
