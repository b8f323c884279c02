"""Compiled kernels of the `csr` backend: they touch connections only, on feature-major arrays (features, batch).

Importing this file imports Numba; `sparse_core.csr` does so on first use. Every kernel comes twice: `…_block`
works on a part, in one thread, for callers that split the work themselves; the plain name is the whole, on
`threads` threads. Arrays are C-contiguous; an empty array stands for "none".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from sparse_core.compilation import serial, threaded
from sparse_core.threads import thread_count
from sparse_core.vectors import TILES, UNIT, VECTOR_BYTES, permuted_sum, sampled_dots, weighted_sum

LARGEST = max(TILES)
CACHE = 1 << 20  # bytes of x between which rows are cut: about a core's second-level cache
BLOCK_FAN_IN = 128  # connections of a row that a block of columns must hold to be worth its own pass
SHARE = 1 << 17  # multiplications that are worth a thread of their own: entering a parallel region takes about 3 µs


def threads_for(multiplications: int) -> int:
    """How many threads this much work deserves, at most torch's count."""
    return 1 if multiplications < 2 * SHARE else min(thread_count(), multiplications // SHARE)


@serial
def tile_end(start: Any, stop: Any, bytes_each: Any) -> Any:
    """Where the batch tile that begins at `start` ends: the largest there is, else whole units, else the rest."""
    lanes = VECTOR_BYTES // bytes_each
    left = stop - start
    if left >= LARGEST * lanes:
        return start + LARGEST * lanes
    return start + min(left, UNIT * lanes)


@serial
def row_boundary(row_pointer: Any, part: Any, parts: Any) -> Any:
    """First row of part `part` of `parts` with about equally many connections; a row itself counts as one."""
    rows = row_pointer.shape[0] - 1
    wanted = (row_pointer[rows] + rows) * part // parts
    low, high = 0, rows
    while low < high:
        middle = (low + high) // 2
        if row_pointer[middle] + middle < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@serial
def batch_slices(batch: Any, threads: Any, bytes_each: Any) -> Any:
    """Into how many slices of the batch the work of `threads` is cut; what remains is cut by rows.

    By batch where that is balanced: a thread then reads its own part of the inputs only. Slices begin at whole
    units of the batch, so that results do not depend on the number of threads.
    """
    lanes = UNIT * VECTOR_BYTES // bytes_each
    units = batch / lanes
    for slices in range(threads, 1, -1):
        if threads % slices == 0 and units / slices > 0.85 * np.ceil(units / slices) and units >= slices:
            return slices
    return 1


@serial
def slice_start(batch: Any, number: Any, slices: Any, bytes_each: Any) -> Any:
    """First batch entry of a slice."""
    lanes = UNIT * VECTOR_BYTES // bytes_each
    units = (batch + lanes - 1) // lanes
    return min(batch, units * number // slices * lanes)


@serial
def column_blocks(features: Any, tile_bytes: Any, connections: Any, rows: Any) -> Any:
    """Into how many blocks of columns rows are cut so that what they read of x stays in the cache.

    Only where a row then still has enough connections per block to pay for reading and writing its output again. Tiles
    of less than a unit take the blocks of a whole one: sums keep their order however a small batch is cut.
    """
    wanted = (features * max(tile_bytes, UNIT * VECTOR_BYTES) + CACHE - 1) // CACHE
    return max(1, min(wanted, connections // max(1, rows * BLOCK_FAN_IN)))


@serial
def block_end(columns: Any, begin: Any, end: Any, limit: Any) -> Any:
    """First of the connections begin … end-1 of a row whose column is not below `limit`; `end` if there is none."""
    while begin < end:
        middle = (begin + end) // 2
        if columns[middle] < limit:
            begin = middle + 1
        else:
            end = middle
    return begin


@serial
def forward_block(
    y: Any, x: Any, row_pointer: Any, columns: Any, values: Any, bias: Any, relu: Any,
    first_row: Any, last_row: Any, start: Any, stop: Any,
) -> None:  # fmt: skip
    """Rows first_row … last_row-1 and batch entries start … stop-1 of y = W x + bias, negative ones zero if `relu`."""
    size, rows = x.itemsize, last_row - first_row
    y_stride, x_stride = y.shape[1] * size, x.shape[1] * size
    y_base, x_base = y.ctypes.data, x.ctypes.data
    columns_base, values_base = columns.ctypes.data, values.ctypes.data
    done = np.empty(0, np.int64)
    while start < stop:
        end = tile_end(start, stop, size)
        blocks = column_blocks(x.shape[0], (end - start) * size, row_pointer[last_row] - row_pointer[first_row], rows)
        if blocks > 1:
            done = row_pointer[first_row:last_row].copy()
        for block in range(blocks):
            last = block == blocks - 1
            limit = x.shape[0] * (block + 1) // blocks
            for row in range(first_row, last_row):
                begin = row_pointer[row] if blocks == 1 else done[row - first_row]
                finish = row_pointer[row + 1]
                if not last:
                    finish = block_end(columns, begin, finish, limit)
                    done[row - first_row] = finish
                weighted_sum(
                    y_base + row * y_stride + start * size, x_base + start * size, x_stride,
                    columns_base, values_base, 0, begin, finish,
                    bias[row] if bias.shape[0] else values.dtype.type(0), end - start, block > 0, 0, relu and last,
                    columns.dtype.type(0),
                )  # fmt: skip
        start = end


@serial
def backward_inputs_block(
    dx: Any, dy: Any, row_pointer: Any, columns: Any, order: Any, values: Any, gate: Any,
    first_row: Any, last_row: Any, start: Any, stop: Any,
) -> None:  # fmt: skip
    """Rows and batch entries of dx = Wᵀ dy, zero where `gate` (as dx, or empty) is not positive.

    Rows, columns and pointer are the transpose's; values stay in topology order and are read through `order`.
    """
    size, rows = dy.itemsize, last_row - first_row
    dx_stride, dy_stride = dx.shape[1] * size, dy.shape[1] * size
    dx_base, dy_base, gate_base = dx.ctypes.data, dy.ctypes.data, gate.ctypes.data
    columns_base, values_base, order_base = columns.ctypes.data, values.ctypes.data, order.ctypes.data
    done = np.empty(0, np.int64)
    while start < stop:
        end = tile_end(start, stop, size)
        blocks = column_blocks(dy.shape[0], (end - start) * size, row_pointer[last_row] - row_pointer[first_row], rows)
        if blocks > 1:
            done = row_pointer[first_row:last_row].copy()
        for block in range(blocks):
            last = block == blocks - 1
            limit = dy.shape[0] * (block + 1) // blocks
            for row in range(first_row, last_row):
                begin = row_pointer[row] if blocks == 1 else done[row - first_row]
                finish = row_pointer[row + 1]
                if not last:
                    finish = block_end(columns, begin, finish, limit)
                    done[row - first_row] = finish
                offset = row * dx_stride + start * size
                permuted_sum(
                    dx_base + offset, dy_base + start * size, dy_stride, columns_base, values_base, order_base,
                    begin, finish, values.dtype.type(0), end - start, block > 0,
                    gate_base + offset if gate.shape[0] and last else 0, False, columns.dtype.type(0),
                )  # fmt: skip
        start = end


@serial
def backward_values_block(
    dvalues: Any, dy: Any, x: Any, row_pointer: Any, columns: Any, first_row: Any, last_row: Any, batch: Any, fresh: Any
) -> None:
    """dvalues[k] = Σ_b dy[row_k, b] x[column_k, b] for the connections of these rows, b from 0 to batch-1.

    Added to what is there unless `fresh`.
    """
    size, rows = x.itemsize, last_row - first_row
    dy_stride, x_stride = dy.shape[1] * size, x.shape[1] * size
    out, dy_base, x_base, columns_base = dvalues.ctypes.data, dy.ctypes.data, x.ctypes.data, columns.ctypes.data
    if batch == 0 and fresh:
        dvalues[row_pointer[first_row] : row_pointer[last_row]] = 0
    done = np.empty(0, np.int64)
    start = 0
    while start < batch:
        end = tile_end(start, batch, size)
        blocks = column_blocks(x.shape[0], (end - start) * size, row_pointer[last_row] - row_pointer[first_row], rows)
        if blocks > 1:
            done = row_pointer[first_row:last_row].copy()
        for block in range(blocks):
            limit = x.shape[0] * (block + 1) // blocks
            for row in range(first_row, last_row):
                begin = row_pointer[row] if blocks == 1 else done[row - first_row]
                finish = row_pointer[row + 1]
                if block < blocks - 1:
                    finish = block_end(columns, begin, finish, limit)
                    done[row - first_row] = finish
                sampled_dots(  # type: ignore[call-arg]  # Numba itself gives the first argument
                    out, dy_base + row * dy_stride + start * size, x_base + start * size, x_stride, columns_base,
                    begin, finish, end - start, fresh and start == 0, dvalues.dtype.type(0),
                )  # fmt: skip
        start = end


@threaded
def forward_threaded(
    y: Any, x: Any, row_pointer: Any, columns: Any, values: Any, bias: Any, relu: Any, threads: Any
) -> None:
    """`forward_block` over everything, on `threads` threads."""
    batch = x.shape[1]
    slices = batch_slices(batch, threads, x.itemsize)
    chunks = threads // slices
    for task in prange(threads):
        part, chunk = task // chunks, task % chunks
        forward_block(
            y, x, row_pointer, columns, values, bias, relu,
            row_boundary(row_pointer, chunk, chunks), row_boundary(row_pointer, chunk + 1, chunks),
            slice_start(batch, part, slices, x.itemsize), slice_start(batch, part + 1, slices, x.itemsize),
        )  # fmt: skip


@threaded
def backward_inputs_threaded(
    dx: Any, dy: Any, row_pointer: Any, columns: Any, order: Any, values: Any, gate: Any, threads: Any
) -> None:
    """`backward_inputs_block` over everything, on `threads` threads."""
    batch = dy.shape[1]
    slices = batch_slices(batch, threads, dy.itemsize)
    chunks = threads // slices
    for task in prange(threads):
        part, chunk = task // chunks, task % chunks
        backward_inputs_block(
            dx, dy, row_pointer, columns, order, values, gate,
            row_boundary(row_pointer, chunk, chunks), row_boundary(row_pointer, chunk + 1, chunks),
            slice_start(batch, part, slices, dy.itemsize), slice_start(batch, part + 1, slices, dy.itemsize),
        )  # fmt: skip


@threaded
def backward_values_threaded(dvalues: Any, dy: Any, x: Any, row_pointer: Any, columns: Any, threads: Any) -> None:
    """`backward_values_block` over everything, on `threads` threads: a sum over the batch, so cut by rows only."""
    for task in prange(threads):
        first, last = row_boundary(row_pointer, task, threads), row_boundary(row_pointer, task + 1, threads)
        backward_values_block(dvalues, dy, x, row_pointer, columns, first, last, x.shape[1], True)


def forward(y: Any, x: Any, row_pointer: Any, columns: Any, values: Any, bias: Any, relu: bool = False) -> None:
    """Y (out, batch) = W x + bias for x (in, batch); negative outputs become zero if `relu`; no bias if it is empty."""
    threads = threads_for(x.shape[1] * columns.shape[0])
    if threads > 1:
        forward_threaded(y, x, row_pointer, columns, values, bias, relu, threads)
    else:
        forward_block(y, x, row_pointer, columns, values, bias, relu, 0, y.shape[0], 0, y.shape[1])


def backward_inputs(dx: Any, dy: Any, row_pointer: Any, columns: Any, order: Any, values: Any, gate: Any) -> None:
    """Dx (in, batch) = Wᵀ dy through the transpose's rows, zero where `gate` is not positive (empty: no gate)."""
    threads = threads_for(dy.shape[1] * columns.shape[0])
    if threads > 1:
        backward_inputs_threaded(dx, dy, row_pointer, columns, order, values, gate, threads)
    else:
        backward_inputs_block(dx, dy, row_pointer, columns, order, values, gate, 0, dx.shape[0], 0, dx.shape[1])


def backward_values(dvalues: Any, dy: Any, x: Any, row_pointer: Any, columns: Any) -> None:
    """Dvalues (nnz,) = dy xᵀ at the connections, for dy (out, batch) and x (in, batch)."""
    threads = threads_for(dy.shape[1] * columns.shape[0])
    if threads > 1:
        backward_values_threaded(dvalues, dy, x, row_pointer, columns, threads)
    else:
        backward_values_block(dvalues, dy, x, row_pointer, columns, 0, dy.shape[0], x.shape[1], True)
