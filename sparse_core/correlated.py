"""The initial topology of CHT: connections between neurons whose inputs are correlated in the data."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_core.initial_topologies import Shape, initial_topology
from sparse_core.signals import streamed_largest


class Correlated:
    """Connections where |correlation| of input features is largest (CSTI of CHT: Zhang et al., ICLR 2024).

    Output o of a layer stands for an input feature, as does input i; on a layer of another width features come several
    times, or some of them, evenly. A feature's correlation with itself counts as zero, and so does that of a constant
    one. Nothing is drawn; ties go to the lowest position.

    Args:
        inputs: samples that the network will see, (n, features), n ≥ 2.

    Raises:
        ValueError: for inputs of another shape, or that are not finite.
    """

    def __init__(self, inputs: Tensor) -> None:
        if inputs.dim() != 2 or len(inputs) < 2 or not inputs.shape[1] or not bool(torch.isfinite(inputs).all()):
            raise ValueError(
                "`Correlated` wants finite inputs (samples, features) with at least two samples, got shape "
                f"{tuple(inputs.shape)}; flatten images, and leave out what is not a number"
            )
        inputs = inputs.detach().cpu().to(torch.float32 if inputs.dtype != torch.float64 else torch.float64)
        centred = inputs - inputs.mean(0)
        lengths = centred.norm(dim=0)
        varies = lengths > 1e-6 * inputs.abs().amax(0) * len(inputs) ** 0.5
        self._standard = torch.where(varies, centred / lengths, 0.0)  # (n, features), columns of length one

    def __call__(self, shape: Shape, count: int, generator: torch.Generator) -> Tensor:
        """The `count` positions with the largest |correlation|, ascending; O(count + block) memory besides the data."""
        features = self._standard.shape[1]
        of_outputs, of_inputs = (torch.arange(size) * features // size for size in shape)

        def rows(start: int, stop: int) -> Tensor:
            block = (self._standard[:, of_outputs[start:stop]].T @ self._standard)[:, of_inputs]
            return block.masked_fill_(of_outputs[start:stop, None] == of_inputs, 0.0)

        return streamed_largest(shape, count, torch.empty(0, dtype=torch.int64), rows)

    def __repr__(self) -> str:
        return f"Correlated(inputs of shape {tuple(self._standard.shape)})"


@initial_topology("correlated", reads_inputs=True)
def correlated(shape: Shape, count: int, generator: torch.Generator) -> Tensor:
    """Where input features are correlated in the data (CSTI of CHT); in Python `Correlated(inputs)`."""
    raise RuntimeError("`correlated` needs inputs: give `Correlated(inputs)`")
