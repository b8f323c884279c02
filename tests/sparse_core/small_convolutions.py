"""Small sparse convolutions."""

import torch
from torch import Tensor

from sparse_core import SparseConv2d

BACKENDS = ["gemm", "csr", "rows"]
UNITS = ["weight", "kernel"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conv_of(unit: str = "weight", frozen: int = 0, seed: int = 0, **options) -> SparseConv2d:
    """3 → 4 channels, 3×2 kernels, float64, half of the connections; the first `frozen` and one bias frozen."""
    options = {"kernel_size": (3, 2), "sparsity": 0.5, "dtype": torch.float64, **options}
    conv = SparseConv2d(3, 4, unit=unit, generator=seeded(seed), **options)
    if frozen:
        conv.freeze(conv.positions[:frozen], torch.tensor([0]))
    return conv


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def dense_values(conv: SparseConv2d, tensor: Tensor, positions: Tensor) -> Tensor:
    """A tensor (n, …) of the connections at these positions as one like the dense weight, zero elsewhere."""
    dense = torch.zeros(conv.shape[0] * conv.shape[1], *conv.connection_shape, dtype=tensor.dtype)
    dense[positions] = tensor
    return dense.view(conv.out_channels, conv.in_channels, *conv.kernel_size)
