"""What a method does to the values after every step of the optimizer: functions of one layer's values."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_core.registry import Registry


class StepRule(NamedTuple):
    """What happens before and after every step of the optimizer."""

    before: Callable[[Tensor, dict[str, Tensor]], None]
    """(values (n,); marks of each connection, which it may add to) -> None."""
    after: Callable[[Tensor, dict[str, Tensor], float, torch.Generator], None]
    """(values (n,), changed in place; marks; learning rate; generator) -> None."""


STEP_RULES: Registry[StepRule] = Registry("step rule")
