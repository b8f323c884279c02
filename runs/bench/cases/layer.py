"""One public layer, forward and backward through autograd, the gradient of its inputs included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from runs.bench.cases.kernel import BATCHES, SPARSITIES, WIDTHS
from runs.bench.rows import Row, row
from runs.bench.session import Session
from runs.bench.timing import Contestant, Effort
from sparse_core import SparseLinear

FULL = Effort(sample_seconds=0.02, seconds=5, least=7, most=51)
QUICK = Effort(sample_seconds=0.01, seconds=1.5, least=3, most=15)


def measure(
    session: Session,
    effort: Effort,
    *,
    widths: Sequence[int] = WIDTHS,
    batches: Sequence[int] = BATCHES,
    sparsities: Sequence[float] = SPARSITIES,
) -> list[Row]:
    """`SparseLinear` with the `csr` backend against `torch.nn.Linear`; all cases of one shape in turn."""
    session.expect(len(widths) * len(batches) * (1 + len(sparsities)))
    rows = []
    for width in widths:
        generator = torch.Generator().manual_seed(0)
        sparse = {
            sparsity: SparseLinear(width, width, sparsity=sparsity, generator=generator, backend="csr")
            for sparsity in sparsities
        }
        dense = nn.Linear(width, width)
        for batch in batches:
            x, dy = (torch.randn(batch, width, generator=generator) for _ in range(2))
            contestants = [contestant("torch-dense", dense, x, dy)]
            contestants += [contestant(f"ours {sparsity}", layer, x, dy) for sparsity, layer in sparse.items()]
            found = session.measure(f"width {width}, batch {batch}", contestants, effort)
            rows += [
                row(
                    "forward and backward", found[f"ours {sparsity}"], found["torch-dense"], "torch-dense",
                    sparsity=sparsity, width=width, batch_size=batch, backend="csr",
                )
                for sparsity in sparsities
            ]  # fmt: skip
    return rows


def contestant(name: str, layer: nn.Module, x: Tensor, dy: Tensor) -> Contestant:
    """One run is one forward and one backward pass; gradients are made anew, as `zero_grad` does by default."""
    inputs = x.clone().requires_grad_()

    def run(count: int) -> None:
        for _ in range(count):
            layer.zero_grad()
            inputs.grad = None
            layer(inputs).backward(dy)

    return Contestant(name, run, settle=1)
