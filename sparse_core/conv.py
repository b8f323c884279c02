"""Convolutions that own their connections: single weights, or whole kernels from one channel to another."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from sparse_core.backends import BACKENDS
from sparse_core.layers import SparseLinear
from sparse_core.signals import BLOCK_CELLS, Pairs, observed
from sparse_core.topology import Topology

Unit = Literal["weight", "kernel"]
Pair = int | tuple[int, int]


class SparseConv2d(SparseLinear):
    """A convolution that stores only its connections; called like `nn.Conv2d`, images (B, C, H, W) or (C, H, W).

    What one connection is, `unit` says:

    - `"weight"`: one weight, as in RigL (arXiv:1911.11134). The topology has shape (out_channels, in_channels·kh·kw),
      in the order of `nn.Conv2d.weight`, and `values` shape (n,).
    - `"kernel"`: a whole kh × kw kernel from one input channel to one output channel, as in SpaceNet
      (arXiv:2007.07617). The topology has shape (out_channels, in_channels), and `values` shape (n, kh·kw).

    `nnz` and `sparsity` count weights for both. Otherwise it is a `SparseLinear`: of its connections, it moves and
    freezes as one does; of a convolution, it has no dense weight and no dense gradient but as scratch within a pass.
    With `gemm`, torch convolves with the scattered kernels. Other backends multiply patches of the images, which
    take kh·kw times the memory of the inputs until the backward pass.

    Args:
        in_channels: of the images.
        out_channels: of the outputs.
        kernel_size: height and width, or one number for both; so are the next three.
        stride: steps between two outputs.
        padding: zeros around the images.
        dilation: steps between two weights of a kernel.
        bias: whether output channels have a bias (dense: one each).
        unit: what a connection is.
        sparsity: share of connections left out, in [0, 1); the topology is drawn uniformly. Or give
        topology: the connectivity itself, of the shape that `unit` says.
        init: see `SparseLinear`.
        generator: see `SparseLinear`.
        backend: see `SparseLinear`; `"auto"` is `"gemm"`.
        device: see `SparseLinear`.
        dtype: see `SparseLinear`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        bias: bool = True,
        *,
        unit: Unit = "weight",
        sparsity: float | None = None,
        topology: Topology | None = None,
        init: str = "torch",
        generator: torch.Generator | None = None,
        backend: str = "gemm",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride, self.dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
        self.padding = _pair("padding", padding, 0)
        if unit not in ("weight", "kernel"):
            raise ValueError(f"`unit` must be 'weight' or 'kernel', got {unit!r}")
        self.unit: Unit = unit
        taps = math.prod(self.kernel_size)
        columns, each = (in_channels * taps, ()) if unit == "weight" else (in_channels, (taps,))
        self._set_up(
            (out_channels, columns), each, bias, sparsity=sparsity, topology=topology, init=init,
            generator=generator, backend=backend, device=device, dtype=dtype,
        )  # fmt: skip

    @classmethod
    def from_dense(  # type: ignore[override]  # of a convolution, as its counterpart is of a linear layer
        cls, conv: nn.Conv2d, topology: Topology, *, unit: Unit = "weight", init: str = "torch", backend: str = "gemm"
    ) -> SparseConv2d:
        """The connections of a dense convolution at `topology`, with its weights (scaled if `init` says so) and biases.

        Raises:
            ValueError: for a convolution that has no sparse counterpart (see `reason_against`).
        """
        reason = reason_against(conv)
        if reason:
            raise ValueError(f"this convolution cannot be made sparse: {reason}")
        layer = cls(
            conv.in_channels, conv.out_channels, _two(conv.kernel_size), _two(conv.stride), _zeros_around(conv),
            _two(conv.dilation), conv.bias is not None, unit=unit, topology=topology, backend=backend,
            generator=torch.Generator(), device=conv.weight.device, dtype=conv.weight.dtype,
        )  # fmt: skip
        layer._take_over(conv, topology, init)
        return layer

    def forward(self, inputs: Tensor) -> Tensor:
        """Images (B, C, H, W) or (C, H, W) to outputs (B, out_channels, H', W') or (out_channels, H', W')."""
        images = inputs if inputs.dim() == 4 else inputs[None]
        if images.dim() != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"inputs must be images (B, {self.in_channels}, H, W) or ({self.in_channels}, H, W), "
                f"got shape {tuple(inputs.shape)}"
            )
        size = self.output_size(images.shape[2], images.shape[3])
        outputs = self._by_patches(images, size) if self._convolve is None else self._convolve(images, self)
        if self.capture is not None:
            outputs = observed(outputs, images, self.capture, self.values.dtype)
        return outputs if inputs.dim() == 4 else outputs[0]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the outputs for images of this size."""
        span = [(kernel - 1) * step + 1 for kernel, step in zip(self.kernel_size, self.dilation, strict=True)]
        room = [size + 2 * zeros for size, zeros in zip((height, width), self.padding, strict=True)]
        if room[0] < span[0] or room[1] < span[1]:
            raise ValueError(
                f"images of {height}×{width} are too small: with padding they are {room[0]}×{room[1]}, "
                f"and a kernel spans {span[0]}×{span[1]}; give larger images or more padding"
            )
        return (room[0] - span[0]) // self.stride[0] + 1, (room[1] - span[1]) // self.stride[1] + 1

    def _by_patches(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """One matrix product of the patches that the kernel sees, (B·H'·W', in_channels·kh·kw)."""
        patches = F.unfold(images, self.kernel_size, self.dilation, self.padding, self.stride)
        # Transposed in memory: `csr` takes features first, and gives them so.
        features = patches.transpose(0, 1).reshape(self.matrix_shape[1], -1).T
        outputs = self._multiply(features)
        return outputs.T.reshape(self.out_channels, images.shape[0], *size).transpose(0, 1)

    def _gradient_rows(self, pairs: Pairs, start: int, stop: int) -> Tensor:
        """As `SparseLinear`; of images, and for whole kernels the L2 norm of each kernel's dense gradient.

        Its scratch is one patch matrix per image at most, as in torch's own backward pass.
        """
        size = (stop - start, self.in_channels, *self.kernel_size)
        gradients = [
            conv2d_weight(images, size, given[:, start:stop], self.stride, self.padding, self.dilation)
            for images, given in pairs
        ]
        dense = torch.stack(gradients).sum(0)
        return dense.flatten(1) if self.unit == "weight" else dense.flatten(2).norm(dim=2)

    def _gradient_at(self, pairs: Pairs, positions: Tensor, in_features: int) -> Tensor:
        """As `SparseLinear`, from rows of those outputs that are asked for, a block at a time: kernels are small."""
        found = positions.new_zeros(positions.numel(), dtype=self.values.dtype).to(pairs[0][0].device)
        outputs = positions // in_features
        for few in outputs.unique().split(max(1, BLOCK_CELLS // self.matrix_shape[1])):
            some = few.to(found.device)
            chosen = [(images, given.index_select(1, some)) for images, given in pairs]
            inside = torch.isin(outputs, few).nonzero().squeeze(1)
            rows = self._gradient_rows(chosen, 0, few.numel())
            at = torch.searchsorted(few, outputs[inside]), positions[inside] % in_features
            found[inside] = rows[at[0].to(rows.device), at[1].to(rows.device)]
        return found

    @torch.no_grad()
    def to_dense(self) -> nn.Conv2d:  # type: ignore[override]  # of a convolution, as its counterpart is of a linear layer
        """A dense `nn.Conv2d` copy with zeros where there is no connection; draws nothing."""
        conv = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            bias=self.bias is not None, device="meta", dtype=self.values.dtype,
        ).to_empty(device=self.values.device)  # fmt: skip
        self._hand_over(conv)
        return conv

    def _bind(self, backend: str) -> None:
        super()._bind(backend)
        self._convolve = BACKENDS[backend].convolve

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_convolve": None}

    def extra_repr(self) -> str:
        """Sizes, exact count, sparsity and backend."""
        frozen = f", frozen={self.frozen.numel()}" if self.frozen.numel() else ""
        frozen += f", multiplied={self.multiplied}" if self.masking is not None else ""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, bias={self.bias is not None}, unit={self.unit}, "
            f"nnz={self.nnz}, sparsity={self.sparsity:.4f}{frozen}, backend={self.backend}"
        )


def reason_against(conv: nn.Conv2d) -> str | None:
    """Why a convolution has no sparse counterpart, or None where it has one."""
    if conv.groups != 1:
        return f"it has {conv.groups} groups; only ungrouped ones have a sparse counterpart"
    if conv.padding_mode != "zeros":
        return f"its padding is {conv.padding_mode!r}; only zeros have a sparse counterpart"
    if conv.padding == "same" and any(step * (size - 1) % 2 for step, size in _spans(conv)):
        return "its padding 'same' is uneven for this kernel; pad before it"
    return None


def _zeros_around(conv: nn.Conv2d) -> tuple[int, int]:
    """A convolution's padding in numbers."""
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        high, wide = (step * (size - 1) // 2 for step, size in _spans(conv))
        return high, wide
    assert not isinstance(conv.padding, str)
    return _two(conv.padding)


def _spans(conv: nn.Conv2d) -> list[tuple[int, int]]:
    return list(zip(conv.dilation, conv.kernel_size, strict=True))


def _two(numbers: tuple[int, ...]) -> tuple[int, int]:
    high, wide = numbers
    return high, wide


def _pair(name: str, given: Pair, least: int) -> tuple[int, int]:
    """One number or two as two, or a `ValueError`."""
    both = tuple(given) if isinstance(given, tuple | list) else (given, given)
    if len(both) != 2 or not all(isinstance(number, int) and number >= least for number in both):
        raise ValueError(f"`{name}` must be an integer ≥ {least} or two of them (height, width), got {given!r}")
    return both
