"""The `gemm` backend: scatter the values into a scratch matrix, one dense product, gather the gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_core.dense_product import linear, multiply


def refuse_double_backward() -> None:
    """Raise where a backward pass is itself recorded, since its products have no derivative here."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "a sparse layer can be differentiated once only, but this backward pass was asked for with "
            "`create_graph=True`; use `layer.to_dense()` for a dense copy that supports double backward"
        )


def no_view(tensor: Tensor) -> Tensor:
    """The same numbers in a tensor that is not a view of another: autograd lets nobody change a node's view in place.

    So what follows a layer may (`nn.ReLU(inplace=True)`, `y += x`), as after torch's own layers.
    """
    if torch.compiler.is_compiling() or not tensor._is_view():
        return tensor
    fresh = tensor.new_empty(0)
    return fresh.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


class GemmLinear(torch.autograd.Function):
    """Y = X Wᵀ + b with W scattered from `values`; gradients of X, the values and b."""

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
        weight = scattered(shape, values, positions, frozen_values, frozen_positions).view(shape[0], -1)
        ctx.save_for_backward(inputs, weight, positions)
        ctx.connection_shape = values.shape[1:]
        return no_view(linear(inputs, weight, bias))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The three products; the dense weight gradient is scratch and never leaves this function."""
        refuse_double_backward()
        inputs, weight, positions = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)
        flat_gradient = gradient.reshape(-1, weight.shape[0])
        flat_inputs = inputs.to(weight.dtype).reshape(-1, weight.shape[1])
        wants_inputs, wants_values, wants_bias = ctx.needs_input_grad[:3]
        d_inputs = multiply(flat_gradient, weight).view(inputs.shape).to(inputs.dtype) if wants_inputs else None
        d_values = None
        if wants_values:
            d_values = multiply(flat_gradient.T, flat_inputs).view(-1, *ctx.connection_shape)[positions]
        d_bias = flat_gradient.sum(0) if wants_bias else None
        return d_inputs, d_values, d_bias, None, None, None, None


def scattered(
    shape: tuple[int, int], values: Tensor, positions: Tensor, frozen_values: Tensor, frozen_positions: Tensor
) -> Tensor:
    """All weights, (rows · columns, …) for a topology of this shape and values (n, …); zero without a connection."""
    weights = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
    if frozen_positions.numel():
        weights.index_copy_(0, frozen_positions, frozen_values)
    return weights.index_copy_(0, positions, values)


def convolve(inputs: Tensor, layer: Any) -> Tensor:
    """Torch's own convolution with the scattered kernels, differentiated by autograd: no patches.

    The dense gradient is a temporary of the backward pass, which gathers from it at the connections.
    """
    weights = scattered(
        layer.shape, layer.active_values, layer.gemm_positions, layer.frozen_values, layer.gemm_frozen_positions
    )
    kernels = weights.view(layer.out_channels, layer.in_channels, *layer.kernel_size)
    return F.conv2d(inputs, kernels, layer.effective_bias(), layer.stride, layer.padding, layer.dilation)
