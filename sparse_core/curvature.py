"""How the gradient's norm depends on each connection: Hessian times gradient, from three looks at the gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparse_core.layers import SparseLinear

Closure = Callable[[], Any]
"""Works out the loss of the current batch anew and leaves its gradients in `.grad`, as torch's LBFGS wants it."""

_REACH = 1e-3  # length of the step along the gradient, of the length of the weights


def flow_shares(layers: Mapping[str, SparseLinear], closure: Closure) -> dict[str, Tensor]:
    """θ ⊙ Hg of the movable connections, (n,) on the CPU: what the norm of the gradient g owes to each of them.

    H is the Hessian in the values of these layers, Hg a central difference of gradients along g, so that any backend
    will do and nothing is differentiated twice. Of a kernel the sum over its weights. The values come back bit for
    bit; `closure` is called three times. All zero where the gradient is. (GraSP: Wang et al. 2020, arXiv:2002.07376.)
    """
    kept = {name: layer.values.detach().clone() for name, layer in layers.items()}
    gradient = _gradients(layers, closure)
    length = _length(gradient)
    if length == 0:
        return {name: torch.zeros(layer.values.shape[0]) for name, layer in layers.items()}
    reach = _REACH * _length(kept) / length
    ends = []
    try:
        for step in (reach, -reach):
            with torch.no_grad():
                for name, layer in layers.items():
                    layer.values.copy_(kept[name] + step * gradient[name])
            ends.append(_gradients(layers, closure))
    finally:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.values.copy_(kept[name])
    shares = {name: kept[name] * (ends[0][name] - ends[1][name]) / (2 * reach) for name in layers}
    return {name: share.flatten(1).sum(1).cpu() if share.dim() > 1 else share.cpu() for name, share in shares.items()}


def _gradients(layers: Mapping[str, SparseLinear], closure: Closure) -> dict[str, Tensor]:
    for layer in layers.values():
        layer.values.grad = None
    with torch.enable_grad():
        closure()
    absent = [name for name, layer in layers.items() if layer.values.grad is None]
    if absent:
        raise ValueError(
            f"after `closure()` the values of {', '.join(map(repr, absent))} have no gradient; let it work out the "
            "loss with this model and call `backward()`"
        )
    return {name: layer.values.grad.clone() for name, layer in layers.items() if layer.values.grad is not None}


def _length(parts: Mapping[str, Tensor]) -> float:
    return float(torch.stack([part.double().square().sum().cpu() for part in parts.values()]).sum().sqrt())
