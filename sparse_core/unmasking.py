"""What becomes of a masked model after training: truly sparse layers, or 2:4 for a GPU's sparse tensor cores."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from sparse_core.conv import SparseConv2d
from sparse_core.layers import SparseLinear, sparse_layers
from sparse_core.topology import Rewiring


def to_sparse(model: nn.Module) -> nn.Module:
    """A copy with the same outputs whose masked layers have the connections that multiply, and no others.

    Make another optimizer for it: its parameters are new, and shorter.
    """
    copy = deepcopy(model)
    for layer in sparse_layers(copy).values():
        if layer.masking is not None:
            left_out = (~layer.masking.kept).nonzero().squeeze(1).cpu()
            layer.masking = None
            places = layer.positions.cpu()
            layer.rewire(Rewiring.of(layer.shape, places, left_out, places[:0]))
    return copy


def to_semi_structured(model: nn.Module, dtype: torch.dtype = torch.float16) -> nn.Module:
    """A copy for inference on the GPU, in evaluation mode, whose sparse layers are 2:4 weights of torch's own format.

    They multiply on sparse tensor cores (`torch.sparse.to_sparse_semi_structured`), which take matrices of multiples
    of 32 × 64.

    Args:
        model: its sparse layers have at most 2 weights in every 4 inputs, as `sr-ste` trains them.
        dtype: float16 or bfloat16, of the whole copy.

    Raises:
        ValueError: for layers that are not 2:4, or of sizes that tensor cores do not take.
        RuntimeError: without an NVIDIA GPU of compute capability 8.0.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"`dtype` must be torch.float16 or torch.bfloat16, got {dtype}")
    for name, layer in sparse_layers(model).items():
        _check(name, layer)
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        raise RuntimeError(
            "2:4 weights multiply on an NVIDIA GPU of compute capability 8.0 and above, and there is none; take "
            "`to_sparse` for the CPU"
        )
    copy = deepcopy(model).to("cuda", dtype).eval()
    for name, layer in sparse_layers(copy).items():
        linear = layer.to_dense()
        packed: Tensor = torch.sparse.to_sparse_semi_structured(linear.weight.detach())
        linear.weight = nn.Parameter(packed, requires_grad=False)
        if not name:
            return linear
        setattr(copy.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], linear)
    return copy


def _check(name: str, layer: SparseLinear) -> None:
    """Raise a `ValueError` unless a layer is a linear one of 2:4 weights in a size that is taken."""
    rows, columns = layer.shape
    if isinstance(layer, SparseConv2d) or rows % 32 or columns % 64:
        raise ValueError(
            f"layer {name!r} must be linear, with outputs a multiple of 32 and inputs of 64, got {rows}×{columns} of "
            f"a {type(layer).__name__}; keep it dense (`dense=…`)"
        )
    present = layer.to_dense().weight.view(-1, 4) != 0
    most = int(present.sum(1).max())
    if most > 2:
        raise ValueError(f"layer {name!r} has {most} weights in some 4 inputs, not 2; train it with topology 'sr-ste'")
