"""What a rule may ask of training: inputs and output gradients, captured at update steps only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sparse_core.draws import largest

Pairs = list[tuple[Tensor, Tensor]]
"""Captured batches: inputs, output gradients."""
ROWS = torch.contiguous_format
BLOCK_CELLS = 1 << 20  # cells of the dense gradient looked at together: 4 MiB in float32


class Capture:
    """Inputs X and output gradients Δ of one layer over its last `batches` batches.

    `batch` is set by whoever counts batches; several backward passes of one batch are kept together. The layer
    that a capture is given to (`layer.capture = …`) says how its pairs make a dense gradient: a convolution keeps its
    inputs as they are, not as patches, which would be kernel height × width times as large.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.batch = 0
        self.rows_of: Callable[[Pairs, int, int], Tensor] = matrix_gradient
        self.entries_of: Callable[[Pairs, Tensor, int], Tensor] = matrix_gradient_at
        self._pairs: deque[tuple[int, Tensor, Tensor]] = deque()

    def add(self, inputs: Tensor, gradients: Tensor) -> None:
        """Keep one backward pass: inputs (B, in_features, …) and output gradients (B, out_features, …)."""
        # Copies: the caller may fill the same input buffer with the next batch. Row after row, as a checkpoint gives
        # them back: the outputs of `csr` lie in columns, and sums in another order round otherwise.
        kept_inputs, kept_gradients = (each.detach().clone(memory_format=ROWS) for each in (inputs, gradients))
        self._pairs.append((self.batch, kept_inputs, kept_gradients))
        kept = sorted({batch for batch, _, _ in self._pairs})[-self.batches :]
        while self._pairs[0][0] < kept[0]:
            self._pairs.popleft()

    def __len__(self) -> int:
        return len(self._pairs)

    def of_outputs(self, outputs: Tensor) -> Capture:
        """The same batches, of these outputs only (indices, ascending)."""
        fewer = Capture(self.batches)
        fewer.batch, fewer.rows_of, fewer.entries_of = self.batch, self.rows_of, self.entries_of
        fewer._pairs = deque(
            (batch, inputs, gradients.index_select(1, outputs.to(gradients.device)))
            for batch, inputs, gradients in self._pairs
        )
        return fewer

    def gradient_rows(self, start: int, stop: int) -> Tensor:
        """Rows start … stop-1 of the dense gradient summed over the kept batches, one number per possible connection.

        (stop-start, in_features): a gradient, or where a connection has several weights, the L2 norm of theirs.
        """
        return self.rows_of(self.pairs, start, stop)

    def gradient_at(self, positions: Tensor, in_features: int) -> Tensor:
        """The same at these flat positions alone (k,), on the CPU: O(B·k), with no row of the gradient made."""
        return self.entries_of(self.pairs, positions, in_features).cpu()

    @property
    def pairs(self) -> Pairs:
        """The kept batches, oldest first: inputs (B, in_features, …), output gradients (B, out_features, …)."""
        return [(inputs, gradients) for _, inputs, gradients in self._pairs]

    @property
    def newest(self) -> int:
        """Number of the last batch that is kept."""
        return self._pairs[-1][0]

    def latest(self) -> Capture:
        """The last batch alone."""
        return self.with_pairs(
            [(inputs, gradients) for batch, inputs, gradients in self._pairs if batch == self.newest]
        )

    def with_pairs(self, pairs: Pairs) -> Capture:
        """Other pairs, of the same shapes, whose products this layer's connections would make."""
        other = Capture(self.batches)
        other.rows_of, other.entries_of = self.rows_of, self.entries_of
        other._pairs = deque((self.batch, inputs, gradients) for inputs, gradients in pairs)
        return other

    def state(self) -> list[tuple[int, Tensor, Tensor]]:
        """What is kept, for a checkpoint taken between capture and change."""
        return list(self._pairs)

    def load(self, pairs: list[Any]) -> None:
        """Put back what `state` gave."""
        self._pairs = deque((int(batch), inputs, gradients) for batch, inputs, gradients in pairs)


def matrix_gradient(pairs: Pairs, start: int, stop: int) -> Tensor:
    """Rows start … stop-1 of Σ ΔᵀX, for X (B, in_features) and Δ (B, out_features)."""
    return torch.stack([gradients[:, start:stop].T @ inputs for inputs, gradients in pairs]).sum(0)


