"""One training pass of a layer per backend, without autograd, to be timed: its three products on random data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_core import csr
from sparse_core.dense_product import multiply

Pass = Callable[[], tuple[Tensor, Tensor, Tensor]]
"""Outputs, input gradient and value gradient, in arrays that the next call may fill again."""
Trial = Callable[[Any, Tensor, Tensor], Pass]
"""A SparseLinear, x (in_features, batch) and dy (out_features, batch) -> a pass that can be repeated."""


def gemm_pass(layer: Any, x: Tensor, dy: Tensor) -> Pass:
    """Scatter, three dense products, gather."""
    positions, values = _positions(layer), _values(layer)
    weight, gradient = values.new_zeros(layer.shape), values.new_empty(layer.shape)
    y, dx, dvalues = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(values)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        weight.view(-1).index_copy_(0, positions, values)
        outputs, inputs = multiply(weight, x, y), multiply(weight.T, dy, dx)
        torch.index_select(multiply(dy, x.T, gradient).view(-1), 0, positions, out=dvalues)
        return outputs, inputs, dvalues

    return run


def csr_pass(layer: Any, x: Tensor, dy: Tensor) -> Pass:
    """The three compiled kernels."""
    kernels = csr.kernels()
    transpose = csr.index(layer)
    values = _values(layer)
    results = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(values)
    y, dx, dvalues = (tensor.numpy() for tensor in results)
    columns, back = layer.columns.numpy(), csr.unsigned(transpose["transpose_columns"])
    pointer, back_pointer = layer.row_pointer.numpy(), transpose["transpose_pointer"].numpy()
    order = transpose["transpose_order"].numpy()
    ins, outs, weights = x.numpy(), dy.numpy(), values.numpy()
    bias, gate = np.zeros(layer.out_features, ins.dtype), np.empty((0, 0), ins.dtype)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        kernels.forward(y, ins, pointer, columns, weights, bias, False)
        kernels.backward_inputs(dx, outs, back_pointer, back, order, weights, gate)
        kernels.backward_values(dvalues, outs, ins, pointer, columns)
        return results

    return run


def _positions(layer: Any) -> Tensor:
    movable, frozen = layer.split_positions()
    return torch.cat([movable, frozen]).sort().values


def _values(layer: Any) -> Tensor:
    """Values as a new layer has them: which ones does not matter, how many does."""
    bound = layer.in_features**-0.5
    empty = torch.empty(layer.nnz, dtype=layer.values.dtype)
    return empty.uniform_(-bound, bound, generator=torch.Generator().manual_seed(0))


TRIALS: Mapping[str, Trial] = {"gemm": gemm_pass, "csr": csr_pass}
