"""The `rows` backend: as `gemm`, but no more than `BLOCK_BYTES` of the weight are dense at a time.

For layers whose dense weight would not fit, where compiled kernels cannot run: without Numba, or on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_core.gemm import no_view, refuse_double_backward
from sparse_core.signals import row_blocks

BLOCK_BYTES = 64 << 20  # of the weight that are dense at a time, or one row if that is more


def index(layer: Any) -> dict[str, Tensor]:
    """Flat positions of weights, which are cut into blocks of rows in every pass."""
    each = torch.arange(layer.weights_per_connection, device=layer.columns.device)
    movable, frozen = ((places[:, None] * each.numel() + each).flatten() for places in layer.split_positions())
    return {"rows_positions": movable, "rows_frozen_positions": frozen}


def scratch_bytes(layer: Any) -> tuple[int, int]:
    """One block at a time, of the weight or of its gradient; nothing is kept for the backward pass."""
    size = layer.values.element_size()
    return 0, block_cells(layer.matrix_shape, size) * size


def block_cells(shape: tuple[int, int], element_size: int) -> int:
    """Cells of scratch that a pass over a layer of this shape holds."""
    start, stop = next(row_blocks(shape, BLOCK_BYTES // element_size))
    return (stop - start) * shape[1]


def product(inputs: Tensor, layer: Any) -> Tensor:
    """Dense products of a few rows of the weight at a time: for layers too wide for `gemm`, on any device."""
    output: Tensor = RowsLinear.apply(
        inputs, layer.active_values.flatten(), layer.effective_bias(), layer.rows_positions,
        layer.frozen_values.flatten(), layer.rows_frozen_positions, layer.matrix_shape,
    )  # fmt: skip
    return output


class RowsLinear(torch.autograd.Function):
    """Y = X Wᵀ + b with W scattered from `values` block by block; gradients of X, the values and b."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        values: Tensor,
        bias: Tensor | None,
        positions: Tensor,
        frozen_values: Tensor,
        frozen_positions: Tensor,
        shape: tuple[int, int],
    ) -> Tensor:
        """Inputs (…, in_features) to outputs (…, out_features)."""
        ctx.save_for_backward(inputs, values, positions, frozen_values, frozen_positions)
        ctx.shape = shape
        outputs = [
            F.linear(inputs, weight, None if bias is None else bias[block.start : block.stop])
            for block, weight in _weights(shape, values, positions, frozen_values, frozen_positions)
        ]
        return no_view(outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The three products, block by block; no more of the weight or its gradient exists at a time."""
        refuse_double_backward()
        inputs, values, positions, frozen_values, frozen_positions = ctx.saved_tensors
        x = inputs.to(values.dtype).reshape(-1, ctx.shape[1])
        dy = gradient.to(values.dtype).reshape(-1, ctx.shape[0])
        wants_inputs, wants_values, wants_bias = ctx.needs_input_grad[:3]
        d_inputs = d_values = None
        if wants_inputs:
            dx = _input_gradient(ctx.shape, dy, values, positions, frozen_values, frozen_positions)
            d_inputs = dx.to(inputs.dtype).reshape(inputs.shape)
        if wants_values:
            d_values = _value_gradient(ctx.shape, x, dy, values, positions)
        d_bias = dy.sum(0) if wants_bias else None
        return d_inputs, d_values, d_bias, None, None, None, None


class _Block(NamedTuple):
    """Rows start … stop-1, and the connections first … last-1 in them."""

    start: int
    stop: int
    first: int
    last: int


def _blocks(shape: tuple[int, int], element_size: int, positions: Tensor) -> Iterator[_Block]:
    rows = list(row_blocks(shape, BLOCK_BYTES // element_size))
    edges = torch.tensor([start * shape[1] for start, _ in rows], device=positions.device)
    first = [*torch.searchsorted(positions, edges).tolist(), positions.numel()]
    for (start, stop), (here, following) in zip(rows, pairwise(first), strict=True):
        yield _Block(start, stop, here, following)


def _weights(
    shape: tuple[int, int], values: Tensor, positions: Tensor, frozen_values: Tensor, frozen_positions: Tensor
) -> Iterator[tuple[_Block, Tensor]]:
    """Each block and its dense weight, which holds until the next is asked for."""
    scratch = values.new_zeros(block_cells(shape, values.element_size()))
    parts = [(positions, values)] + ([(frozen_positions, frozen_values)] if frozen_positions.numel() else [])
    cut = [_blocks(shape, values.element_size(), places) for places, _ in parts]
    for blocks in zip(*cut, strict=True):
        start, stop = blocks[0].start, blocks[0].stop
        local = [
            places[block.first : block.last] - start * shape[1]
            for block, (places, _) in zip(blocks, parts, strict=True)
        ]
        for block, (_, own), here in zip(blocks, parts, local, strict=True):
            scratch.index_copy_(0, here, own[block.first : block.last])
        yield blocks[0], scratch[: (stop - start) * shape[1]].view(-1, shape[1])
        for here in local:  # cheaper than zeros everywhere
            scratch.index_fill_(0, here, 0)


def _input_gradient(shape: tuple[int, int], dy: Tensor, values: Tensor, *rest: Tensor) -> Tensor:
    dx = values.new_zeros(dy.shape[0], shape[1])
    for block, weight in _weights(shape, values, *rest):
        dx.addmm_(dy[:, block.start : block.stop], weight)
    return dx


def _value_gradient(shape: tuple[int, int], x: Tensor, dy: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    d_values = torch.empty_like(values)
    scratch = values.new_empty(block_cells(shape, values.element_size()))
    for block in _blocks(shape, values.element_size(), positions):
        cells = (block.stop - block.start) * shape[1]
        torch.mm(dy[:, block.start : block.stop].T, x, out=scratch[:cells].view(-1, shape[1]))
        local = positions[block.first : block.last] - block.start * shape[1]
        d_values[block.first : block.last] = scratch[local]
    return d_values
