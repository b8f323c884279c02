"""Optimizer state that follows its connections, for any elementwise torch optimizer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparse_core.adam import Adam
from sparse_core.layers import SparseLinear
from sparse_core.topology import Rewiring

# One entry of these optimizers' update depends on that entry alone, so state can move entry by entry.
ELEMENTWISE = (
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax,
    torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.ASGD, torch.optim.Rprop, Adam,
)  # fmt: skip


def check_elementwise(optimizer: Optimizer) -> None:
    """Raise a `TypeError` unless the optimizer updates every entry by that entry's own state.

    An optimizer of your own says so with a class attribute `elementwise = True`.
    """
    if isinstance(optimizer, ELEMENTWISE) or getattr(optimizer, "elementwise", False):
        return
    known = ", ".join(sorted({kind.__name__ for kind in ELEMENTWISE}))
    raise TypeError(
        f"{type(optimizer).__name__} is not known to be elementwise, so its state cannot follow connections that move; "
        f"use one of {known}, or set `elementwise = True` on your own elementwise optimizer"
    )


def carry_state(optimizer: Optimizer, parameter: Tensor, rewiring: Rewiring) -> None:
    """Move every per-connection state tensor of `parameter` along `rewiring`; new connections get fresh state.

    Such tensors are found by shape (that of the parameter before the change, connections first), not by name.
    """
    if isinstance(optimizer, Adam):
        optimizer.carry(parameter, rewiring)
    state = optimizer.state.get(parameter, {})
    before = rewiring.before.numel()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.dim() == 0:
            continue
        if tensor.shape != (before, *parameter.shape[1:]):
            each = f" of {tuple(parameter.shape[1:])} weights" if parameter.dim() > 1 else ""
            raise TypeError(
                f"state {name!r} of {type(optimizer).__name__} has shape {tuple(tensor.shape)} for {before} "
                f"connections{each}: it is not elementwise and cannot follow connections that move"
            )
        carried = rewiring.carry(tensor, _fresh(optimizer, parameter, name))
        if carried.shape == tensor.shape:
            tensor.copy_(carried)
        else:
            state[name] = carried


def _fresh(optimizer: Optimizer, parameter: Tensor, name: str) -> float:
    """What a new parameter's state would start at."""
    group = next(group for group in optimizer.param_groups if any(parameter is other for other in group["params"]))
    if isinstance(optimizer, torch.optim.Rprop) and name == "step_size":
        return float(group["lr"])
    if isinstance(optimizer, torch.optim.Adagrad) and name == "sum":
        return float(group["initial_accumulator_value"])
    return 0.0


def check_held(layers: Mapping[str, SparseLinear], optimizer: Optimizer) -> None:
    """Raise a `ValueError` where the optimizer does not hold the values of a layer that is trained."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    absent = [name for name, layer in layers.items() if not {id(p) for p in _learning(layer)} <= held]
    if absent:
        raise ValueError(
            f"the optimizer does not hold the values of {', '.join(map(repr, absent))}; make it after the layers, "
            "or call `requires_grad_(False)` on values that are not trained, whose connections stay, too"
        )


def _learning(layer: SparseLinear) -> list[Tensor]:
    """What a layer's connections learn: values, and thresholds of a masking."""
    own = [layer.values, *([] if layer.masking is None else layer.masking.parameters())]
    return [parameter for parameter in own if parameter.requires_grad]


def warm_up(optimizer: Optimizer, steps: int) -> None:
    """Let new connections' learning rates rise over so many steps; a `TypeError` for another optimizer than ours."""
    if not isinstance(optimizer, Adam):
        raise TypeError(
            f"a warm-up of new connections needs `sparse_core.Adam`, which knows their age, got "
            f"{type(optimizer).__name__}; take that, or give `warmup=0`"
        )
    for group in optimizer.param_groups:
        group["warmup"] = steps


def share_age(optimizer: Optimizer) -> None:
    """Let our Adam correct its bias by one age a tensor, as others do in any case."""
    if isinstance(optimizer, Adam):
        for group in optimizer.param_groups:
            group["ages"] = False


def rate_of(optimizer: Optimizer, layer: SparseLinear) -> float:
    """The learning rate of a layer's values."""
    groups = optimizer.param_groups
    return float(next(group["lr"] for group in groups if any(layer.values is each for each in group["params"])))
