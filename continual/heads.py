"""What a task's training asks of the output layer: how the units of other classes take part in the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sparse_core.registry import Registry

Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Targets:
    """One mini-batch as a head sees it."""

    logits: Tensor  # (B, units)
    units: Tensor  # (k,) the units of the current task, ascending
    local: Tensor  # (B,) index of each sample's unit among `units`; -1 for a sample of no class (`sigmoid` only)
    bias: Tensor  # (units,) biases of the output layer


Head = Callable[[Targets, Criterion], Tensor]


def places(units: Tensor, wanted: Tensor, instead: str) -> Tensor:
    """Index of each sample's unit (B,) among `units` (ascending); -1 stays, for a sample of no class.

    A `ValueError` for a unit that is not there, which says what to do `instead`.
    """
    local = torch.searchsorted(units, wanted).clamp_(max=units.numel() - 1)
    strays = (units[local] != wanted) & (wanted >= 0)
    if bool(strays.any()):
        raise ValueError(
            f"a batch holds a sample for output {int(wanted[strays][0])}, which is not of the current task "
            f"({units.tolist()}); {instead}"
        )
    return torch.where(wanted < 0, wanted, local)


HEADS: Registry[Head] = Registry("head")


@HEADS.register("current")
def current_classes(targets: Targets, criterion: Criterion) -> Tensor:
    """The loss over the current task's classes only: other units neither help nor suffer."""
    return criterion(targets.logits[:, targets.units], targets.local)


@HEADS.register("full")
def all_classes(targets: Targets, criterion: Criterion) -> Tensor:
    """The loss over every class: what plain fine-tuning does, and why it forgets."""
    return criterion(targets.logits, targets.units[targets.local])


@HEADS.register("zeroed")
def other_rows_zeroed(targets: Targets, criterion: Criterion) -> Tensor:
    """The loss over every class, other classes' rows counting as zero, so that only their biases stand against us.

    As in the SpaceNet release: new logits are pushed above constants, which keeps tasks comparable.
    """
    own = torch.zeros(targets.logits.shape[1], dtype=torch.bool, device=targets.logits.device)
    own[targets.units] = True
    return criterion(torch.where(own, targets.logits, targets.bias), targets.units[targets.local])


@HEADS.register("sigmoid")
def one_versus_rest(targets: Targets, criterion: Criterion) -> Tensor:
    """Binary cross-entropy of every class of the task against the rest, summed over classes; `criterion` is not asked.

    The mean over samples of classes and the mean over those of none, added.
    """
    classes = torch.arange(targets.units.numel(), device=targets.local.device)
    wanted = (targets.local[:, None] == classes).to(targets.logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(targets.logits[:, targets.units], wanted, reduction="none")
    known = (targets.local >= 0).to(losses.dtype)
    shares = known / known.sum().clamp(min=1) + (1 - known) / (1 - known).sum().clamp(min=1)
    return (losses.sum(1) * shares).sum()
