import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparse_core import Adam, Topology, fused, kernels, vectors

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
LANES = {torch.float32: 16, torch.float64: 8}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Case:
    """One layer's arrays and what dense products make of them."""

    def __init__(self, topology: Topology, batch: int, dtype: torch.dtype, seed: int = 0) -> None:
        generator = seeded(seed)
        rows, columns = topology.shape

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=dtype, generator=generator)

        self.topology, self.dtype = topology, dtype
        self.values, self.bias = drawn(topology.nnz), drawn(rows)
        self.x, self.dy = drawn(columns, batch), drawn(rows, batch)
        self.dense = torch.zeros(rows * columns, dtype=dtype).index_put((topology.positions,), self.values)
        self.dense = self.dense.view(rows, columns)
        transpose = topology.transpose
        self.pointer, self.columns = topology.row_pointer.numpy(), topology.columns.numpy()
        self.transpose = (
            transpose.row_pointer.numpy(), transpose.columns.numpy(), transpose.permutation.to(torch.int32).numpy()
        )  # fmt: skip

    def forward(self, bias: bool = True, relu: bool = False) -> Tensor:
        y = torch.full_like(self.dy, torch.nan)
        biases = self.bias if bias else self.bias[:0]
        arrays = (y.numpy(), self.x.numpy(), self.pointer, self.columns, self.values.numpy(), biases.numpy())
        kernels.forward(*arrays, relu)
        return y

    def backward_inputs(self, gate: Tensor | None = None) -> Tensor:
        dx = torch.full_like(self.x, torch.nan)
        gates = torch.empty(0, 0, dtype=self.dtype) if gate is None else gate
        kernels.backward_inputs(dx.numpy(), self.dy.numpy(), *self.transpose, self.values.numpy(), gates.numpy())
        return dx

    def backward_values(self) -> Tensor:
        dvalues = torch.full_like(self.values, torch.nan)
        kernels.backward_values(dvalues.numpy(), self.dy.numpy(), self.x.numpy(), self.pointer, self.columns)
        return dvalues

    def check(self) -> None:
        expected = self.dense @ self.x
        self.assert_close(self.forward(bias=False), expected)
        self.assert_close(self.forward(), expected + self.bias[:, None])
        self.assert_close(self.forward(relu=True), (expected + self.bias[:, None]).relu())
        expected = self.dense.T @ self.dy
        self.assert_close(self.backward_inputs(), expected)
        self.assert_close(self.backward_inputs(self.x), expected * (self.x > 0))
        self.assert_close(self.backward_values(), (self.dy @ self.x.T).flatten()[self.topology.positions])

    def assert_close(self, actual: Tensor, expected: Tensor) -> None:
        tolerance = TOLERANCE[self.dtype] * max(1, float(expected.abs().max()) if expected.numel() else 1)
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def topology(rows: int, columns: int, nnz: int, seed: int = 0) -> Topology:
    return Topology.random((rows, columns), nnz, seeded(seed))


