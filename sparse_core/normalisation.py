"""Compiled blocks of layer normalisation and the ReLU after it, on feature-major arrays (features, batch).

Every batch entry is normalised over its features, in one order of summation however the batch is cut. A block works
on batch entries start … stop-1, in one thread. Wide layers are larger than caches, so `passes` asks for the sums over
features a few rows at a time, right after the product that made those rows; one walk over all of them follows. The
normalised numbers x̂ are not kept: z, the layer's outputs, with their mean and 1 / √(variance + ε) give them again.

`statistics` (4, batch) holds what is known of each entry: the mean of z; its summed squared deviations, then
1 / √(variance + ε); in the backward pass Σ g and Σ g (z - mean).

As `kernels`: importing this file imports Numba.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparse_core.compilation import serial
from sparse_core.vectors import I32, I64, UNIT, VECTOR_BYTES, Lanes, by_tile, loop, sum_each

EPSILON = 1e-5  # torch's default, and the only one that is compiled
CHUNK = 16  # features whose squared deviations are taken from their own mean, twice read while near
TILES = tuple(range(1, UNIT + 1))


class Features:
    """Emits walks over features of a tile: vectors of the batch that begin at the same entry in every row."""

    def __init__(self, at: Lanes, stride: Any, rows: Any, masks: list[Any]) -> None:
        self.at, self.stride, self.rows, self.masks = at, stride, rows, masks
        self.builder = at.builder

    def read(self, address: Any, row: Any | None = None) -> list[Any]:
        """The tile's vectors of one row, or of an array (batch,)."""
        place = address if row is None else self.builder.add(address, self.builder.mul(row, self.stride))
        return [self.at.load(place, i, mask) for i, mask in enumerate(self.masks)]

    def write(self, values: list[Any], address: Any, row: Any | None = None) -> None:
        """Put the tile's vectors there."""
        place = address if row is None else self.builder.add(address, self.builder.mul(row, self.stride))
        for i, (value, mask) in enumerate(zip(values, self.masks, strict=True)):
            self.at.store(value, place, i, mask)

    def centred(self, z: Any, row: Any, means: list[Any]) -> list[Any]:
        """Z - mean in this row."""
        return [self.builder.fsub(value, mean) for value, mean in zip(self.read(z, row), means, strict=True)]

    def walk(self, carried: list[Any], body: Any) -> list[Any]:
        """`carried = body(row, carried)` for every row; what it ends with."""
        return loop(self.builder, I64(0), self.rows, 1, carried, body)[1]


def number(builder: Any, at: Lanes, count: Any) -> Any:
    """An integer as a vector of floats."""
    return at.splat(builder.sitofp(count, at.scalar))


