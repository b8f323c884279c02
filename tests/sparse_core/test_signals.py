from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparse_core import Constraint, LayerView, SparseLinear, Sparsifier, Topology, signals, sparsify
from sparse_core.signals import Capture, row_blocks, streamed_largest


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense_oracle(scores: Tensor, count: int, free: Tensor) -> list[int]:
    """The same choice from the whole matrix, sorted in Python: largest size first, then lowest position."""
    sizes = scores.abs().flatten().tolist()
    order = sorted(free.flatten().nonzero().squeeze(1).tolist(), key=lambda position: (-sizes[position], position))
    return sorted(order[:count])


def test_streamed_top_k_by_hand() -> None:
    #                       0     1    2     3
    scores = torch.tensor([[1.0, -9.0, 3.0, 0.0],  # 0 … 3
                           [-3.0, 8.0, 3.0, -7.0]])  # 4 … 7   # fmt: skip
    # 1 is taken. Then |−7| at 7 and |8| at 5, and of the three 3s those at 2 and 4.
    with mock.patch.object(signals, "BLOCK_CELLS", 4):
        found = streamed_largest((2, 4), 4, torch.tensor([1]), lambda start, stop: scores[start:stop])
    assert found.tolist() == [2, 4, 5, 7]


@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 8),
    block=st.integers(1, 70),
    share=st.floats(0, 1),
    levels=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_streamed_top_k_is_exact_with_ties_in_any_blocks(
    rows: int, columns: int, block: int, share: float, levels: int, seed: int
) -> None:
    generator = seeded(seed)
    scores = torch.randint(-levels, levels + 1, (rows, columns), generator=generator).double()
    free = torch.rand(rows, columns, generator=generator) < 0.6
    count = round(share * int(free.sum()))
    blocked = (~free).flatten().nonzero().squeeze(1)
    with mock.patch.object(signals, "BLOCK_CELLS", block):
        found = streamed_largest((rows, columns), count, blocked, lambda start, stop: scores[start:stop])
    assert found.tolist() == dense_oracle(scores, count, free)


@pytest.mark.parametrize("backend", ["gemm", "csr", "rows"])
def test_batches_are_kept_as_a_checkpoint_gives_them_back(backend: str) -> None:
    layer = SparseLinear(5, 7, sparsity=0.5, backend=backend, generator=seeded())
    layer.capture = Capture(2)
    inputs, weights = torch.randn(5, 90, generator=seeded(1)).T, torch.randn(7, 90, generator=seeded(2)).T
    (layer(inputs.requires_grad_()) * weights).sum().backward()
    ((kept, gradients),) = layer.capture.pairs
    assert torch.equal(kept, inputs)
    assert torch.equal(gradients, weights)
    # Otherwise sums over them go another way, and round, before a kill and after it.
    assert kept.is_contiguous()
    assert gradients.is_contiguous()


def test_blocks_cover_the_matrix_and_stay_small() -> None:
    with mock.patch.object(signals, "BLOCK_CELLS", 1000):
        blocks = list(row_blocks((257, 300)))
        wide = list(row_blocks((3, 5000)))
    assert blocks[0] == (0, 3)  # 3 rows of 300 are 900 cells
    assert [stop for _, stop in blocks[:-1]] == [start for start, _ in blocks[1:]]
    assert blocks[-1][1] == 257
    assert wide == [(0, 1), (1, 2), (2, 3)]  # a row is the least one can look at


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_signal_that_is_not_finite_is_an_error(bad: float) -> None:
    scores = torch.ones(3, 4)
    scores[1, 2] = bad
    with pytest.raises(FloatingPointError, match="growth signal is not finite: training has diverged"):
        streamed_largest((3, 4), 2, torch.tensor([0]), lambda start, stop: scores[start:stop])


def test_too_few_free_positions_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 new connections were wanted, but fewer positions are free"):
        streamed_largest((2, 2), 3, torch.tensor([0, 3]), lambda start, stop: torch.ones(stop - start, 2))


def view_of(capture: Capture | None, topology: Topology, constraint: Constraint | None = None) -> LayerView:
    return LayerView(
        topology.shape,
        topology.positions,
        torch.ones(topology.nnz),
        topology.positions,
        seeded(),
        capture,
        constraint or Constraint(),
    )


