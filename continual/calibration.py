"""Making the logits of tasks that never met comparable, from each task's own data alone."""

from __future__ import annotations

import torch
from torch import Tensor

from continual.networks import SubspaceNetwork

SAMPLES = 1000
"""Samples of a class that are looked at; the mean over them hardly moves with more."""


def calibrate(network: SubspaceNetwork, x: Tensor, y: Tensor, units: Tensor, classes: Tensor) -> None:
    """Scale each unit's movable output connections by 1/√(ḡ‖w‖).

    ḡ is the mean size of the logit's gradient in the input over the class's own samples, ‖w‖ the L2 norm of the
    unit's connections: a unit that answers strongly to any change would outshout those of other tasks. The factors
    go into the connections; nothing is stored. Ours.

    Args:
        network: whose output connections of these units are movable and alone.
        x: the task's samples (n, …).
        y: their labels (n,).
        units: the task's output units, in the order of
        classes: its labels.
    """
    *_, layer = network.chain.values()
    rows = layer.positions // layer.shape[1]
    with torch.no_grad():
        norms = torch.zeros(layer.shape[0], dtype=layer.values.dtype, device=rows.device)
        norms.index_add_(0, rows, layer.values.square()).sqrt_()
    factors = torch.ones_like(norms)
    for unit, label in zip(units.tolist(), classes.tolist(), strict=True):
        slope = _mean_slope(network, x[y == label][:SAMPLES], unit)
        if slope > 0:
            factors[unit] = (slope * norms[unit]).rsqrt()
    with torch.no_grad():
        layer.values.mul_(factors[rows])


def _mean_slope(network: SubspaceNetwork, x: Tensor, unit: int) -> Tensor:
    """Mean over samples of ‖∂logit/∂x‖₂."""
    total = torch.zeros((), device=x.device)
    for batch in x.split(500):
        images = batch.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(images)[:, unit].sum(), images)
        total = total + gradient.flatten(1).norm(dim=1).sum()
    return total / max(len(x), 1)
