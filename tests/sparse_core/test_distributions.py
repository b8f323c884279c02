import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_core import DISTRIBUTIONS, allocate, distribution

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
    name=st.sampled_from(sorted(DISTRIBUTIONS)),
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
    with pytest.raises(ValueError, match=r"no distribution called 'unifrom'; did you mean 'uniform'\? known: er, erk"):
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