@given(
    block=st.integers(1, 60),
    outputs=st.none() | st.sets(st.integers(0, 5), min_size=1),
    inputs=st.none() | st.sets(st.integers(0, 6), min_size=1),
    seed=st.integers(0, 2**32),
)
def test_strongest_gradients_equal_those_of_a_dense_layer(
    block: int, outputs: set[int] | None, inputs: set[int] | None, seed: int
) -> None:
    generator = seeded(seed)
    capture = Capture(2)
    weight = torch.zeros(6, 7, dtype=torch.float64, requires_grad=True)
    for batch in range(2):
        capture.batch = batch
        data = torch.randint(-2, 3, (4, 7), generator=generator).double()
        upstream = torch.randint(-2, 3, (4, 6), generator=generator).double()
        torch.nn.functional.linear(data, weight).backward(upstream)
        capture.add(data, upstream)
    topology = Topology.random((6, 7), 10, generator)
    free = ~topology.to_mask()
    if outputs is not None:
        free[[row for row in range(6) if row not in outputs]] = False
    if inputs is not None:
        free[:, [column for column in range(7) if column not in inputs]] = False
    chosen = Constraint(*(None if part is None else torch.tensor(sorted(part)) for part in (outputs, inputs)))
    view = view_of(capture, topology, chosen)
    assert view.vacant_count == int(free.sum())
    count = view.vacant_count // 2
    with mock.patch.object(signals, "BLOCK_CELLS", block):
        assert view.strongest_gradients(count).tolist() == dense_oracle(weight.grad, count, free)
    assert free.flatten()[view.sample_vacant(view.vacant_count)].all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_gradient_that_overflowed_is_an_error_of_either_sign(sign: float) -> None:
    capture = Capture(1)
    capture.add(torch.tensor([[1e30, 1.0]]), torch.tensor([[sign * 1e30], [1.0]]).T)
    with pytest.raises(FloatingPointError, match="diverged"):
        view_of(capture, Topology.from_positions((2, 2), torch.tensor([3]))).strongest_gradients(1)


@pytest.mark.parametrize("capture", [None, Capture(1)])
def test_gradient_growth_without_a_capture_says_what_to_do(capture: Capture | None) -> None:
    with pytest.raises(RuntimeError, match="needs captured inputs and output gradients, but none came: run the model"):
        view_of(capture, Topology.from_positions((2, 2), torch.tensor([3]))).strongest_gradients(1)


def pair(number: float) -> tuple[Tensor, Tensor]:
    return torch.full((1, 1), number), torch.ones(1, 1)


def test_a_capture_keeps_the_last_batches_whole() -> None:
    capture = Capture(2)
    for batch, numbers in [(3, [1.0, 2.0]), (4, [4.0]), (7, [8.0, 16.0])]:  # two passes, one, two
        capture.batch = batch
        for number in numbers:
            capture.add(*pair(number))
    assert len(capture) == 3
    assert capture.gradient_rows(0, 1).item() == 4 + 8 + 16


def test_a_captured_batch_survives_its_buffers() -> None:
    capture = Capture(1)
    data, upstream = pair(5.0)
    capture.add(data, upstream)
    data.zero_()
    upstream.zero_()
    assert capture.gradient_rows(0, 1).item() == 5


def test_a_capture_round_trip() -> None:
    capture, twin = Capture(2), Capture(2)
    for batch in (1, 2):
        capture.batch = batch
        capture.add(*pair(float(batch)))
    twin.load(capture.state())
    assert twin.gradient_rows(0, 1).item() == 3
    twin.batch = 3
    twin.add(*pair(10.0))
    assert twin.gradient_rows(0, 1).item() == 12
    assert capture.gradient_rows(0, 1).item() == 3


def training(**options) -> tuple[SparseLinear, Sparsifier]:
    model = sparsify(torch.nn.Linear(6, 6), 0.5, generator=seeded())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    choices = {"drop": "magnitude", "grow": "gradient", "period": 5, "seed": 0, **options}
    return model, Sparsifier(model, optimizer, **choices)


def backward(model: torch.nn.Module) -> None:
    model(torch.ones(2, 6)).sum().backward()


@pytest.mark.parametrize(
    ("batches", "stride", "armed"),
    [(1, 1, [4, 9]), (2, 1, [3, 4, 8, 9]), (1, 3, [2, 3, 4, 7, 8, 9]), (9, 1, list(range(10)))],
)
def test_signals_are_captured_only_near_a_change(batches: int, stride: int, armed: list[int]) -> None:
    model, sparsifier = training(capture_batches=batches, capture_stride=stride)
    seen = []
    for step in range(10):
        if model.capture is not None:
            seen.append(step)
        backward(model)
        sparsifier.step()
    assert seen == armed
    assert sparsifier.changes == 2


def test_only_the_last_batches_count() -> None:
    model, sparsifier = training(capture_batches=2, capture_stride=2)
    for step in range(4):
        backward(model)
        sparsifier.step()
        if step == 2:
            assert len(model.capture) == 2  # after steps 1 and 2
    backward(model)
    assert [batch for batch, _, _ in model.capture.state()] == [3, 4]


def test_growth_by_random_captures_nothing() -> None:
    model, sparsifier = training(grow="random")
    for _ in range(7):
        assert model.capture is None
        backward(model)
        sparsifier.step()


def test_nothing_is_captured_after_the_last_change() -> None:
    model, sparsifier = training(total_steps=20, stop=0.5)
    for step in range(20):
        assert (model.capture is not None) == (step in (4, 9))
        backward(model)
        sparsifier.step()


def test_paused_losses_do_not_steer_growth() -> None:
    model, sparsifier = training(period=1)
    with sparsifier.paused():
        backward(model)
    assert len(model.capture) == 0
    backward(model)
    with pytest.raises(ZeroDivisionError), sparsifier.paused():
        raise ZeroDivisionError
    assert len(model.capture) == 1
