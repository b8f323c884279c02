"""What a rule may see of a layer: its movable connections, where growth is allowed, and signals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparse_core.draws import sample_outside
from sparse_core.importance import Signals
from sparse_core.signals import Capture, streamed_largest


@dataclass(frozen=True, eq=False)
class Constraint:
    """Where growth is allowed: these outputs and inputs (indices; None: all), less what is taken.

    The core never asks why.
    """

    outputs: Tensor | None = None
    inputs: Tensor | None = None
    taken: Tensor | None = None
    """Flat positions, ascending, that belong to somebody else: nothing may grow there."""


@dataclass(frozen=True, eq=False)
class LayerView:
    """A read-only view of one layer for drop and grow rules; everything but `capture` is on the CPU."""

    shape: tuple[int, int]
    positions: Tensor  # (n,) int64 flat positions of the movable connections, ascending
    values: Tensor  # (n,) their values
    blocked: Tensor  # int64 flat positions where nothing may grow, ascending
    generator: torch.Generator
    capture: Capture | None = None
    constraint: Constraint = Constraint()
    signals: Signals | None = None
    dropped: Tensor | None = None  # flat positions, ascending, that this change has dropped; None while it chooses them

    @property
    def importance(self) -> Signals:
        """Importance of connections and neurons, for rules that are registered as needing it."""
        if self.signals is None:
            raise RuntimeError(
                "this rule needs the importance of connections, but none was gathered; register it with "
                "`needs_importance=True` and let a `Sparsifier` run it"
            )
        return self.signals

    @property
    def count(self) -> int:
        """Number of movable connections."""
        return self.positions.numel()

    @property
    def vacant_count(self) -> int:
        """Number of positions where a connection may grow."""
        return self._outputs.numel() * self._inputs.numel() - self._blocked_ranks.numel()

    @cached_property
    def _outputs(self) -> Tensor:
        chosen = self.constraint.outputs
        return torch.arange(self.shape[0]) if chosen is None else chosen.cpu().long().unique()

    @cached_property
    def _inputs(self) -> Tensor:
        chosen = self.constraint.inputs
        return torch.arange(self.shape[1]) if chosen is None else chosen.cpu().long().unique()

    @cached_property
    def _blocked_ranks(self) -> Tensor:
        """Ranks, within allowed outputs × allowed inputs, of the blocked positions in there."""
        if self.constraint.outputs is None and self.constraint.inputs is None:
            return self.blocked
        row, column = self.blocked // self.shape[1], self.blocked % self.shape[1]
        inside = torch.isin(row, self._outputs) & torch.isin(column, self._inputs)
        row = torch.searchsorted(self._outputs, row[inside])
        return row * self._inputs.numel() + torch.searchsorted(self._inputs, column[inside])

    def sample_vacant(self, count: int) -> Tensor:
        """`count` positions drawn uniformly from those where growth is allowed, ascending; O(count log n)."""
        width = self._inputs.numel()
        ranks = sample_outside(self._outputs.numel() * width, count, self._blocked_ranks, self.generator)
        return self._outputs[ranks // width] * self.shape[1] + self._inputs[ranks % width]

    def strongest_gradients(self, count: int) -> Tensor:
        """The `count` positions with the largest |dense gradient| where growth is allowed, ascending.

        Exact, streamed from the captured batches in row blocks: the dense gradient never exists as a whole.
        """
        capture = self.capture
        if capture is None or not len(capture):
            raise RuntimeError(
                "gradient growth needs captured inputs and output gradients, but none came: run the model forward and "
                "backward between two topology changes, with capture not paused"
            )
        shown = capture if self.constraint.outputs is None else capture.of_outputs(self._outputs)
        return self._largest(count, lambda start, stop: shown.gradient_rows(start, stop).abs())

    def most_important_pairs(self, count: int) -> Tensor:
        """The `count` positions with the largest importance of output × input where growth is allowed, ascending.

        Exact, streamed in row blocks, like `strongest_gradients`.
        """
        signals = self.importance
        outputs = signals.outputs[self._outputs]
        return self._largest(count, lambda start, stop: outputs[start:stop, None] * signals.inputs)

    def _largest(self, count: int, rows: Callable[[int, int], Tensor]) -> Tensor:
        """Positions of the largest scores where growth is allowed; `rows` gives those of the allowed outputs."""
        width, shut = self.shape[1], _complement(self._inputs, self.shape[1])
        row = self.blocked // width
        inside = torch.isin(row, self._outputs)
        blocked = torch.searchsorted(self._outputs, row[inside]) * width + self.blocked[inside] % width

        def open_rows(start: int, stop: int) -> Tensor:
            scores = rows(start, stop)
            return scores.index_fill(1, shut.to(scores.device), -torch.inf) if len(shut) else scores

        found = streamed_largest((self._outputs.numel(), width), count, blocked, open_rows)
        return self._outputs[found // width] * width + found % width


def _complement(chosen: Tensor, size: int) -> Tensor:
    absent = torch.ones(size, dtype=torch.bool)
    absent[chosen] = False
    return absent.nonzero().squeeze(1)
