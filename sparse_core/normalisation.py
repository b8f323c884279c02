"""Compiled blocks of layer normalisation and the ReLU after it, on feature-major arrays (features, batch).

Every batch entry is normalised over its features, in one order of summation however the batch is cut. A block works
on batch entries start … stop-1, in one thread; `passes` calls it between two layers. The normalised numbers x̂ are not
kept: z, the layer's outputs, with their mean and 1 / √(variance + ε) are enough to have them again.

As `kernels`: importing this file imports Numba, whose cache knows this file's date only.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from sparse_core.vectors import I32, I64, UNIT, VECTOR_BYTES, Lanes, by_tile, loop, sum_each

EPSILON = 1e-5  # torch's default, and the only one that is compiled
TILES = tuple(range(1, UNIT + 1))

serial = njit(cache=True, nogil=True, error_model="numpy")


class Features:
    """Emits walks over the features of a tile: vectors of the batch that begin at the same entry in every row."""

    def __init__(self, at: Lanes, stride: Any, rows: Any, masks: list[Any]) -> None:
        self.at, self.stride, self.rows, self.masks = at, stride, rows, masks
        self.builder = at.builder
        self.count = at.splat(self.builder.sitofp(rows, at.scalar))

    def read(self, address: Any, row: Any | None = None) -> list[Any]:
        """The tile's vectors of one row, or of an array (batch,)."""
        place = address if row is None else self.place(address, row)
        return [self.at.load(place, i, mask) for i, mask in enumerate(self.masks)]

    def write(self, values: list[Any], address: Any, row: Any | None = None) -> None:
        """Put the tile's vectors there."""
        place = address if row is None else self.place(address, row)
        for i, (value, mask) in enumerate(zip(values, self.masks, strict=True)):
            self.at.store(value, place, i, mask)

    def place(self, address: Any, row: Any) -> Any:
        """Where the tile begins in this row."""
        return self.builder.add(address, self.builder.mul(row, self.stride))

    def means(self, sets: int, body: Any) -> list[Any]:
        """Averages over the features of what `body(row, sums)` adds up, `sets` of them for each vector."""
        _, sums = loop(self.builder, I64(0), self.rows, 1, [self.at.zero] * (sets * len(self.masks)), body)
        return [self.builder.fdiv(total, self.count) for total in sums]

    def each(self, body: Any) -> None:
        """`body(row)` for every feature."""

        def step(row: Any, _: list[Any]) -> list[Any]:
            body(row)
            return []

        loop(self.builder, I64(0), self.rows, 1, [], step)


@intrinsic
def normalised_tile(typing, y, z, stride, mean, rstd, scale, shift, rows, count, like):  # type: ignore[no-untyped-def]
    """One tile of y = max(scale · (z - mean) · rstd + shift, 0), whose mean and rstd it works out and writes down.

    Arguments: addresses of y and z at the tile's first batch entry, bytes from one row to the next, addresses of that
    entry's mean and rstd, and of all scales and shifts; features; batch entries; any number of the element type.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        y, z, stride, mean, rstd, scale, shift, rows, count, _ = arguments
        at = Lanes(context, builder, signature.args[-1])
        one, epsilon = (ir.Constant(at.vector, [number] * at.count) for number in (1.0, EPSILON))

        def tile(vectors: int, masks: list[Any]) -> None:
            features = Features(at, stride, rows, masks)

            def centred(row: Any) -> list[Any]:
                return [builder.fsub(value, m) for value, m in zip(features.read(z, row), means, strict=True)]

            def add(row: Any, sums: list[Any]) -> list[Any]:
                return [builder.fadd(total, value) for total, value in zip(sums, features.read(z, row), strict=True)]

            def add_squares(row: Any, sums: list[Any]) -> list[Any]:
                return [at.fma(value, value, total) for total, value in zip(sums, centred(row), strict=True)]

            def put(row: Any) -> None:
                factor, offset = at.splat(at.element(scale, row)), at.splat(at.element(shift, row))
                values = [builder.fmul(value, d) for value, d in zip(centred(row), rstds, strict=True)]
                values = [at.fma(factor, value, offset) for value in values]
                is_below = [builder.fcmp_ordered("<", value, at.zero) for value in values]  # false for NaN
                opened = [builder.select(low, at.zero, value) for low, value in zip(is_below, values, strict=True)]
                features.write(opened, y, row)

            means = features.means(1, add)
            variances = features.means(1, add_squares)
            rstds = [builder.fdiv(one, at.sqrt(builder.fadd(variance, epsilon))) for variance in variances]
            features.write(means, mean)
            features.write(rstds, rstd)
            features.each(put)

        by_tile(builder, at, count, tile, TILES)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 9, like), codegen


@intrinsic
def gradient_tile(typing, dz, dy, z, stride, mean, rstd, scale, rows, count, like):  # type: ignore[no-untyped-def]
    """One tile of dz = rstd · (g - ⟨g⟩ - x̂ ⟨g x̂⟩) with g = scale · dy and ⟨⟩ the average over features.

    Arguments as for `normalised_tile`; dy is zero already where the ReLU was closed.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        dz, dy, z, stride, mean, rstd, scale, rows, count, _ = arguments
        at = Lanes(context, builder, signature.args[-1])

        def tile(vectors: int, masks: list[Any]) -> None:
            features = Features(at, stride, rows, masks)
            means, rstds = features.read(mean), features.read(rstd)

            def centred(row: Any) -> list[Any]:
                return [builder.fsub(value, m) for value, m in zip(features.read(z, row), means, strict=True)]

            def add(row: Any, sums: list[Any]) -> list[Any]:
                factor = at.splat(at.element(scale, row))
                g = [builder.fmul(factor, value) for value in features.read(dy, row)]
                plain = [builder.fadd(total, value) for total, value in zip(sums[:vectors], g, strict=True)]
                products = zip(sums[vectors:], g, centred(row), strict=True)
                return plain + [at.fma(value, other, total) for total, value, other in products]

            def put(row: Any) -> None:
                factor = at.splat(at.element(scale, row))
                g = [at.fma(factor, value, less) for value, less in zip(features.read(dy, row), level, strict=True)]
                parts = zip(centred(row), slope, g, rstds, strict=True)
                features.write(
                    [builder.fmul(at.fma(value, less, rest), d) for value, less, rest, d in parts], dz, row
                )

            averages = features.means(2, add)
            level = [builder.fneg(value) for value in averages[:vectors]]
            slope = [
                builder.fneg(builder.fmul(builder.fmul(value, d), d))
                for value, d in zip(averages[vectors:], rstds, strict=True)
            ]
            features.each(put)

        by_tile(builder, at, count, tile, TILES)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 9, like), codegen


