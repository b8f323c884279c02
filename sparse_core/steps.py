"""What a method does to the values after every step of the optimizer: functions of one layer's values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparse_core.layers import SparseLinear, learning
from sparse_core.optimizer_state import rate_of
from sparse_core.registry import Registry


class StepRule(NamedTuple):
    """What happens before and after every step of the optimizer."""

    before: Callable[[Tensor, dict[str, Tensor]], None]
    """(values (n,); marks of each connection, which it may add to) -> None."""
    after: Callable[[Tensor, dict[str, Tensor], float, torch.Generator], None]
    """(values (n,), changed in place; marks; learning rate; generator) -> None."""


STEP_RULES: Registry[StepRule] = Registry("step rule")


class StepRuns:
    """A step rule at work around every step of an optimizer, in all layers that learn.

    Args:
        rule: its name.
        layers: the sparse layers by name.
        marks: of each connection, by layer; the rule adds to them.
        optimizer: whose learning rates it is told.
        generators: one by layer.
    """

    def __init__(
        self,
        rule: str,
        layers: Mapping[str, SparseLinear],
        marks: Mapping[str, dict[str, Tensor]],
        optimizer: Optimizer,
        generators: Mapping[str, torch.Generator],
    ) -> None:
        self._rule, self._layers, self._marks = rule, layers, marks
        self._optimizer, self._generators = optimizer, generators

    def before_step(self) -> None:
        """Call it before the optimizer's step."""
        for name, layer in learning(self._layers).items():
            STEP_RULES[self._rule].before(layer.values.detach(), self._marks[name])

    @torch.no_grad()
    def after_step(self) -> None:
        """Call it after the optimizer's step."""
        for name, layer in learning(self._layers).items():
            rate = rate_of(self._optimizer, layer)
            STEP_RULES[self._rule].after(layer.values, self._marks[name], rate, self._generators[name])
