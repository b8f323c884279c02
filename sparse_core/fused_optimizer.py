"""Adam and Polyak averaging over many tensors in one compiled call each, in place and without allocating."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparse_core import passes
from sparse_core.adam import Adam
from sparse_core.fused import corrections, threads_for_entries, warmed

OLDEST = 1 << 24  # steps after which ages stop counting in a table that is still not at 1, for β near 1


class FusedAdam:
    """Steps of a `sparse_core.Adam` from gradients in given arrays; the state stays where the optimizer has it.

    Args:
        optimizer: with a single group.
        parameters: pairs of a parameter and the array that its gradient is in at every step.
    """

    def __init__(self, optimizer: Adam, parameters: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._group = optimizer.param_groups[0]
        dtype = parameters[0][0].dtype
        first, second = (corrections(beta, dtype, OLDEST) for beta in self._group["betas"])
        self._corrections = [warmed(first, self._group.get("warmup", 0)), second]
        self._settings = np.zeros(5)
        self._kept: list[Tensor] = []
        self._rows = np.array([self._row(optimizer, *pair) for pair in parameters], np.int64)
        self._entries = int(self._rows[:, passes.ENTRIES].sum())

    def _row(self, optimizer: Adam, parameter: Tensor, gradient: Tensor) -> list[int]:
        state = optimizer.state_of(parameter)
        # What was loaded, or stepped before the network changed its dtype, may not be laid out as the parameter is.
        for name, dtype in (("exp_avg", parameter.dtype), ("exp_avg_sq", parameter.dtype), ("age", torch.int32)):
            state[name] = state[name].to(dtype).contiguous()
        count, ages = parameter.numel(), state["age"].numel()
        if {state["exp_avg"].numel(), state["exp_avg_sq"].numel(), gradient.numel()} != {count} or ages not in (
            1,
            count,
        ):
            raise ValueError(
                f"the optimizer's state is not that of a parameter with {count} entries; load the right one"
            )
        tensors = [parameter.detach(), gradient, state["exp_avg"], state["exp_avg_sq"], state["age"]]
        self._kept += tensors
        return [*(tensor.data_ptr() for tensor in tensors), count, ages]

    def step(self) -> None:
        """One update of every parameter."""
        group = self._group
        self._settings[:] = group["lr"], *group["betas"], group["eps"], group["weight_decay"]
        threads = threads_for_entries(self._entries)
        first, second = self._corrections
        decoupled, count = group["decoupled"], self._entries
        if threads > 1:
            passes.adam_threaded(self._rows, first, second, self._settings, decoupled, count, threads)
        else:
            passes.adam_serial(self._rows, first, second, self._settings, decoupled, count)


class FusedPolyak:
    """Target = (1 - τ) target + τ source for many pairs (target, source) of tensors."""

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._kept = [(target.detach(), source.detach()) for target, source in pairs]
        self._rows = np.array([[a.data_ptr(), b.data_ptr(), a.numel()] for a, b in self._kept], np.int64)
        self._entries = int(self._rows[:, passes.LENGTH].sum())
        self._like = torch.zeros(1, dtype=pairs[0][0].dtype).numpy()[0]

    def step(self, tau: float) -> None:
        """Move every target by one step."""
        threads = threads_for_entries(self._entries)
        if threads > 1:
            passes.polyak_threaded(self._rows, tau, self._like, self._entries, threads)
        else:
            passes.polyak_part(self._rows, tau, self._like, self._entries, 0, 1)