@intrinsic
def parameter_gradients(typing, dscale, dshift, dy, z, mean, rstd, count, like):  # type: ignore[no-untyped-def]
    """One feature's sums over the batch, dscale = Σ dy x̂ and dshift = Σ dy; all arguments but the last two are addresses."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        dscale, dshift, dy, z, mean, rstd, count, _ = arguments
        at = Lanes(context, builder, signature.args[-1])

        def add(k: Any, sums: list[Any], mask: Any = None) -> list[Any]:
            offset = builder.mul(k, I64(at.bytes))
            half, results = len(sums) // 2, []
            for i in range(half):
                d, value, m, r = (at.load(builder.add(array, offset), i, mask) for array in (dy, z, mean, rstd))
                x = builder.fmul(builder.fsub(value, m), r)
                results += [at.fma(d, x, sums[2 * i]), builder.fadd(sums[2 * i + 1], d)]
            return results

        k, sums = loop(builder, I64(0), count, 4 * at.count, [at.zero] * 8, add)
        while len(sums) > 2:
            half = len(sums) // 2
            sums = [builder.fadd(sums[i], sums[half + i]) for i in range(half)]
        k, sums = loop(builder, k, count, at.count, sums, add)
        scales, shifts = add(k, sums, at.mask(builder.sub(count, k)))
        both = sum_each(builder, at, [scales, shifts, scales, shifts])
        for number, address in enumerate((dscale, dshift)):
            total = builder.extract_element(both, I32(number))
            builder.store(total, builder.inttoptr(address, ir.PointerType()), align=at.bytes)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 7, like), codegen


@serial
def normalise_block(
    y: Any, z: Any, mean: Any, rstd: Any, scale: Any, shift: Any, start: Any, stop: Any
) -> None:
    """Batch entries start … stop-1 of y = relu(scale · x̂ + shift), and of the mean and rstd that make x̂ of z."""
    size = z.itemsize
    stride = z.shape[1] * size
    while start < stop:
        end, offset = min(stop, start + UNIT * VECTOR_BYTES // size), start * size
        normalised_tile(  # type: ignore[call-arg]  # Numba itself gives the first argument
            y.ctypes.data + offset, z.ctypes.data + offset, stride, mean.ctypes.data + offset,
            rstd.ctypes.data + offset, scale.ctypes.data, shift.ctypes.data, z.shape[0], end - start,
            z.dtype.type(0),
        )  # fmt: skip
        start = end


@serial
def normalise_backward_block(
    dz: Any, dy: Any, z: Any, mean: Any, rstd: Any, scale: Any, start: Any, stop: Any
) -> None:
    """Batch entries start … stop-1 of dz, for a dy that the ReLU has gated."""
    size = z.itemsize
    stride = z.shape[1] * size
    while start < stop:
        end, offset = min(stop, start + UNIT * VECTOR_BYTES // size), start * size
        gradient_tile(  # type: ignore[call-arg]
            dz.ctypes.data + offset, dy.ctypes.data + offset, z.ctypes.data + offset, stride,
            mean.ctypes.data + offset, rstd.ctypes.data + offset, scale.ctypes.data, z.shape[0], end - start,
            z.dtype.type(0),
        )  # fmt: skip
        start = end


@serial
def normalise_parameters_block(
    dscale: Any, dshift: Any, dy: Any, z: Any, mean: Any, rstd: Any, first_row: Any, last_row: Any
) -> None:
    """Gradients of these features' scales and shifts; each sum over the batch is whole."""
    size = z.itemsize
    stride = z.shape[1] * size
    for row in range(first_row, last_row):
        parameter_gradients(  # type: ignore[call-arg]
            dscale.ctypes.data + row * size, dshift.ctypes.data + row * size, dy.ctypes.data + row * stride,
            z.ctypes.data + row * stride, mean.ctypes.data, rstd.ctypes.data, z.shape[1], z.dtype.type(0),
        )  # fmt: skip
