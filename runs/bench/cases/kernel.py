"""The three products of one layer on feature-major arrays, without autograd: Y = W X, dX = Wᵀ dY, dvalues."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runs.bench.rows import Row, row
from runs.bench.session import Session
from runs.bench.timing import Contestant, Effort
from sparse_core import SparseLinear, kernels
from sparse_core.csr import transpose, unsigned

WIDTHS = (256, 1024, 4096)
BATCHES = (100, 256)
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)
FULL = Effort(sample_seconds=0.02, seconds=5, least=7, most=51)
QUICK = Effort(sample_seconds=0.01, seconds=1, least=3, most=15)
WHAT = "three products"


@dataclass(frozen=True)
class Triple:
    """The three products, and where they leave their results."""

    run: Callable[[], object]
    y: Tensor
    dx: Tensor
    dvalues: Tensor

    def contestant(self, name: str) -> Contestant:
        """One run is one triple."""

        def repeat(count: int) -> None:
            for _ in range(count):
                self.run()

        return Contestant(name, repeat, settle=1)


def measure(
    session: Session,
    effort: Effort,
    *,
    widths: Sequence[int] = WIDTHS,
    batches: Sequence[int] = BATCHES,
    sparsities: Sequence[float] = SPARSITIES,
) -> list[Row]:
    """Our kernels against torch's dense products and `torch.sparse` CSR; all cases of one shape in turn."""
    session.expect(len(widths) * len(batches) * (1 + 2 * len(sparsities)))
    rows = []
    for width in widths:
        layers = {sparsity: _layer(width, sparsity) for sparsity in sparsities}
        for batch in batches:
            rows += _one_shape(session, effort, layers, width, batch)
    return rows


def _layer(width: int, sparsity: float) -> SparseLinear:
    generator = torch.Generator().manual_seed(0)
    return SparseLinear(width, width, bias=False, sparsity=sparsity, generator=generator, backend="csr")


def _one_shape(
    session: Session, effort: Effort, layers: dict[float, SparseLinear], width: int, batch: int
) -> list[Row]:
    generator = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(width, batch, generator=generator) for _ in range(2))
    contestants = [dense(torch.randn(width, width, generator=generator), x, dy).contestant("torch-dense")]
    for sparsity, layer in layers.items():
        mine = ours(layer, x, dy)
        check(mine, layer, x, dy)
        contestants.append(mine.contestant(f"ours {sparsity}"))
        try:
            theirs = torch_csr(layer, x, dy)
            check(theirs, layer, x, dy)
        except (RuntimeError, NotImplementedError) as error:  # torch's sparse products want MKL
            session.say(f"no row against torch-csr: torch cannot do it here ({str(error).splitlines()[0]})")
            continue
        contestants.append(theirs.contestant(f"torch-csr {sparsity}"))
    found = session.measure(f"width {width}, batch {batch}", contestants, effort)
    rows = []
    for sparsity in layers:
        facts = dict(sparsity=sparsity, width=width, batch_size=batch, backend="csr")
        mine_found = found[f"ours {sparsity}"]
        rows.append(row(WHAT, mine_found, found["torch-dense"], "torch-dense", **facts))
        if (theirs_found := found.get(f"torch-csr {sparsity}")) is not None:
            rows.append(row(WHAT, mine_found, theirs_found, "torch-csr", **facts))
    return rows


def ours(layer: SparseLinear, x: Tensor, dy: Tensor) -> Triple:
    """The `csr` backend's kernels, called as the backend calls them."""
    y, dx, dvalues = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(layer.values).detach()
    values = layer.values.detach().numpy()
    rows, columns = layer.row_pointer.numpy(), layer.columns.numpy()
    pointer, transposed, order = transpose(layer)
    back = pointer.numpy(), unsigned(transposed), order.numpy()
    no_bias, no_gate = np.empty(0, values.dtype), np.empty((0, 0), values.dtype)
    x_, dy_, y_, dx_, dvalues_ = (tensor.numpy() for tensor in (x, dy, y, dx, dvalues))

    def run() -> None:
        kernels.forward(y_, x_, rows, columns, values, no_bias, False)
        kernels.backward_inputs(dx_, dy_, *back, values, no_gate)
        kernels.backward_values(dvalues_, dy_, x_, rows, columns)

    return Triple(run, y, dx, dvalues)


def dense(weight: Tensor, x: Tensor, dy: Tensor) -> Triple:
    """Torch's products for the dense layer of this width, into arrays that are there already."""
    y, dx, dweight = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(weight)
    transposed, x_transposed = weight.T, x.T

    def run() -> None:
        torch.mm(weight, x, out=y)
        torch.mm(transposed, dy, out=dx)
        torch.mm(dy, x_transposed, out=dweight)

    return Triple(run, y, dx, dweight)


def torch_csr(layer: SparseLinear, x: Tensor, dy: Tensor) -> Triple:
    """`torch.sparse` CSR with a transpose made beforehand; indices are int32, as MKL takes them uncopied."""
    values, topology = layer.values.detach(), layer.topology
    transpose = topology.transpose
    weight = _csr_tensor(topology.row_pointer, topology.columns, values, topology.shape)
    dweight = _csr_tensor(topology.row_pointer, topology.columns, torch.zeros_like(values), topology.shape)
    turned = values[transpose.permutation], topology.shape[::-1]
    transposed = _csr_tensor(transpose.row_pointer, transpose.columns, *turned)
    y, dx, x_transposed = torch.empty_like(dy), torch.empty_like(x), x.T

    def run() -> None:
        torch.mm(weight, x, out=y)
        torch.mm(transposed, dy, out=dx)
        torch.sparse.sampled_addmm(weight, dy, x_transposed, beta=0.0, out=dweight)

    run()  # here, where a torch that cannot do it is caught
    return Triple(run, y, dx, dweight.values())


def _csr_tensor(row_pointer: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(row_pointer.int(), columns.int(), values.clone(), shape, check_invariants=True)


def check(triple: Triple, layer: SparseLinear, x: Tensor, dy: Tensor) -> None:
    """Raise a `RuntimeError` unless the triple's results are those of the dense products."""
    triple.run()
    weight = layer.to_dense().weight.detach()
    reference = dense(weight, x, dy)
    reference.run()
    wanted = {"y": reference.y, "dx": reference.dx, "dvalues": reference.dvalues.flatten()[layer.positions]}
    for name, tensor in wanted.items():
        got = getattr(triple, name)
        error = float((got - tensor).abs().max() / tensor.abs().max())
        if error > 1e-4:
            raise RuntimeError(f"{name} is off by {error:.1e} of its largest entry: nothing to be timed")