def matrix_gradient_at(pairs: Pairs, positions: Tensor, in_features: int) -> Tensor:
    """Entries of Σ ΔᵀX at flat positions (k,), for X (B, in_features) and Δ (B, out_features)."""
    found = torch.zeros(positions.numel(), dtype=pairs[0][0].dtype, device=pairs[0][0].device)
    for inputs, gradients in pairs:
        # Neurons first, so that what is gathered lies together.
        x, delta = inputs.T.contiguous(), gradients.T.contiguous()
        step = max(1, BLOCK_CELLS // max(inputs.shape[0], 1))
        for start in range(0, positions.numel(), step):
            at = positions[start : start + step].to(x.device)
            found[start : start + step] += (delta[at // in_features] * x[at % in_features]).sum(1)
    return found


def observed(outputs: Tensor, inputs: Tensor, capture: Capture, dtype: torch.dtype) -> Tensor:
    """The same outputs; their backward pass gives `capture` the inputs (B, …) and the gradients, batch axes merged."""
    if not outputs.requires_grad:
        return outputs
    watched: Tensor = _Observed.apply(outputs, inputs.detach(), capture, dtype)
    return watched


class _Observed(torch.autograd.Function):
    """An identity that shows a layer's inputs and output gradients to a capture."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, inputs: Tensor, capture: Capture, dtype: torch.dtype) -> Tensor:
        """A copy, since autograd refuses in-place activations on a view that such a function returns."""
        ctx.save_for_backward(inputs)
        ctx.capture, ctx.dtype = capture, dtype
        return outputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient as it came."""
        (inputs,) = ctx.saved_tensors
        each = gradient.shape[gradient.dim() - inputs.dim() + 1 :]
        ctx.capture.add(inputs.to(ctx.dtype), gradient.to(ctx.dtype).reshape(-1, *each))
        return gradient, None, None, None


def row_blocks(shape: tuple[int, int], cells: int | None = None) -> Iterator[tuple[int, int]]:
    """(start, stop) of row blocks of at most `cells` (`BLOCK_CELLS`), or one row, that cover a matrix."""
    height = max(1, (BLOCK_CELLS if cells is None else cells) // shape[1])
    for start in range(0, shape[0], height):
        yield start, min(start + height, shape[0])


def streamed_largest(
    shape: tuple[int, int], count: int, blocked: Tensor, rows_of: Callable[[int, int], Tensor], signed: bool = False
) -> Tensor:
    """Flat positions of the `count` largest |score| outside `blocked`: exact, in O(count + block) memory.

    Args:
        shape: (out_features, in_features) of the score matrix.
        count: how many; at least that many positions must be free.
        blocked: flat positions never taken, ascending.
        rows_of: (start, stop) -> those rows of the score matrix; -inf marks a cell never taken.
        signed: takes the largest score, not the largest |score|.

    Returns:
        (count,) int64 on the CPU, ascending; ties are taken from the lowest position on.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    best = _Best(count, min(2 * count + 2 * max(BLOCK_CELLS, shape[1]), shape[0] * shape[1]))
    for start, stop in row_blocks(shape):
        rows = rows_of(start, stop)
        never = rows == -torch.inf
        scores = rows if signed else rows.abs().masked_fill_(never, -torch.inf)
        if not bool((torch.isfinite(scores) | never).all()):
            raise FloatingPointError(
                "the growth signal is not finite: training has diverged; lower the learning rate. Where a gradient "
                "scaler has skipped this step, let the change wait: `step(allowed=False)`"
            )
        first, last = torch.searchsorted(blocked, torch.tensor([start * shape[1], stop * shape[1]])).tolist()
        inside = (blocked[first:last] - start * shape[1]).to(scores.device)
        # A copy: rows may be a slice of something that a rule remembers.
        best.add(scores.flatten().index_fill(0, inside, -torch.inf), start * shape[1])
    found = best.settled()
    if found.numel() < count:
        raise ValueError(f"{count} new connections were wanted, but fewer positions are free; lower the drop fraction")
    return found.cpu()


class _Best:
    """The `count` largest of all scores shown to it in ascending order of position; those of -inf do not count.

    What is kept lies in tensors made once: pieces of each block between the blocks' own temporaries would keep the heap
    from giving those back (6 GB at 65,536 × 65,536).
    """

    def __init__(self, count: int, room: int) -> None:
        self._count, self._room, self._held = count, room, 0
        self._floor = -torch.inf
        self._scores = self._positions = torch.empty(0)

    def add(self, scores: Tensor, first: int) -> None:
        """Look at scores (n,) of the positions from `first` on."""
        # Once there are enough, only what is above the least of them can matter: an equal one comes too late.
        chosen = (scores > self._floor).nonzero().squeeze(1)
        if not self._scores.numel():
            self._scores = scores.new_empty(self._room)
            self._positions = chosen.new_empty(self._room)
        if self._held + chosen.numel() > self._room:
            self.settled()
        end = self._held + chosen.numel()
        torch.index_select(scores, 0, chosen, out=self._scores[self._held : end])
        torch.add(chosen, first, out=self._positions[self._held : end])
        self._held = end

    def settled(self) -> Tensor:
        """Positions of the largest so far, ascending."""
        if self._held >= self._count:
            scores, positions = self._scores[: self._held], self._positions[: self._held]
            top = largest(scores, self._count)
            scores, positions = scores[top], positions[top]
            self._held, self._floor = self._count, float(scores.min())
            self._scores[: self._held], self._positions[: self._held] = scores, positions
        return self._positions[: self._held].clone()
