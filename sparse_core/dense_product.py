"""Dense products by the faster of the two libraries that torch brings: oneDNN for large ones, else its BLAS.

On AMD processors with AVX-512 torch's BLAS (MKL) leaves the wide vectors unused and is half as fast as oneDNN, which
torch's own compiler calls for this reason and others through the operator below. Without AVX-512 MKL is the faster one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LARGE = 1 << 22  # multiplications from which oneDNN wins, whose call takes 15 µs; below about a third of them it loses

_ONEDNN: Any = None
if torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512":
    _ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def by_onednn(left: Tensor, right: Tensor) -> bool:
    """Whether `multiply` gives left @ right to oneDNN: large ones, float32, on the CPU."""
    return (
        _ONEDNN is not None
        and left.shape[0] * left.shape[1] * right.shape[1] >= LARGE
        and left.dtype == right.dtype == torch.float32
        and left.device.type == "cpu"
        and not torch.compiler.is_compiling()
    )


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Left @ right for matrices, outside autograd."""
    if by_onednn(left, right):
        product: Tensor = _ONEDNN(left, right.T, None, "none", [], "")
        return product
    return torch.mm(left, right)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `torch.nn.functional.linear`, outside autograd."""
    flat = inputs.reshape(-1, inputs.shape[-1])
    if not by_onednn(flat, weight.T):
        return F.linear(inputs, weight, bias)
    product: Tensor = _ONEDNN(flat, weight, bias, "none", [], "")
    return product.view(*inputs.shape[:-1], weight.shape[0])
