"""The inner loops of dense layers in LLVM's own vectors: a tile of rows and batch stays in registers.

They exist so that dense layers, and those of `gemm`, run in the same passes as sparse ones: a dense baseline then
pays for its multiplications and for nothing else.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparse_core.vectors import I32, I64, REGISTER_BYTES, WIDE, Lanes, by_tile, finish, loop, put, sum_each

ROWS, VECTORS = 6, 4 if WIDE else 2
"""A tile's rows and, at most, registers of the batch: as many sums as registers hold beside what they are made of."""

DOT_ROWS, DOTS = 6 if WIDE else 3, 4
"""Rows and columns of a tile of the weight gradient, whose sums over the batch end in one short vector."""


def _registers(context: Any, builder: Any, dtype: Any) -> Lanes:
    """Vectors as wide as a register: what is wider takes several, and a tile's sums no longer fit."""
    return Lanes(context, builder, dtype, 8 * REGISTER_BYTES // dtype.bitwidth)


def _weighted_rows(rows: int, forward: bool) -> Any:
    @intrinsic
    def weighted_rows(  # type: ignore[no-untyped-def]
        typing, y, y_stride, x, x_stride, weights, row_stride, step, depth, bias, count, gate, relu, like
    ):
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            y, y_stride, x, x_stride, weights, row_stride, step, depth, bias, count, gate, relu, _ = arguments
            at = _registers(context, builder, signature.args[-1])
            floor = builder.select(relu, at.zero, ir.Constant(at.vector, [float("-inf")] * at.count))
            is_gated = builder.icmp_signed("!=", gate, I64(0))

            def tile(vectors: int, masks: list[Any]) -> None:
                starts = [at.splat(at.element(bias, I64(r))) if forward else at.zero for r in range(rows)]

                def add(k: Any, sums: list[Any]) -> list[Any]:
                    column = builder.add(x, builder.mul(k, x_stride))
                    read = [at.load(column, i, mask) for i, mask in enumerate(masks)]
                    place = builder.add(weights, builder.mul(k, step))
                    results = []
                    for r in range(rows):
                        weight = at.splat(at.element(builder.add(place, builder.mul(I64(r), row_stride)), I64(0)))
                        results += [at.fma(weight, value, sums[r * vectors + i]) for i, value in enumerate(read)]
                    return results

                _, sums = loop(builder, I64(0), depth, 1, [start for start in starts for _ in masks], add)
                for r in range(rows):
                    offset = builder.mul(I64(r), y_stride)
                    own_gate = builder.select(is_gated, builder.add(gate, offset), I64(0))
                    part = sums[r * vectors : (r + 1) * vectors]
                    finish(builder, at, part, masks, builder.add(y, offset), own_gate, floor)

            by_tile(builder, at, count, tile, tuple(range(1, VECTORS + 1)))
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 11, types.boolean, like), codegen

    return weighted_rows


forward_rows = _weighted_rows(ROWS, forward=True)
"""A tile of `ROWS` rows: y[r] = max(bias[r] + Σ_k weights[r, k] x[k], floor), or zero where `gate` is not positive.

Arguments: address of the tile's first output and bytes from one row of y to the next; the same of x; address of the
first weight, bytes to the next row's and to the next k's; number of k; address of the first row's bias; batch
entries in the tile; address of the gate's tile, laid out as y, or 0; whether negative outputs become zero; any
number of the element type.
"""

forward_row = _weighted_rows(1, forward=True)
"""As `forward_rows`, for one row."""

backward_rows = _weighted_rows(ROWS, forward=False)
"""As `forward_rows` without a bias."""

backward_row = _weighted_rows(1, forward=False)
"""As `backward_rows`, for one row."""


def _dots(rows: int, columns: int) -> Any:
    @intrinsic
    def dots(  # type: ignore[no-untyped-def]
        typing, out, out_stride, y, x, y_stride, x_stride, count, fresh, like
    ):
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            out, out_stride, y, x, y_stride, x_stride, count, fresh, _ = arguments
            at = _registers(context, builder, signature.args[-1])

            def add(k: Any, sums: list[Any], mask: Any) -> list[Any]:
                offset = builder.mul(k, I64(at.bytes))

                def row(base: Any, number: int, stride: Any) -> Any:
                    return at.load(builder.add(base, builder.add(offset, builder.mul(I64(number), stride))), 0, mask)

                left = [row(y, r, y_stride) for r in range(rows)]
                sums = list(sums)
                for c in range(columns):  # one at a time: registers hold no more
                    other = row(x, c, x_stride)
                    for r, value in enumerate(left):
                        sums[r * columns + c] = at.fma(value, other, sums[r * columns + c])
                return sums

            zeros = [at.zero] * (rows * columns)
            k, sums = loop(builder, I64(0), count, at.count, zeros, lambda k, sums: add(k, sums, None))
            end = builder.add(count, I64(at.count - 1))  # once more where entries are left
            _, sums = loop(
                builder, k, end, at.count, sums, lambda k, sums: add(k, sums, at.mask(builder.sub(count, k)))
            )
            for r in range(rows):
                part = sums[r * columns : (r + 1) * columns]
                total = sum_each(builder, at, part if columns == DOTS else part * 4)
                place = builder.inttoptr(builder.add(out, builder.mul(I64(r), out_stride)), ir.PointerType())
                put(builder, total if columns == DOTS else builder.extract_element(total, I32(0)), place, fresh, at)
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 7, types.boolean, like), codegen

    return dots


dots_tile = _dots(DOT_ROWS, DOTS)
"""A tile of `DOT_ROWS` × `DOTS` sums over the batch: out[r, c] = ⟨y[r], x[c]⟩.

Arguments: address of the tile's first number and bytes from one row of it to the next; addresses of y and x; bytes from
one row of each to the next; the batch; whether nothing is there yet to add to; any number of the element type.
"""

dots_row = _dots(1, DOTS)
"""As `dots_tile`, for one row."""

dots_column = _dots(DOT_ROWS, 1)
"""As `dots_tile`, for one column."""

dot = _dots(1, 1)
"""As `dots_tile`, for one number."""
