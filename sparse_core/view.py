"""What a rule may see of a layer: its movable connections, where growth is allowed, and signals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from sparse_core.choosing import HARD, Choosing, lowest
from sparse_core.draws import among, largest, sample_outside
from sparse_core.importance import Signals
from sparse_core.outer_products import largest_products
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
    choosing: Choosing = HARD
    memory: dict[str, Tensor] = field(default_factory=dict)  # a rule's own state for this layer, kept and saved
    marks: dict[str, Tensor] = field(default_factory=dict)  # a rule's own state for each connection, (n,)
    progress: float = 0.0  # share of the way to the last change, in [0, 1]
    activity: Callable[[Tensor], Tensor] | None = None  # inputs as captured -> the neurons' activations (B, out, …)
    flow_shares: Tensor | None = None  # (n,) θ ⊙ Hg, for rules registered with `needs_closure`

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
    def remaining(self) -> Tensor:
        """Flat positions of the movable connections that this change has not dropped, ascending."""
        return self.positions if self.dropped is None else self.positions[~among(self.positions, self.dropped)]

    def without(self, indices: Tensor) -> LayerView:
        """The same with fewer movable connections; the places of those that go stay taken."""
        if not indices.numel():
            return self
        kept = torch.ones(self.count, dtype=torch.bool)
        kept[indices] = False
        signals = None
        if self.signals is not None:
            signals = replace(self.signals, connections=self.signals.connections[kept])
        marks = {name: mark[kept] for name, mark in self.marks.items()}
        return replace(self, positions=self.positions[kept], values=self.values[kept], signals=signals, marks=marks)

    def freed(self, indices: Tensor) -> LayerView:
        """The same with the places of these connections vacant, though they are still shown."""
        return replace(self, blocked=self.blocked[~among(self.blocked, self.positions[indices])])

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

    @property
    def seen(self) -> Capture:
        """The captured batches; a `RuntimeError` where there are none."""
        if self.capture is None or not len(self.capture):
            raise RuntimeError(
                "gradient growth needs captured inputs and output gradients, but none came: run the model forward and "
                "backward between two topology changes, with capture not paused; a rule of your own that looks at them "
                "is registered with `needs_capture=True`"
            )
        return self.capture

    def own_gradients(self) -> Tensor:
        """Gradients of the movable connections over the captured batches, (n,): of kernels, the L2 norm."""
        return self.seen.gradient_at(self.positions, self.shape[1])

    def least(self, scores: Tensor, count: int) -> Tensor:
        """Indices of `count` connections to drop, ascending, those with low scores (n,) first; see `choosing`."""
        return lowest(scores, count, self.choosing, self.generator)

    def sample_vacant(self, count: int, besides: Tensor | None = None) -> Tensor:
        """`count` positions drawn uniformly from those where growth is allowed, ascending; O(count log n).

        None of those is in `besides` (vacant positions, ascending).
        """
        width = self._inputs.numel()
        taken = self._blocked_ranks
        if besides is not None and besides.numel():
            row = torch.searchsorted(self._outputs, besides // self.shape[1])
            column = torch.searchsorted(self._inputs, besides % self.shape[1])
            taken = torch.cat([taken, row * width + column]).sort().values
        return self._at_ranks(sample_outside(self._outputs.numel() * width, count, taken, self.generator))

    def _at_ranks(self, ranks: Tensor) -> Tensor:
        """Flat positions of ranks within allowed outputs × allowed inputs."""
        width = self._inputs.numel()
        return self._outputs[ranks // width] * self.shape[1] + self._inputs[ranks % width]

    def strongest_gradients(self, count: int) -> Tensor:
        """The `count` positions with the largest |dense gradient| where growth is allowed, ascending.

        Exact, streamed from the captured batches in row blocks: the dense gradient never exists as a whole.
        """
        shown = self.of_allowed(self.seen)
        return self.strongest(count, lambda start, stop: shown.gradient_rows(start, stop).abs())

    def of_allowed(self, capture: Capture) -> Capture:
        """A capture of this layer's outputs, of those only where growth is allowed."""
        return capture if self.constraint.outputs is None else capture.of_outputs(self._outputs)

    @property
    def allowed_outputs(self) -> Tensor:
        """Outputs where growth is allowed, ascending: the rows that `strongest` asks for."""
        return self._outputs

    @property
    def allowed_inputs(self) -> Tensor:
        """Inputs where growth is allowed, ascending."""
        return self._inputs

    def strongest_pairs(self, count: int, outputs: Tensor, inputs: Tensor) -> Tensor:
        """The `count` positions with the largest outputs[i] · inputs[j] where growth is allowed, ascending.

        As `strongest`, in O(n log n) where no temperature is set. Outputs (out_features,), inputs (in_features,), ≥ 0.
        """
        scored, chosen = self.choosing.scored(count), outputs[self._outputs]
        if self.choosing.temperature is None:
            ranks = largest_products(chosen, inputs[self._inputs], scored, self._blocked_ranks)
            if ranks is not None:
                return self._with_random(count, self._at_ranks(ranks))
        return self.strongest(count, lambda start, stop: chosen[start:stop, None] * inputs)

    def strongest(self, count: int, rows: Callable[[int, int], Tensor]) -> Tensor:
        """The `count` positions with the largest scores where growth is allowed, ascending; see `choosing`.

        Args:
            count: how many.
            rows: (start, stop) -> scores (stop-start, in_features) of those of the allowed outputs; at least 0 where a
                temperature is set. They are asked for block by block, in order, and never held together.
        """
        return self._with_random(count, self._best(self.choosing.scored(count), rows))

    def strongest_of(self, count: int, candidates: Tensor, scores: Tensor) -> Tensor:
        """As `strongest`, of some vacant positions (ascending) with scores; random others where they are too few."""
        scored = min(self.choosing.scored(count), candidates.numel())
        return self._with_random(count, candidates[largest(self.choosing.keys(scores, self.generator), scored)])

    def _with_random(self, count: int, best: Tensor) -> Tensor:
        """These and as many random others as are missing from `count`, ascending."""
        missing = count - best.numel()
        return torch.cat([best, self.sample_vacant(missing, best)]).sort().values if missing else best

    def is_vacant(self, positions: Tensor) -> Tensor:
        """Whether a connection may grow there."""
        allowed = torch.isin(positions // self.shape[1], self._outputs) & torch.isin(
            positions % self.shape[1], self._inputs
        )
        return allowed & ~among(positions, self.blocked)

    def _best(self, count: int, rows: Callable[[int, int], Tensor]) -> Tensor:
        width, shut = self.shape[1], _complement(self._inputs, self.shape[1])
        row = self.blocked // width
        inside = torch.isin(row, self._outputs)
        blocked = torch.searchsorted(self._outputs, row[inside]) * width + self.blocked[inside] % width

        def open_rows(start: int, stop: int) -> Tensor:
            keys = self.choosing.keys(rows(start, stop), self.generator)
            return keys.index_fill(1, shut.to(keys.device), -torch.inf) if len(shut) else keys

        found = streamed_largest((self._outputs.numel(), width), count, blocked, open_rows, signed=True)
        return self._outputs[found // width] * width + found % width


def _complement(chosen: Tensor, size: int) -> Tensor:
    absent = torch.ones(size, dtype=torch.bool)
    absent[chosen] = False
    return absent.nonzero().squeeze(1)
