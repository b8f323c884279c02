"""The `gemm` backend: scatter the values into a scratch matrix, one dense product, gather the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_core.dense_product import linear, multiply
from sparse_core.signals import Capture


def refuse_double_backward() -> None:
    """Raise where a backward pass is itself recorded, since its products have no derivative here."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "a sparse layer can be differentiated once only, but this backward pass was asked for with "
            "`create_graph=True`; use `layer.to_dense()` for a dense copy that supports double backward"
        )


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
        capture: Capture | None,
    ) -> Tensor:
        """Inputs (…, in_features) to outputs (…, out_features)."""
        weight = values.new_zeros(shape[0] * shape[1]).index_copy_(0, positions, values)
        if frozen_positions.numel():
            weight.index_copy_(0, frozen_positions, frozen_values)
        weight = weight.view(shape)
        ctx.save_for_backward(inputs, weight, positions)
        ctx.capture = capture
        return linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The three products; the dense weight gradient is scratch and never leaves this function."""
        refuse_double_backward()
        inputs, weight, positions = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)
        flat_gradient = gradient.reshape(-1, weight.shape[0])
        flat_inputs = inputs.to(weight.dtype).reshape(-1, weight.shape[1])
        if ctx.capture is not None:
            ctx.capture.add(flat_inputs, flat_gradient)
        wants_inputs, wants_values, wants_bias = ctx.needs_input_grad[:3]
        d_inputs = multiply(flat_gradient, weight).view(inputs.shape).to(inputs.dtype) if wants_inputs else None
        d_values = multiply(flat_gradient.T, flat_inputs).flatten()[positions] if wants_values else None
        d_bias = flat_gradient.sum(0) if wants_bias else None
        return d_inputs, d_values, d_bias, None, None, None, None, None
