"""Compiled blocks of the three products of a dense layer, on feature-major arrays (features, batch), in one thread.

As `kernels`: importing this file imports Numba.
"""

from __future__ import annotations

from typing import Any

from sparse_core.compilation import serial
from sparse_core.dense_vectors import (
    DOT_ROWS,
    DOTS,
    ROWS,
    VECTORS,
    backward_row,
    backward_rows,
    dot,
    dots_column,
    dots_row,
    dots_tile,
    forward_row,
    forward_rows,
)
from sparse_core.vectors import REGISTER_BYTES

KEPT_BYTES = 1 << 14
"""Of x, that the first-level cache holds while all rows of dy pass over it."""


@serial
def dense_forward_block(
    y: Any, x: Any, weight: Any, bias: Any, relu: Any, first_row: Any, last_row: Any, start: Any, stop: Any
) -> None:
    """Rows first_row … last_row-1 and batch entries start … stop-1 of y = W x + bias, negative ones zero if `relu`."""
    size, depth, zero = x.itemsize, x.shape[0], x.dtype.type(0)
    y_stride, x_stride, row_stride = y.shape[1] * size, x.shape[1] * size, depth * size
    while start < stop:
        end = min(stop, start + VECTORS * REGISTER_BYTES // size)
        row = first_row
        while row < last_row:
            target, source = y.ctypes.data + row * y_stride + start * size, x.ctypes.data + start * size
            weights, biases = weight.ctypes.data + row * row_stride, bias.ctypes.data + row * size
            if row + ROWS <= last_row:
                forward_rows(
                    target, y_stride, source, x_stride, weights, row_stride, size, depth, biases, end - start, 0, relu,
                    zero,
                )  # fmt: skip
                row += ROWS
            else:
                forward_row(
                    target, y_stride, source, x_stride, weights, row_stride, size, depth, biases, end - start, 0, relu,
                    zero,
                )  # fmt: skip
                row += 1
        start = end


@serial
def dense_backward_inputs_block(
    dx: Any, dy: Any, weight: Any, gate: Any, first_row: Any, last_row: Any, start: Any, stop: Any
) -> None:
    """Rows and batch entries of dx = Wᵀ dy, zero where `gate` (as dx, or empty) is not positive."""
    size, depth, zero = dy.itemsize, dy.shape[0], dy.dtype.type(0)
    dx_stride, dy_stride, step = dx.shape[1] * size, dy.shape[1] * size, dx.shape[0] * size
    while start < stop:
        end = min(stop, start + VECTORS * REGISTER_BYTES // size)
        row = first_row
        while row < last_row:
            offset = row * dx_stride + start * size
            target, source, weights = (
                dx.ctypes.data + offset,
                dy.ctypes.data + start * size,
                weight.ctypes.data + row * size,
            )
            gates = gate.ctypes.data + offset if gate.shape[0] else 0
            if row + ROWS <= last_row:
                backward_rows(
                    target, dx_stride, source, dy_stride, weights, size, step, depth, 0, end - start, gates, False, zero
                )
                row += ROWS
            else:
                backward_row(
                    target, dx_stride, source, dy_stride, weights, size, step, depth, 0, end - start, gates, False, zero
                )
                row += 1
        start = end


@serial
def dense_backward_values_block(
    dweight: Any, dy: Any, x: Any, first_row: Any, last_row: Any, batch: Any, fresh: Any
) -> None:
    """Rows first_row … last_row-1 of dW = dy xᵀ over `batch` entries, added to what is there unless `fresh`."""
    size, width, zero = x.itemsize, x.shape[0], x.dtype.type(0)
    stride, dy_stride, out_stride = x.shape[1] * size, dy.shape[1] * size, width * size
    block = max(1, KEPT_BYTES // (DOTS * max(1, batch) * size)) * DOTS
    for first_column in range(0, width, block):
        last_column = min(width, first_column + block)
        row = first_row
        while row < last_row:
            tall = row + DOT_ROWS <= last_row
            left, column = dy.ctypes.data + row * dy_stride, first_column
            while column < last_column:
                out = dweight.ctypes.data + row * out_stride + column * size
                right, wide = x.ctypes.data + column * stride, column + DOTS <= last_column
                if wide and tall:
                    dots_tile(out, out_stride, left, right, dy_stride, stride, batch, fresh, zero)
                elif wide:
                    dots_row(out, out_stride, left, right, dy_stride, stride, batch, fresh, zero)
                elif tall:
                    dots_column(out, out_stride, left, right, dy_stride, stride, batch, fresh, zero)
                else:
                    dot(out, out_stride, left, right, dy_stride, stride, batch, fresh, zero)
                column += DOTS if wide else 1
            row += DOT_ROWS if tall else 1
