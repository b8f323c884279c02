"""Compiled passes over whole networks: several layers, and several alike networks, in one parallel region.

A layer is a row of addresses and sizes (the constants below), so that one compiled function serves any depth and
any number of networks; `sparse_core.fused_networks` fills the rows and keeps what they point to alive. The batch is cut
into slices that never wait for each other from the first layer to the last. It may lie in tiles of `tile` entries,
each as a matrix of its own: where it does not, `tile` is the batch. The number of a tile is its `piece`.

As `kernels`: importing this file imports Numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, prange  # type: ignore[attr-defined]

from sparse_core.compilation import serial, threaded
from sparse_core.dense_kernels import dense_backward_inputs_block, dense_backward_values_block, dense_forward_block
from sparse_core.fused import adam_block, polyak_block
from sparse_core.kernels import backward_inputs_block, backward_values_block, forward_block, row_boundary
from sparse_core.normalisation import (
    CHUNK,
    gradient_sums_block,
    normalise_backward_block,
    normalise_block,
    statistics_block,
    sum_units,
)
from sparse_core.vectors import UNIT, VECTOR_BYTES, pointer, vector_sum

# One layer: a row of int64. A dense one has no connections to speak of (NNZ 0, no indices): VALUES is its matrix.
# Where a layer normalisation comes between it and its ReLU, NORMALISED is the address of what comes out, else 0.
# X and DX, Y and DY lie in tiles of the batch, rows of …_WIDTH entries, …_JUMP bytes from one tile to the next.
(
    OUT, IN, NNZ, POINTER, COLUMNS, VALUES, BIAS, RELU, TRANSPOSE_POINTER, TRANSPOSE_COLUMNS, TRANSPOSE_ORDER,
    X, Y, DX, DY, GATED, DVALUES, DBIAS, DENSE,
    NORMALISED, STATISTICS, SCALE, SHIFT, UNIT_SUMS, DSCALE, DSHIFT, X_WIDTH, X_JUMP, Y_WIDTH, Y_JUMP,
) = range(30)  # fmt: skip
FIELDS = 30

# One tensor that an optimizer updates.
VALUE, GRADIENT, FIRST, SECOND, AGES, ENTRIES, ENTRY_AGES = range(7)
STATE_FIELDS = 7

# One tensor and the one that follows it.
TARGET, SOURCE, LENGTH = range(3)


@serial
def vector_at(address: Any, length: Any, like: Any) -> Any:
    """The 1-D array that begins there."""
    return carray(pointer(address, like), (length,))  # type: ignore[call-arg]  # Numba gives the first argument


@serial
def matrix_at(address: Any, rows: Any, columns: Any, like: Any) -> Any:
    """The 2-D array that begins there."""
    return carray(pointer(address, like), (rows, columns))  # type: ignore[call-arg]


@serial
def slice_boundary(batch: Any, number: Any, slices: Any, like: Any) -> Any:
    """First batch entry of a slice, cut where kernels cut the batch anyway: sums keep their order.

    That is after whole units of vectors. A batch of less than a unit is cut into two or more vectors each, in which
    sums have the same order.
    """
    lanes = VECTOR_BYTES // vector_at(0, 0, like).itemsize
    vectors = (batch + lanes - 1) // lanes
    if vectors >= UNIT:
        return min(batch, (vectors + UNIT - 1) // UNIT * number // slices * UNIT * lanes)
    parts = max(1, min(slices, vectors // 2))
    return min(batch, vectors * min(number, parts) // parts * lanes)


@serial
def rows_at_once(normalised: Any, dense: Any, rows: Any) -> Any:
    """How many rows are made before they are added up for a normalisation.

    Few, to find them in the nearest cache; a dense product goes through all of its inputs each time and is left whole.
    """
    return CHUNK if normalised and not dense else rows


@serial
def input_at(row: Any, address: Any, piece: Any, like: Any) -> Any:
    """A tile of what a layer reads, or of its gradient: (in, entries)."""
    return matrix_at(address + piece * row[X_JUMP], row[IN], row[X_WIDTH], like)


@serial
def output_at(row: Any, address: Any, piece: Any, like: Any) -> Any:
    """A tile of what a layer makes, or of its gradient: (out, entries)."""
    return matrix_at(address + piece * row[Y_JUMP], row[OUT], row[Y_WIDTH], like)


@serial
def statistics_at(row: Any, piece: Any, like: Any) -> Any:
    """A tile of what a normalisation knows of each batch entry: (4, entries)."""
    jump = 4 * row[Y_WIDTH] * vector_at(0, 0, like).itemsize
    return matrix_at(row[STATISTICS] + piece * jump, 4, row[Y_WIDTH], like)


@serial
def unit_sums_at(row: Any, unit: Any, units: Any, like: Any) -> Any:
    """Sums over units of the batch from `unit` on (units, 2, features) for the scales and shifts after a layer."""
    first = row[UNIT_SUMS] + unit * 2 * row[OUT] * vector_at(0, 0, like).itemsize
    return carray(pointer(first, like), (units, 2, row[OUT]))  # type: ignore[call-arg]


@serial
def units_of(entries: Any, like: Any) -> Any:
    """How many units of vectors hold so many entries."""
    unit = UNIT * VECTOR_BYTES // vector_at(0, 0, like).itemsize
    return (entries + unit - 1) // unit


@serial
def forward_slice(layers: Any, tile: Any, start: Any, stop: Any, like: Any) -> None:
    """Batch entries start … stop-1 of one network, tile by tile, which the cache then holds from layer to layer."""
    while start < stop:
        piece = start // tile
        end = min(stop, (piece + 1) * tile)
        forward_tile(layers, piece, start - piece * tile, end - piece * tile, like)
        start = end


@serial
def forward_tile(layers: Any, piece: Any, start: Any, stop: Any, like: Any) -> None:
    """Entries start … stop-1 of a tile of one network, from its first layer to its last."""
    for number in range(layers.shape[0]):
        row = layers[number]
        y, x = output_at(row, row[Y], piece, like), input_at(row, row[X], piece, like)
        bias, relu = vector_at(row[BIAS], row[OUT], like), row[RELU] != 0
        normalised = row[NORMALISED] != 0
        statistics = statistics_at(row, piece, like)
        step = rows_at_once(normalised, row[DENSE], row[OUT])
        for first in range(0, row[OUT], step):
            last = min(first + step, row[OUT])
            if row[DENSE]:
                weight = matrix_at(row[VALUES], row[OUT], row[IN], like)
                dense_forward_block(y, x, weight, bias, relu, first, last, start, stop)
            else:
                row_pointer = vector_at(row[POINTER], row[OUT] + 1, np.int64(0))
                forward_block(
                    y, x, row_pointer, vector_at(row[COLUMNS], row[NNZ], np.int32(0)),
                    vector_at(row[VALUES], row[NNZ], like), bias, relu, first, last, start, stop,
                )  # fmt: skip
            if normalised:
                statistics_block(y, statistics, first, last, start, stop)
        if normalised:
            normalise_block(
                output_at(row, row[NORMALISED], piece, like), y, statistics,
                vector_at(row[SCALE], row[OUT], like), vector_at(row[SHIFT], row[OUT], like), start, stop,
            )  # fmt: skip


@serial
def backward_slice(
    layers: Any, tile: Any, first_input: Any, last_input: Any, start: Any, stop: Any, like: Any, index: Any
) -> None:
    """Gradients of batch entries start … stop-1 of one network, tile by tile."""
    while start < stop:
        piece = start // tile
        end, before = min(stop, (piece + 1) * tile), piece * tile
        units = units_of(tile, like)
        backward_tile(layers, piece, units, first_input, last_input, start - before, end - before, like, index)
        start = end


@serial
def backward_tile(
    layers: Any, piece: Any, units: Any, first_input: Any, last_input: Any, start: Any, stop: Any, like: Any, index: Any
) -> None:
    """Gradients of entries of a tile, from the last layer's outputs down to the first layer's given inputs."""
    for number in range(layers.shape[0] - 1, -1, -1):
        row = layers[number]
        begin, end = (first_input, last_input) if number == 0 else (0, row[IN])
        dx, dy = input_at(row, row[DX], piece, like), output_at(row, row[DY], piece, like)
        gate = matrix_at(row[X] + piece * row[X_JUMP], row[IN] if row[GATED] else 0, row[X_WIDTH], like)
        if row[NORMALISED]:  # the layer above has added up what this needs
            normalise_backward_block(
                dy, output_at(row, row[Y], piece, like), statistics_at(row, piece, like),
                vector_at(row[SCALE], row[OUT], like), start, stop,
            )  # fmt: skip
        below = layers[max(number - 1, 0)]
        normalised = number > 0 and below[NORMALISED] != 0
        step = rows_at_once(normalised, row[DENSE], max(1, end - begin))
        for first in range(begin, end, step):
            last = min(first + step, end)
            if row[DENSE]:
                weight = matrix_at(row[VALUES], row[OUT], row[IN], like)
                dense_backward_inputs_block(dx, dy, weight, gate, first, last, start, stop)
            else:
                backward_inputs_block(
                    dx, dy, vector_at(row[TRANSPOSE_POINTER], row[IN] + 1, np.int64(0)),
                    vector_at(row[TRANSPOSE_COLUMNS], row[NNZ], index),
                    vector_at(row[TRANSPOSE_ORDER], row[NNZ], np.int32(0)),
                    vector_at(row[VALUES], row[NNZ], like), gate, first, last, start, stop,
                )  # fmt: skip
            if normalised:
                gradient_sums_block(
                    dx, output_at(below, below[Y], piece, like), statistics_at(below, piece, like),
                    vector_at(below[SCALE], row[IN], like), unit_sums_at(below, piece * units, units, like),
                    first, last, start, stop,
                )  # fmt: skip


@serial
def gradient_part(
    layers: Any, batch: Any, tile: Any, first_tile: Any, last_tile: Any, part: Any, parts: Any, like: Any
) -> None:
    """Gradients of one part of every layer's values and biases, and of the scales and shifts after it.

    Tiles first_tile … last_tile-1 of the batch take part; all but the first are added to what is there.
    """
    for number in range(layers.shape[0]):
        row = layers[number]
        row_pointer = vector_at(row[POINTER], row[OUT] + 1, np.int64(0))
        if row[DENSE]:
            first, last = row[OUT] * part // parts, row[OUT] * (part + 1) // parts
        else:
            first, last = row_boundary(row_pointer, part, parts), row_boundary(row_pointer, part + 1, parts)
        dbias = vector_at(row[DBIAS], row[OUT], like)
        for piece in range(first_tile, last_tile):
            x, dy = input_at(row, row[X], piece, like), output_at(row, row[DY], piece, like)
            entries, fresh = min(tile, batch - piece * tile), piece == 0
            if row[DENSE]:
                dweight = matrix_at(row[DVALUES], row[OUT], row[IN], like)
                dense_backward_values_block(dweight, dy, x, first, last, entries, fresh)
            else:
                backward_values_block(
                    vector_at(row[DVALUES], row[NNZ], like), dy, x, row_pointer,
                    vector_at(row[COLUMNS], row[NNZ], np.int32(0)), first, last, entries, fresh,
                )  # fmt: skip
            for output in range(first, last):
                address = dy.ctypes.data + output * row[Y_WIDTH] * dy.itemsize
                total: Any = vector_sum(address, entries, like)  # type: ignore[call-arg]
                dbias[output] = total if fresh else dbias[output] + total
        if row[NORMALISED] and last_tile * tile >= batch:
            dscale, dshift = vector_at(row[DSCALE], row[OUT], like), vector_at(row[DSHIFT], row[OUT], like)
            sum_units(dscale, dshift, unit_sums_at(row, 0, units_of(batch, like), like), first, last)


@serial
def tiles_of(batch: Any, tile: Any) -> Any:
    """How many tiles hold a batch."""
    return (batch + tile - 1) // tile


@serial
def forward_serial(layers: Any, start: Any, stop: Any, tile: Any, like: Any) -> None:
    """Batch entries start … stop-1 of the networks layers[0], … (networks, depth, FIELDS) in one thread."""
    for network in range(layers.shape[0]):
        forward_slice(layers[network], tile, start, stop, like)


@threaded
def forward_threaded(layers: Any, batch: Any, tile: Any, slices: Any, like: Any) -> None:
    """`forward_serial` of the whole batch, every network's in `slices`."""
    for task in prange(layers.shape[0] * slices):
        part = task % slices
        start = slice_boundary(batch, part, slices, like)
        stop = slice_boundary(batch, part + 1, slices, like)
        forward_slice(layers[task // slices], tile, start, stop, like)


@serial
def backward_serial(
    layers: Any, start: Any, stop: Any, tile: Any, first_input: Any, last_input: Any, like: Any, index: Any
) -> None:
    """Gradients of these entries' activations, and of inputs first_input … last_input-1, in one thread."""
    for network in range(layers.shape[0]):
        backward_slice(layers[network], tile, first_input, last_input, start, stop, like, index)


@threaded
def backward_threaded(
    layers: Any, batch: Any, tile: Any, first_input: Any, last_input: Any, slices: Any, like: Any, index: Any
) -> None:
    """`backward_serial` of the whole batch, every network's in `slices`."""
    for task in prange(layers.shape[0] * slices):
        part = task % slices
        start = slice_boundary(batch, part, slices, like)
        stop = slice_boundary(batch, part + 1, slices, like)
        backward_slice(layers[task // slices], tile, first_input, last_input, start, stop, like, index)


@serial
def gradients_serial(layers: Any, batch: Any, tile: Any, first_tile: Any, last_tile: Any, like: Any) -> None:
    """Gradients of all values and biases over these tiles, in one thread."""
    for network in range(layers.shape[0]):
        gradient_part(layers[network], batch, tile, first_tile, last_tile, 0, 1, like)


@threaded
def gradients_threaded(layers: Any, batch: Any, tile: Any, parts: Any, like: Any) -> None:
    """`gradients_serial` over all tiles with every layer's rows in `parts`: each sum over the batch stays whole."""
    for task in prange(layers.shape[0] * parts):
        gradient_part(layers[task // parts], batch, tile, 0, tiles_of(batch, tile), task % parts, parts, like)


@serial
def share_of(done: Any, length: Any, total: Any, part: Any, parts: Any) -> Any:
    """Where part `part` of `parts` of all entries begins within a tensor that `done` entries precede."""
    return min(max(total * part // parts - done, 0), length)


@serial
def adam_part(
    tensors: Any, corrections1: Any, corrections2: Any, settings: Any, decoupled: Any, total: Any, part: Any, parts: Any
) -> None:
    """One step of Adam for one part of all entries; `settings`: lr, β₁, β₂, eps, decay."""
    done = 0
    like = corrections1.dtype.type(0)
    for number in range(tensors.shape[0]):
        row = tensors[number]
        count = row[ENTRIES]
        adam_block(
            vector_at(row[VALUE], count, like), vector_at(row[GRADIENT], count, like),
            vector_at(row[FIRST], count, like), vector_at(row[SECOND], count, like),
            vector_at(row[AGES], row[ENTRY_AGES], np.int32(0)), corrections1, corrections2,
            settings[0], settings[1], settings[2], settings[3], settings[4], decoupled,
            share_of(done, count, total, part, parts), share_of(done, count, total, part + 1, parts),
        )  # fmt: skip
        done += count


@serial
def grow_older(tensors: Any) -> None:
    """Count the step for tensors whose entries share one age."""
    for number in range(tensors.shape[0]):
        row = tensors[number]
        if row[ENTRY_AGES] != row[ENTRIES]:
            vector_at(row[AGES], 1, np.int32(0))[0] += 1


@serial
def adam_serial(tensors: Any, corrections1: Any, corrections2: Any, settings: Any, decoupled: Any, total: Any) -> None:
    """One step of Adam for all tensors (rows of STATE_FIELDS) in one thread."""
    adam_part(tensors, corrections1, corrections2, settings, decoupled, total, 0, 1)
    grow_older(tensors)


@threaded
def adam_threaded(
    tensors: Any, corrections1: Any, corrections2: Any, settings: Any, decoupled: Any, total: Any, threads: Any
) -> None:
    """`adam_serial` on `threads` threads."""
    for task in prange(threads):
        adam_part(tensors, corrections1, corrections2, settings, decoupled, total, task, threads)
    grow_older(tensors)


@serial
def polyak_part(pairs: Any, tau: Any, like: Any, total: Any, part: Any, parts: Any) -> None:
    """Target = (1 - τ) target + τ source for one part of all entries."""
    done = 0
    for number in range(pairs.shape[0]):
        row = pairs[number]
        length = row[LENGTH]
        polyak_block(
            vector_at(row[TARGET], length, like), vector_at(row[SOURCE], length, like), tau,
            share_of(done, length, total, part, parts), share_of(done, length, total, part + 1, parts),
        )  # fmt: skip
        done += length


@threaded
def polyak_threaded(pairs: Any, tau: Any, like: Any, total: Any, threads: Any) -> None:
    """`polyak_part` for all pairs (rows of TARGET, SOURCE, LENGTH), on `threads` threads."""
    for task in prange(threads):
        polyak_part(pairs, tau, like, total, task, threads)