@intrinsic
def statistics_tile(typing, z, stride, mean, squares, before, rows, count, like):  # type: ignore[no-untyped-def]
    """Take `rows` more features, after `before` others, into mean and summed squared deviations of a tile of z.

    Arguments: address of z at the first of these rows and the tile's first batch entry, bytes from one row to the
    next; addresses of that entry's mean and sum; features; batch entries; any number of the element type.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        z, stride, mean, squares, before, rows, count, _ = arguments
        at = Lanes(context, builder, signature.args[-1])
        own, earlier = number(builder, at, rows), number(builder, at, before)
        share = builder.fdiv(own, builder.fadd(own, earlier))
        is_first = builder.icmp_signed("==", before, I64(0))

        def tile(vectors: int, masks: list[Any]) -> None:
            features = Features(at, stride, rows, masks)

            def add(row: Any, sums: list[Any]) -> list[Any]:
                return [builder.fadd(total, value) for total, value in zip(sums, features.read(z, row), strict=True)]

            def add_squares(row: Any, sums: list[Any]) -> list[Any]:
                deviations = features.centred(z, row, means)
                return [at.fma(value, value, total) for total, value in zip(sums, deviations, strict=True)]

            means = [builder.fdiv(total, own) for total in features.walk([at.zero] * vectors, add)]
            sums = features.walk([at.zero] * vectors, add_squares)
            results: tuple[list[Any], list[Any]] = ([], [])
            for m, s, old_m, old_s in zip(means, sums, features.read(mean), features.read(squares), strict=True):
                step = builder.fsub(m, old_m)
                moved = at.fma(step, share, old_m)
                joined = at.fma(builder.fmul(step, step), builder.fmul(share, earlier), builder.fadd(s, old_s))
                results[0].append(builder.select(is_first, m, moved))  # what was there before may be anything
                results[1].append(builder.select(is_first, s, joined))
            features.write(results[0], mean)
            features.write(results[1], squares)

        by_tile(builder, at, count, tile, TILES)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 7, like), codegen


@intrinsic
def invert_tile(typing, rstd, features, count, like):  # type: ignore[no-untyped-def]
    """Make 1 / √(variance + ε) of summed squared deviations over so many features, at this address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rstd, width, count, _ = arguments
        at = Lanes(context, builder, signature.args[-1])
        one, epsilon = (ir.Constant(at.vector, [value] * at.count) for value in (1.0, EPSILON))
        width = number(builder, at, width)

        def tile(vectors: int, masks: list[Any]) -> None:
            for i, mask in enumerate(masks):
                variance = builder.fdiv(at.load(rstd, i, mask), width)
                at.store(builder.fdiv(one, at.sqrt(builder.fadd(variance, epsilon))), rstd, i, mask)

        by_tile(builder, at, count, tile, TILES)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 3, like), codegen


@intrinsic
def normalised_tile(typing, y, z, stride, mean, rstd, scale, shift, rows, count, like):  # type: ignore[no-untyped-def]
    """One tile of y = max(scale · (z - mean) · rstd + shift, 0).

    Arguments: addresses of y (which may be z) and z, bytes from one row to the next, addresses of the first batch
    entry's mean and rstd, and of the first row's scale and shift; the rest as for `statistics_tile`.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        y, z, stride, mean, rstd, scale, shift, rows, count, _ = arguments
        at = Lanes(context, builder, signature.args[-1])

        def tile(vectors: int, masks: list[Any]) -> None:
            features = Features(at, stride, rows, masks)
            means, inverses = features.read(mean), features.read(rstd)

            def put(row: Any, _: list[Any]) -> list[Any]:
                factor, offset = at.splat(at.element(scale, row)), at.splat(at.element(shift, row))
                opened = []
                for value, inverse in zip(features.centred(z, row, means), inverses, strict=True):
                    result = at.fma(factor, builder.fmul(value, inverse), offset)
                    is_below = builder.fcmp_ordered("<", result, at.zero)  # false for NaN, which passes
                    opened.append(builder.select(is_below, at.zero, result))
                features.write(opened, y, row)
                return []

            features.walk([], put)

        by_tile(builder, at, count, tile, TILES)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 9, like), codegen


@intrinsic
def gradient_sums_tile(  # type: ignore[no-untyped-def]
    typing, dy, z, stride, mean, rstd, level, slope, scale, dscale, dshift, before, rows, count, like
):
    """Take `rows` more features into a tile's Σ g and Σ g (z - mean), with g = scale · dy.

    Their own sums over the tile go to `dscale` (Σ dy x̂) and `dshift` (Σ dy). Those, and `scale`, are addresses of
    the first of these features; the rest as for `statistics_tile`.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        dy, z, stride, mean, rstd, level, slope, scale, dscale, dshift, before, rows, count, _ = arguments
        at = Lanes(context, builder, signature.args[-1])
        is_first = builder.icmp_signed("==", before, I64(0))

        def put(value: Any, address: Any, row: Any) -> None:
            place = builder.inttoptr(builder.add(address, builder.mul(row, I64(at.bytes))), ir.PointerType())
            builder.store(value, place, align=at.bytes)

        def tile(vectors: int, masks: list[Any]) -> None:
            features = Features(at, stride, rows, masks)
            means, inverses = features.read(mean), features.read(rstd)

            def add(row: Any, sums: list[Any]) -> list[Any]:
                factor, scales, shifts = at.splat(at.element(scale, row)), at.zero, at.zero
                levels, slopes = [], []
                parts = zip(
                    features.read(dy, row), features.centred(z, row, means), inverses, sums[:vectors], sums[vectors:],
                    strict=True,
                )  # fmt: skip
                for gradient, deviation, inverse, first, second in parts:
                    product = builder.fmul(gradient, deviation)
                    levels.append(at.fma(factor, gradient, first))
                    slopes.append(at.fma(factor, product, second))
                    scales, shifts = at.fma(product, inverse, scales), builder.fadd(shifts, gradient)
                both = sum_each(builder, at, [scales, shifts, scales, shifts])
                put(builder.extract_element(both, I32(0)), dscale, row)
                put(builder.extract_element(both, I32(1)), dshift, row)
                return levels + slopes

            begun = [builder.select(is_first, at.zero, old) for old in features.read(level) + features.read(slope)]
            sums = features.walk(begun, add)
            features.write(sums[:vectors], level)
            features.write(sums[vectors:], slope)

        by_tile(builder, at, count, tile, TILES)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 13, like), codegen


