"""SR-STE: n of every m weights multiply, all of them learn, the others shrink (Zhou et al. 2021, arXiv:2102.04010)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from sparse_core.maskings import Masking, masking
from sparse_core.presets import PRESETS, Preset


def sparsity_of(n: int, m: int, decay: float) -> float:
    """Of every masked layer: 1 - n/m."""
    if not 1 <= n < m:
        raise ValueError(f"`n` of `m` weights multiply, 1 ≤ n < m; got n={n}, m={m}")
    return 1 - n / m


def group_of(n: int, m: int, decay: float) -> int:
    """As many inputs belong together."""
    return m


@masking("sr-ste", sparsity=sparsity_of, group=group_of)
class SrSte(Masking):
    """Multiply the n largest of every m weights that lie next to each other along an output's inputs.

    Gradients pass straight through to all weights, and λ w joins them where a weight does not multiply, so that it
    shrinks and seldom changes sides. In a convolution the m weights are of m input channels at one place of the
    kernel. Equal weights go by index.

    Args:
        layer: see `Masking`.
        count: as many as n of m are; nothing else can be.
        n: weights of a group that multiply.
        m: weights of a group.
        decay: λ.
    """

    def __init__(self, layer: Any, count: int, *, n: int = 2, m: int = 4, decay: float = 2e-4) -> None:
        super().__init__(layer, count)
        sparsity_of(n, m, decay)
        if not decay >= 0:
            raise ValueError(f"`decay` must not be negative, got {decay!r}")
        self.n, self.m, self.decay = n, m, decay
        self._taps = math.prod(getattr(layer, "kernel_size", ()))
        inputs = self.shape[1] // self._taps
        if inputs % m or count != layer.cells // m * n:
            raise ValueError(
                f"{n} of every {m} weights need inputs that {m} divides, and are {layer.cells * n / m:g} of "
                f"{layer.cells}; got {inputs} inputs and a count of {count}"
            )
        self.refresh(layer.values.detach())

    def refresh(self, values: Tensor) -> None:
        """The n largest of every group."""
        groups = self._groups(values.abs())
        order = groups.sort(dim=-1, descending=True, stable=True).indices
        self._groups(self.kept.fill_(False)).scatter_(-1, order[..., : self.n], True)

    def _groups(self, values: Tensor) -> Tensor:
        """A view of values as groups, (outputs, inputs / m, kernel places, m)."""
        return values.view(self.shape[0], -1, self.m, self._taps).transpose(2, 3)

    def add_gradients(self, values: Tensor, gradient: Tensor, wide: Tensor) -> None:
        """λ w where w does not multiply."""
        gradient.addcmul_(values, ~self.kept, value=self.decay)


PRESETS.add(
    "sr-ste",
    Preset(
        "of every m weights multiply the n largest, train all, 2 of 4 if nothing else is said (arXiv:2102.04010)",
        masking="sr-ste", begin=0.0, period=1, own_period=True, dense_by_nature="keeps and trains every weight",
    ),
)  # fmt: skip
