"""One training pass of a layer on a given backend, without autograd, to be timed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparse_core.fused_networks import FusedNetworks
from sparse_core.layers import SparseLinear

Pass = Callable[[], tuple[Tensor, Tensor, Tensor]]
"""Outputs, input gradient and value gradient, in arrays that the next call fills again."""


def training_pass(layer: SparseLinear, backend: str, x: Tensor, dy: Tensor) -> Pass:
    """The three products of a layer like this one, for x (in_features, batch) and dy (out_features, batch)."""
    alike = SparseLinear(
        layer.in_features, layer.out_features, topology=layer.topology, backend=backend, dtype=x.dtype,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    network = FusedNetworks([nn.Sequential(alike)], x)
    network.output_gradients.copy_(dy)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        network.forward()
        network.backward((0, layer.in_features))
        network.gradients()
        return network.outputs[0], network.input_gradients[0], network.steps[0][0].weight_gradient

    return run
