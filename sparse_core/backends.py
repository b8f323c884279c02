"""What multiplies: one entry per backend, chosen per layer; parameters are the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparse_core import csr, rows
from sparse_core.gemm import GemmLinear, convolve
from sparse_core.registry import Registry


@dataclass(frozen=True)
class Backend:
    """How one backend multiplies, and the indices it derives from a layer's connectivity for that."""

    product: Callable[[Tensor, Any], Tensor]
    """Inputs (…, in_features), a SparseLinear -> (…, out_features)."""
    index: Callable[[Any], dict[str, Tensor]]
    """A SparseLinear -> index tensors by name; asked again whenever connections move or freeze."""
    scratch: Callable[[Any], tuple[int, int]] = lambda layer: (0, 0)
    """A SparseLinear -> bytes of dense scratch that it holds from forward to backward, and more while in its pass."""
    convolve: Callable[[Tensor, Any], Tensor] | None = None
    """Images (B, C, H, W), a SparseConv2d -> its outputs; without it, patches of the images go to `product`."""
    traceable: bool = False
    """Whether torch's compiler may look into `product`; else it calls it as it is."""


BACKENDS: Registry[Backend] = Registry("backend")


def gemm(inputs: Tensor, layer: Any) -> Tensor:
    """One dense product through a scratch matrix: best at low sparsity and on a GPU."""
    output: Tensor = GemmLinear.apply(
        inputs, layer.active_values, layer.effective_bias(), layer.gemm_positions,
        layer.frozen_values, layer.gemm_frozen_positions, layer.shape,
    )  # fmt: skip
    return output


def gemm_index(layer: Any) -> dict[str, Tensor]:
    """Flat positions, which scatter and gather use in every pass."""
    movable, frozen = layer.split_positions()
    return {"gemm_positions": movable, "gemm_frozen_positions": frozen}


def gemm_scratch_bytes(layer: Any) -> tuple[int, int]:
    """The dense weight, which every layer keeps until its backward pass, where a dense gradient joins it."""
    weight = layer.cells * layer.values.element_size()
    return weight, weight


BACKENDS.add("gemm", Backend(gemm, gemm_index, gemm_scratch_bytes, convolve, traceable=True))
BACKENDS.add("csr", Backend(csr.product, csr.index))
BACKENDS.add("rows", Backend(rows.product, rows.index, rows.scratch_bytes))