def test_a_layer_one_can_check_by_hand() -> None:
    #  y0 = 2 x0 - x2,  y1 = nothing,  y2 = 3 x1
    case = Case(Topology.from_mask(torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]])), 2, torch.float64)
    case.values[:] = torch.tensor([2.0, -1.0, 3.0])
    case.x[:] = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    case.dy[:] = torch.tensor([[1.0, 0.0], [7.0, 7.0], [0.0, 1.0]])
    assert case.forward(bias=False).tolist() == [[-3, -2], [0, 0], [9, 12]]
    assert case.forward(bias=False, relu=True).tolist() == [[0, 0], [0, 0], [9, 12]]
    assert case.backward_inputs().tolist() == [[2, 0], [0, 3], [-1, 0]]
    assert case.backward_values().tolist() == [1, 5, 4]


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(
    rows=st.integers(1, 40), columns=st.integers(1, 40), batch=st.integers(0, 300),
    density=st.floats(0, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_products_equal_dense_ones(
    dtype: torch.dtype, rows: int, columns: int, batch: int, density: float, seed: int
) -> None:
    Case(topology(rows, columns, round(density * rows * columns), seed), batch, dtype, seed).check()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("nnz", [0, 1, 5, 35])
def test_every_tile_size(dtype: torch.dtype, nnz: int) -> None:
    # Batches around every number of vectors, each with a full, a nearly empty and a nearly full last vector.
    lanes = LANES[dtype]
    for vector in range(2 * max(vectors.TILES) + 2):
        for batch in (vector * lanes, vector * lanes + 1, vector * lanes + lanes - 1):
            Case(topology(5, 7, nnz), batch, dtype).check()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows_and_columns_without_connections(dtype: torch.dtype) -> None:
    mask = torch.zeros(30, 20)
    mask[::7, ::3] = 1
    Case(Topology.from_mask(mask), 33, dtype).check()
    Case(Topology.from_mask(torch.zeros(3, 2)), 33, dtype).check()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_wide_layers_are_cut_into_blocks_of_columns(dtype: torch.dtype) -> None:
    mask = torch.rand(9, 4000, generator=seeded()) < 0.3
    mask[2], mask[4, :2000] = False, False  # a row without connections, one without any in the first blocks
    fan_in = int(mask.sum()) // 9
    assert kernels.column_blocks(4000, 256 * dtype.itemsize, int(mask.sum()), 9) > 3
    assert fan_in > 3 * kernels.BLOCK_FAN_IN
    for topology in (Topology.from_mask(mask), Topology.from_mask(mask.T)):
        for batch in (256, 300):
            Case(topology, batch, dtype).check()


def test_what_is_not_finite_stays_so() -> None:
    case = Case(Topology.full((1, 2)), 3, torch.float32)
    case.values[:], case.bias[:] = 1.0, 0.0
    case.x[:] = torch.tensor([[torch.nan, torch.inf, -torch.inf], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(case.forward(relu=True), torch.tensor([[torch.nan, torch.inf, 0.0]]), equal_nan=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch", [1, 24, 100, 256, 300, 1000])
def test_threads_do_not_change_a_bit(dtype: torch.dtype, batch: int, set_threads: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(kernels, "SHARE", 1)
    case = Case(topology(70, 90, 1500), batch, dtype)
    results = []
    for count in (1, 2):
        set_threads(count)
        results.append([case.forward(relu=True), case.backward_inputs(case.x), case.backward_values()])
    # More parts than threads of the machine, as a larger machine would have.
    y, dx, dvalues = (torch.full_like(result, torch.nan) for result in results[0])
    for count in (3, 4, 8):
        kernels.forward_threaded(
            y.numpy(), case.x.numpy(), case.pointer, case.columns, case.values.numpy(), case.bias.numpy(), True, count
        )
        kernels.backward_inputs_threaded(
            dx.numpy(), case.dy.numpy(), *case.transpose, case.values.numpy(), case.x.numpy(), count
        )
        kernels.backward_values_threaded(
            dvalues.numpy(), case.dy.numpy(), case.x.numpy(), case.pointer, case.columns, count
        )
        results.append([y.clone(), dx.clone(), dvalues.clone()])
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], result, strict=True))


@given(fan_in=st.lists(st.integers(0, 50), min_size=1, max_size=60), parts=st.integers(1, 9))
def test_row_chunks_cover_all_rows_and_are_balanced(fan_in: list[int], parts: int) -> None:
    pointer = np.concatenate([[0], np.cumsum(fan_in)])
    bounds = [kernels.row_boundary(pointer, part, parts) for part in range(parts + 1)]
    assert bounds[0] == 0
    assert bounds[-1] == len(fan_in)
    assert bounds == sorted(bounds)
    loads = [sum(fan_in[a:b]) + b - a for a, b in itertools.pairwise(bounds)]
    assert max(loads) <= (sum(fan_in) + len(fan_in)) / parts + max(fan_in) + 1


@given(batch=st.integers(0, 3000), threads=st.integers(1, 64), size=st.sampled_from([4, 8]))
def test_batch_slices_cover_the_batch(batch: int, threads: int, size: int) -> None:
    slices = kernels.batch_slices(batch, threads, size)
    assert threads % slices == 0
    starts = [kernels.slice_start(batch, part, slices, size) for part in range(slices + 1)]
    assert starts == sorted(starts)
    assert (starts[0], starts[-1]) == (0, batch)


def adam_arrays(count: int, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    generator = seeded(seed)
    drawn = {name: torch.randn(count, dtype=dtype, generator=generator) for name in ("values", "first", "second")}
    return {**drawn, "second": drawn["second"].square()}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("one_age", [True, False])
@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9)])
@given(count=st.integers(1, 100), decay=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 99))
def test_the_adam_kernel_is_adam(
    dtype: torch.dtype, one_age: bool, decoupled: bool, betas: tuple[float, float], count: int, decay: float, seed: int
) -> None:
    arrays = adam_arrays(count, dtype, seed)
    ages = torch.randint(0, 30_000, () if one_age else (count,), generator=seeded(seed), dtype=torch.int32)
    parameter = torch.nn.Parameter(arrays["values"].clone())
    optimizer = Adam([parameter], lr=0.01, betas=betas, weight_decay=decay, decoupled=decoupled)
    optimizer.state[parameter] = {
        "exp_avg": arrays["first"].clone(), "exp_avg_sq": arrays["second"].clone(), "age": ages.clone()
    }  # fmt: skip
    ages = ages.reshape(-1)
    for step in range(3):
        gradient = torch.randn(count, dtype=dtype, generator=seeded(step))
        parameter.grad = gradient.clone()
        optimizer.step()
        tables = [fused.corrections(beta, dtype, int(ages.max()) + 1) for beta in betas]
        for start, stop in ((0, count // 3), (count // 3, count)):
            fused.adam_block(
                arrays["values"].numpy(), gradient.numpy(), arrays["first"].numpy(), arrays["second"].numpy(),
                ages.numpy(), *tables, 0.01, *betas, 1e-8, decay, decoupled, start, stop,
            )  # fmt: skip
        if ages.numel() != count:  # an age of all is the caller's to count
            ages += 1
    state = optimizer.state[parameter]
    assert torch.equal(ages, state["age"].reshape(-1))
    tolerance = {"rtol": 10 * TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(arrays["first"], state["exp_avg"], **tolerance)
    torch.testing.assert_close(arrays["second"], state["exp_avg_sq"], **tolerance)
    torch.testing.assert_close(arrays["values"], parameter.detach(), **tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_corrections_are_those_of_adam_however_old(dtype: torch.dtype) -> None:
    for beta in (0.0, 0.5, 0.999):
        for age in (1, 10, 1000, 2000, 100_000):
            table = fused.corrections(beta, dtype, age)
            assert table[min(age, len(table) - 1)] == pytest.approx(1 - beta**age, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_polyak_kernel(dtype: torch.dtype) -> None:
    target, source = (torch.randn(77, dtype=dtype, generator=seeded(seed)) for seed in range(2))
    expected = 0.9 * target + 0.1 * source
    fused.polyak_block(target.numpy(), source.numpy(), 0.1, 0, 77)
    torch.testing.assert_close(target, expected, rtol=0, atol=TOLERANCE[dtype])


def run(code: str, **environment: str) -> str:
    root = str(Path(kernels.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# Every array ends right before memory that must not be touched (or begins right after it): a read one byte too
# far ends the process. Vectors are beyond Numba's own bounds checks, which look after the rest.
GUARDED = """
import ctypes, mmap, os, sys
import numpy as np, torch
from sparse_core import Topology, fused, kernels, passes
from sparse_core.vectors import UNIT, VECTOR_BYTES

PAGE, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)

def guarded(array, at_end):
    array = np.ascontiguousarray(array)
    pages = -(-max(array.nbytes, 1) // PAGE)
    block = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(block))
    for page in (0, pages + 1):
        assert libc.mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0) == 0
    offset = PAGE + (pages * PAGE - array.nbytes if at_end else 0)
    copy = np.frombuffer(block, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    return copy

for dtype in (getattr(np, os.environ["DTYPE"]),):
    for at_end in (True, False):
        for rows, columns, nnz in ((5, 7, 12), (3, 2, 6), (4, 4, 1), (4, 4, 0), (30, 20, 90)):
            topology = Topology.random((rows, columns), nnz, torch.Generator().manual_seed(0))
            transpose = topology.transpose
            index = [topology.row_pointer, topology.columns, transpose.row_pointer, transpose.columns]
            pointer, column, t_pointer, t_column, order = (
                guarded(tensor.numpy(), at_end) for tensor in [*index, transpose.permutation.to(torch.int32)]
            )
            values, bias = guarded(np.ones(nnz, dtype), at_end), guarded(np.ones(rows, dtype), at_end)
            for batch in (1, 2, 7, 8, 15, 16, 17, 100, 129, 256, 300):
                x = guarded(np.ones((columns, batch), dtype), at_end)
                y = guarded(np.ones((rows, batch), dtype), at_end)
                kernels.forward(y, x, pointer, column, values, bias, True)
                kernels.forward(y, x, pointer, column, values, bias[:0], False)
                kernels.backward_inputs(x, y, t_pointer, t_column, order, values, np.empty((0, 0), dtype))
                kernels.backward_inputs(x, y, t_pointer, t_column, order, values, guarded(x, at_end))
                kernels.backward_values(values, y, x, pointer, column)
                dx, dbias = guarded(x, at_end), guarded(bias, at_end)
                transposed = [t_pointer, guarded(t_column.astype(np.uint16), at_end), order]
                arrays = [pointer, column, values, bias, None, *transposed, x, y, dx, y, None, values]
                row = [rows, columns, nnz, *(0 if array is None else array.ctypes.data for array in [*arrays, dbias])]
                row += [0] * (passes.FIELDS - len(row))
                row[passes.RELU], row[passes.GATED] = 1, 1
                row[passes.X_WIDTH] = row[passes.Y_WIDTH] = batch
                weight, gradient = (guarded(np.ones((rows, columns), dtype), at_end) for _ in range(2))
                dense = [*row]
                dense[passes.DENSE], dense[passes.NNZ], dense[passes.VALUES] = 1, 0, weight.ctypes.data
                dense[passes.DVALUES] = gradient.ctypes.data
                # Either kind with a normalisation after it, below a dense layer that has its outputs as inputs.
                units = -(-batch // (UNIT * VECTOR_BYTES // x.itemsize))
                shapes = [(rows, batch), (4, batch), (rows,), (rows,), (units, 2, rows), (rows,), (rows,)]
                normalisation = [guarded(np.ones(shape, dtype), at_end) for shape in shapes]
                fields = (
                    passes.NORMALISED, passes.STATISTICS, passes.SCALE, passes.SHIFT, passes.UNIT_SUMS, passes.DSCALE,
                    passes.DSHIFT,
                )
                lower = [[*row], [*dense]]
                for layer in lower:
                    layer[passes.RELU] = layer[passes.GATED] = 0
                    for field, array in zip(fields, normalisation):
                        layer[field] = array.ctypes.data
                above, sizes = [0] * passes.FIELDS, [(columns, rows), (columns,), (columns, batch)]
                above[passes.OUT], above[passes.IN], above[passes.DENSE], above[passes.GATED] = columns, rows, 1, 1
                held = [guarded(np.ones(size, dtype), at_end) for size in [*sizes, *sizes]]
                places = (passes.VALUES, passes.BIAS, passes.Y, passes.DVALUES, passes.DBIAS, passes.DY)
                for field, array in zip(places, held):
                    above[field] = array.ctypes.data
                above[passes.X], above[passes.DX] = normalisation[0].ctypes.data, y.ctypes.data
                above[passes.X_WIDTH] = above[passes.Y_WIDTH] = batch
                chains = [(guarded(np.array([[layer, above]]), at_end), batch) for layer in lower]
                # The same with what lies between them in tiles.
                tile = UNIT * VECTOR_BYTES // x.itemsize
                tiles = -(-batch // tile)
                between = [guarded(np.ones((tiles, rows, tile), dtype), at_end) for _ in range(3)]
                known = guarded(np.ones((tiles, 4, tile), dtype), at_end)
                for layer, over in ((layer, [*above]) for layer in lower):
                    for field, array in zip((passes.Y, passes.DY, passes.NORMALISED), between):
                        layer[field] = array.ctypes.data
                    layer[passes.STATISTICS] = known.ctypes.data
                    over[passes.X], over[passes.DX] = layer[passes.NORMALISED], layer[passes.DY]
                    layer[passes.Y_WIDTH] = over[passes.X_WIDTH] = tile
                    layer[passes.Y_JUMP] = over[passes.X_JUMP] = rows * tile * x.itemsize
                    layer[passes.X_JUMP] = over[passes.Y_JUMP] = tile * x.itemsize
                    chains.append((guarded(np.array([[layer, over]]), at_end), tile))
                for layers, together in ((guarded(np.array([[row], [dense]]), at_end), batch), *chains):
                    for parts in (1, 2, 3):
                        passes.forward_threaded(layers, batch, together, parts, dtype(0))
                        passes.backward_threaded(layers, batch, together, 0, columns, parts, dtype(0), np.uint16(0))
                        passes.gradients_threaded(layers, batch, together, parts, dtype(0))
        for count in (1, 7, 8, 15, 16, 17, 33):
            arrays = [guarded(np.ones(count, dtype), at_end) for _ in range(4)]
            torch_dtype = torch.from_numpy(arrays[0]).dtype
            tables = [guarded(fused.corrections(beta, torch_dtype, 1), at_end) for beta in (0.5, 0.999)]
            for ages in (np.ones(count, np.int32), np.full(count, 10**6, np.int32), np.ones(1, np.int32)):
                ages = guarded(ages, at_end)
                fused.adam_block(*arrays, ages, *tables, 0.1, 0.5, 0.999, 1e-8, 0.0, False, 0, count)
            fused.polyak_block(*arrays[:2], 0.1, 0, count)
            pairs = guarded(np.array([[arrays[0].ctypes.data, arrays[1].ctypes.data, count]] * 2), at_end)
            state = [*(array.ctypes.data for array in [*arrays, ages]), count, 1]
            states = guarded(np.array([state] * 2), at_end)
            settings = guarded(np.array([0.1, 0.5, 0.999, 1e-8, 0]), at_end)
            for threads in (1, 3):
                passes.polyak_threaded(pairs, 0.1, dtype(0), 2 * count, threads)
                passes.adam_threaded(states, *tables, settings, False, 2 * count, threads)
print("inside")
"""


@pytest.mark.end_to_end
@pytest.mark.skipif(sys.platform != "linux", reason="guards memory pages with mprotect")
@pytest.mark.parametrize(
    ("check", "dtype"),
    [
        ("0", "float32"),
        pytest.param("0", "float64", marks=pytest.mark.slow),
        pytest.param("1", "float32", marks=pytest.mark.slow),
        pytest.param("1", "float64", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_read_or_written_outside(check: str, dtype: str, tmp_path: Path) -> None:
    # With checks everything is compiled anew; without them the code is that of every other test.
    own_cache = {"NUMBA_CACHE_DIR": str(tmp_path)} if check == "1" else {}
    assert "inside" in run(GUARDED, NUMBA_BOUNDSCHECK=check, DTYPE=dtype, **own_cache)


@pytest.mark.end_to_end
def test_workqueue_is_never_used_silently(tmp_path: Path) -> None:
    code = (
        "import torch, warnings; torch.set_num_threads(2); from sparse_core import threads\n"
        "with warnings.catch_warnings(record=True) as caught: print(threads.thread_count(), caught[0].message)"
    )
    assert "1 compiled kernels run on one thread" in run(code, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2")


@pytest.mark.end_to_end
def test_threads_follow_torch() -> None:
    code = (
        "import torch, numba; from sparse_core.threads import thread_count\n"
        "for count in (2, 1, 2): torch.set_num_threads(count); print(thread_count(), numba.get_num_threads())\n"
        "print(numba.config.THREADING_LAYER)"
    )
    lines = run(code, NUMBA_NUM_THREADS="2").splitlines()
    assert lines[:3] == ["2 2", "1 2", "2 2"]
    assert lines[3] in ("omp", "tbb")


@pytest.mark.end_to_end
def test_importing_the_core_leaves_compilers_alone() -> None:
    code = "import sys, sparse_core; print(*({'numba', 'torch._dynamo'} & set(sys.modules)))"
    assert run(code).strip() == ""
