"""The `csr` backend: compiled kernels that touch connections only, on the CPU.

Inside, arrays are feature-major (features, batch): each connection is one multiply-add over contiguous batch
entries. Outputs lie so in memory, too, so that a chain of such layers never copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_core.gemm import refuse_double_backward

DTYPES = (torch.float32, torch.float64)
WIDEST = 1 << 16
"""Outputs up to which transposed columns take two bytes: a uint16's bits, since torch's files know little of uint16."""


@cache
def kernels() -> ModuleType:
    """The compiled kernels, imported on first use: Numba takes half a second."""
    from sparse_core import kernels as module

    return module


def index(layer: Any) -> dict[str, Tensor]:
    """What the kernels need beyond a layer's own indices: the movable ones if some are frozen, and its transpose.

    That only once it has been asked for: a target network, or a first layer, never needs it. Where a connection has
    several weights, these are columns of their own.
    """
    movable = torch.ones(layer.connections, dtype=torch.bool)
    movable[layer.frozen.cpu().long()] = False
    some = bool(layer.frozen.numel())
    kept = getattr(layer, "transpose_pointer", None)
    asked_for = kept is not None and kept.numel() > 0
    wide = layer.topology.widened(layer.weights_per_connection) if layer.connection_shape else None
    return {
        **(_transpose(layer) if asked_for else _nothing(layer)),
        **({} if wide is None else {"weight_pointer": wide.row_pointer, "weight_columns": wide.columns}),
        "movable": movable.nonzero().squeeze(1) if some else torch.empty(0, dtype=torch.int64),
    }


def transpose(layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Pointer, columns and order of a layer's transpose; worked out the first time, and kept up from then on."""
    if not layer.transpose_pointer.numel():
        with torch.inference_mode(False), torch.no_grad():
            layer.derive(_transpose(layer))
    return layer.transpose_pointer, layer.transpose_columns, layer.transpose_order


def _nothing(layer: Any) -> dict[str, Tensor]:
    """The transpose's place, with the types it will have."""
    columns = torch.int16 if layer.out_features <= WIDEST else torch.int32
    kinds = {"transpose_pointer": torch.int64, "transpose_columns": columns, "transpose_order": torch.int32}
    return {name: torch.empty(0, dtype=kind) for name, kind in kinds.items()}


def _transpose(layer: Any) -> dict[str, Tensor]:
    found = layer.topology.widened(layer.weights_per_connection).transpose
    tensors = found.row_pointer, found.columns, found.permutation
    return {
        name: tensor.to(empty.dtype) for (name, empty), tensor in zip(_nothing(layer).items(), tensors, strict=True)
    }


def product(inputs: Tensor, layer: Any) -> Tensor:
    """Y = X Wᵀ + b that touches connections only: best above about 40 % sparsity, on the CPU."""
    values = layer.active_values
    if values.device.type != "cpu" or inputs.device.type != "cpu":
        device = values.device if values.device.type != "cpu" else inputs.device
        raise ValueError(f"the `csr` backend computes on the CPU only, not on {device}; use `backend='gemm'` there")
    if values.dtype not in DTYPES:
        raise TypeError(f"the `csr` backend takes float32 and float64, not {values.dtype}; use `backend='gemm'`")
    if inputs.dtype != values.dtype:
        if not torch.is_autocast_enabled("cpu"):
            raise RuntimeError(f"inputs must have the layer's dtype {values.dtype}, got {inputs.dtype}")
        inputs = inputs.to(values.dtype)
    if layer.frozen.numel():
        merged = values.new_empty(layer.connections, *layer.connection_shape)
        values = merged.index_copy(0, layer.frozen.long(), layer.frozen_values).index_copy(0, layer.movable, values)
    bias, pointer, columns = layer.effective_bias(), layer.row_pointer, layer.columns
    if layer.connection_shape:
        values, pointer, columns = values.flatten(), layer.weight_pointer, layer.weight_columns
    if not torch.is_grad_enabled():  # spares the autograd node, which costs more than the product at batch 1
        return _multiply(_feature_major(inputs), values, bias, pointer, columns, inputs.shape[:-1])
    if inputs.requires_grad:
        transpose(layer)
    output: Tensor = CsrLinear.apply(
        inputs, values, bias, pointer, columns,
        layer.transpose_pointer, layer.transpose_columns, layer.transpose_order,
    )  # fmt: skip
    return output


