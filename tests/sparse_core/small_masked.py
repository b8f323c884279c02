"""Layers that keep more weights than they multiply."""

from typing import Any

import torch

from sparse_core import MASKINGS, SparseLinear


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_of(weights: list[list[float]], count: int, name: str, bias: bool = False, backend: str = "gemm") -> Any:
    """A masked layer with these weights (out, in), in float64."""
    matrix = torch.tensor(weights, dtype=torch.float64)
    layer = SparseLinear(
        matrix.shape[1], matrix.shape[0], bias, sparsity=0.0, generator=seeded(), dtype=torch.float64, backend=backend
    )
    with torch.no_grad():
        layer.values.copy_(matrix.flatten())
    layer.masking = MASKINGS[name].choose(layer, count)
    return layer