@intrinsic
def gradient_tile(  # type: ignore[no-untyped-def]
    typing, dy, z, stride, mean, rstd, level, slope, scale, share, rows, count, like
):
    """One tile of dz = rstd · (g - ⟨g⟩ - x̂ ⟨g x̂⟩) in the place of dy, with ⟨⟩ the average over features.

    Arguments as for `gradient_sums_tile`, whose sums are complete; `share` is 1 / features.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        dy, z, stride, mean, rstd, level, slope, scale, share, rows, count, _ = arguments
        at = Lanes(context, builder, signature.args[-1])
        share = builder.fneg(at.splat(share))

        def tile(vectors: int, masks: list[Any]) -> None:
            features = Features(at, stride, rows, masks)
            means, inverses = features.read(mean), features.read(rstd)
            levels = [builder.fmul(total, share) for total in features.read(level)]
            slopes = [
                builder.fmul(builder.fmul(builder.fmul(total, share), inverse), inverse)
                for total, inverse in zip(features.read(slope), inverses, strict=True)
            ]

            def put(row: Any, _: list[Any]) -> list[Any]:
                factor, results = at.splat(at.element(scale, row)), []
                parts = zip(
                    features.read(dy, row), features.centred(z, row, means), levels, slopes, inverses, strict=True
                )
                for gradient, deviation, less, tilt, inverse in parts:
                    results.append(builder.fmul(at.fma(deviation, tilt, at.fma(factor, gradient, less)), inverse))
                features.write(results, dy, row)
                return []

            features.walk([], put)

        by_tile(builder, at, count, tile, TILES)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 8, like, types.int64, types.int64, like), codegen


@serial
def statistics_block(z: Any, statistics: Any, first_row: Any, last_row: Any, start: Any, stop: Any) -> None:
    """Take these rows of z into mean and squared deviations; rows come in order, `CHUNK` or a multiple at a time."""
    size, stride = z.itemsize, z.shape[1] * z.itemsize
    for row in range(first_row, last_row, CHUNK):
        rows = min(CHUNK, last_row - row)
        for begin in range(start, stop, UNIT * VECTOR_BYTES // size):
            offset = begin * size
            known = statistics.ctypes.data + offset
            statistics_tile(  # type: ignore[call-arg]  # Numba itself gives the first argument
                z.ctypes.data + offset + row * stride, stride, known, known + stride, row, rows,
                min(stop - begin, UNIT * VECTOR_BYTES // size), z.dtype.type(0),
            )  # fmt: skip


@serial
def normalise_block(y: Any, z: Any, statistics: Any, scale: Any, shift: Any, start: Any, stop: Any) -> None:
    """After `statistics_block` of all rows: y = relu(scale · x̂ + shift); y may be z."""
    size, stride, features = z.itemsize, z.shape[1] * z.itemsize, z.shape[0]
    for begin in range(start, stop, UNIT * VECTOR_BYTES // size):
        count = min(stop - begin, UNIT * VECTOR_BYTES // size)
        place = statistics.ctypes.data + stride + begin * size
        invert_tile(place, features, count, z.dtype.type(0))  # type: ignore[call-arg]
    for row in range(0, features, CHUNK):  # what is fetched along with one tile is needed for the next
        for begin in range(start, stop, UNIT * VECTOR_BYTES // size):
            offset = begin * size
            known, at = statistics.ctypes.data + offset, offset + row * stride
            normalised_tile(  # type: ignore[call-arg]
                y.ctypes.data + at, z.ctypes.data + at, stride, known, known + stride,
                scale.ctypes.data + row * size, shift.ctypes.data + row * size, min(CHUNK, features - row),
                min(stop - begin, UNIT * VECTOR_BYTES // size), z.dtype.type(0),
            )  # fmt: skip


@serial
def gradient_sums_block(
    dy: Any, z: Any, statistics: Any, scale: Any, unit_sums: Any, first_row: Any, last_row: Any, start: Any, stop: Any
) -> None:
    """Take these rows of dy, which the ReLU has gated, into the sums over features; rows come in order.

    `unit_sums` (units, 2, features) takes their sums over each unit of the batch: for scale, and for shift.
    """
    size, stride, features = z.itemsize, z.shape[1] * z.itemsize, z.shape[0]
    unit = UNIT * VECTOR_BYTES // size
    for row in range(first_row, last_row, CHUNK):
        for begin in range(start, stop, unit):
            offset = begin * size
            known, place = statistics.ctypes.data + offset, offset + row * stride
            own = unit_sums.ctypes.data + (begin // unit * 2 * features + row) * size
            gradient_sums_tile(  # type: ignore[call-arg]
                dy.ctypes.data + place, z.ctypes.data + place, stride,
                known, known + stride, known + 2 * stride, known + 3 * stride, scale.ctypes.data + row * size,
                own, own + features * size, row, min(CHUNK, last_row - row), min(stop - begin, unit),
                z.dtype.type(0),
            )  # fmt: skip


@serial
def normalise_backward_block(dy: Any, z: Any, statistics: Any, scale: Any, start: Any, stop: Any) -> None:
    """After `gradient_sums_block` of all rows: the gradient of z in the place of dy."""
    size, stride, features = z.itemsize, z.shape[1] * z.itemsize, z.shape[0]
    share = z.dtype.type(1) / z.dtype.type(features)
    for row in range(0, features, CHUNK):
        for begin in range(start, stop, UNIT * VECTOR_BYTES // size):
            offset = begin * size
            known, place = statistics.ctypes.data + offset, offset + row * stride
            gradient_tile(  # type: ignore[call-arg]
                dy.ctypes.data + place, z.ctypes.data + place, stride, known, known + stride, known + 2 * stride,
                known + 3 * stride, scale.ctypes.data + row * size, share, min(CHUNK, features - row),
                min(stop - begin, UNIT * VECTOR_BYTES // size), z.dtype.type(0),
            )  # fmt: skip


@serial
def sum_units(dscale: Any, dshift: Any, unit_sums: Any, first_row: Any, last_row: Any) -> None:
    """Gradients of these features' scales and shifts: sums over the units of the batch, in their order."""
    for row in range(first_row, last_row):
        dscale[row] = dshift[row] = 0
        for unit in range(unit_sums.shape[0]):
            dscale[row] += unit_sums[unit, 0, row]
            dshift[row] += unit_sums[unit, 1, row]
