"""What multiplies: one entry per backend, chosen per layer; parameters are the same for all.

The compiled `csr` backend takes its place here as one more entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sparse_core.gemm import GemmLinear
from sparse_core.registry import Registry

Product = Callable[[Tensor, Any], Tensor]  # inputs (…, in_features), a SparseLinear -> (…, out_features)

BACKENDS: Registry[Product] = Registry("backend")


@BACKENDS.register("gemm")
def gemm(inputs: Tensor, layer: Any) -> Tensor:
    """One dense product through a scratch matrix: best below about 65 % sparsity and on a GPU."""
    output: Tensor = GemmLinear.apply(
        inputs, layer.values, layer.effective_bias(), layer.positions,
        layer.frozen_values, layer.frozen_positions, layer.shape, layer.capture,
    )  # fmt: skip
    return output