class CsrLinear(torch.autograd.Function):
    """Y = X Wᵀ + b with W in compressed rows; gradients of X, the values and b."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        values: Tensor,
        bias: Tensor | None,
        row_pointer: Tensor,
        columns: Tensor,
        transpose_pointer: Tensor,
        transpose_columns: Tensor,
        transpose_order: Tensor,
    ) -> Tensor:
        """Inputs (…, in_features) to outputs (…, out_features)."""
        x = _feature_major(inputs)
        ctx.save_for_backward(
            x, values, row_pointer, columns, transpose_pointer, transpose_columns, transpose_order
        )  # fmt: skip
        ctx.shape = inputs.shape
        return _multiply(x, values, bias, row_pointer, columns, inputs.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The two products that are wanted, and the bias's sum."""
        refuse_double_backward()
        x, values, row_pointer, columns, transpose_pointer, transpose_columns, transpose_order = ctx.saved_tensors
        dy = _feature_major(gradient.to(values.dtype))
        wants_inputs, wants_values, wants_bias = ctx.needs_input_grad[:3]
        d_inputs = d_values = None
        if wants_inputs:
            dx = torch.empty_like(x)
            kernels().backward_inputs(
                _array(dx), _array(dy), _array(transpose_pointer), unsigned(transpose_columns), _array(transpose_order),
                _array(values), _NO_GATE[values.dtype],
            )  # fmt: skip
            d_inputs = dx.T.reshape(ctx.shape)
        if wants_values:
            d_values = torch.empty_like(values)
            kernels().backward_values(_array(d_values), _array(dy), _array(x), _array(row_pointer), _array(columns))
        d_bias = dy.sum(1) if wants_bias else None
        return d_inputs, d_values, d_bias, None, None, None, None, None


_NO_BIAS = {torch.float32: np.empty(0, np.float32), torch.float64: np.empty(0, np.float64)}
_NO_GATE = {torch.float32: np.empty((0, 0), np.float32), torch.float64: np.empty((0, 0), np.float64)}


def _feature_major(tensor: Tensor) -> Tensor:
    """(…, features) as contiguous (features, batch); no copy if it is the transpose of such an array."""
    return tensor.reshape(-1, tensor.shape[-1]).T.contiguous()


def _multiply(
    x: Tensor, values: Tensor, bias: Tensor | None, row_pointer: Tensor, columns: Tensor, leading: Sequence[int]
) -> Tensor:
    """W x + b for x (in_features, batch), outside autograd: (*leading, out_features), feature-major in memory."""
    features = row_pointer.numel() - 1
    strides: list[int] = []
    step = 1
    for size in reversed(leading):
        strides.insert(0, step)
        step *= size
    # Not a transposed view of an array: nobody may change such a view in place where an autograd node returns it.
    outputs = x.new_empty_strided((*leading, features), (*strides, step))
    y = outputs.T if len(leading) == 1 else outputs.movedim(-1, 0).reshape(features, -1)
    biases = _NO_BIAS[values.dtype] if bias is None else _array(bias)
    kernels().forward(_array(y), _array(x), _array(row_pointer), _array(columns), _array(values), biases, False)
    return outputs


def unsigned(columns: Tensor) -> Any:
    """Transposed columns as the kernels take them: uint16 or int32."""
    array = columns.numpy()
    return array.view(np.uint16) if array.itemsize == 2 else array


def _array(tensor: Tensor) -> Any:
    """A NumPy view; detaching costs as much again, so only where it must."""
    return (tensor.detach() if tensor.requires_grad else tensor).numpy()
