"""What a method does to the values after every step of the optimizer: functions of one layer's values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparse_core.registry import Registry

StepRule = Callable[[Tensor, dict[str, Tensor], float, torch.Generator], None]
"""(values (n,), changed in place; marks of each connection; learning rate; generator) -> None."""

STEP_RULES: Registry[StepRule] = Registry("step rule")
step_rule = STEP_RULES.register
