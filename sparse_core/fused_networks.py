"""Alike networks (twin critics) computed together, forward and backward, without autograd and without allocating.

Activations are feature-major: (features, batch), or (tiles of the batch, features, entries) where all that is hidden is
sparse and the batch is large.
Compiled passes (`passes`) go through all layers of all networks at once: sparse ones by their connections, dense ones
as matrices, those of `gemm` as matrices after scattering. Hidden layers may be normalised before their ReLU, as
`nn.LayerNorm` does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from sparse_core import csr, passes
from sparse_core.kernels import CACHE, LARGEST, threads_for
from sparse_core.layers import SparseLinear
from sparse_core.perceptrons import Linear, Perceptron, perceptron
from sparse_core.vectors import UNIT, VECTOR_BYTES

INDEX = np.uint16(0)  # the type of transposed columns that passes are compiled for
Part = tuple[int, int] | None
"""Batch entries from the first to before the second; None: all of them."""


def weights_of(layer: Linear) -> Tensor:
    """The parameter that holds a layer's weights: all of them, or those of its connections."""
    return layer.values if isinstance(layer, SparseLinear) else layer.weight


@dataclass
class Step:
    """One layer of one network: its parameters, its arrays, feature-major, and where its gradients go."""

    layer: Linear
    x: Tensor
    y: Tensor
    dx: Tensor
    dy: Tensor
    relu: bool
    gated: bool
    trained: bool
    scratch: Scratch | None
    normed: Normed | None
    tile: int
    weights: Tensor = field(init=False)
    bias: Tensor = field(init=False)
    weight_gradient: Tensor = field(init=False)
    bias_gradient: Tensor = field(init=False)

    def __post_init__(self) -> None:
        assert self.layer.bias is not None
        # Aliases: they keep the storage alive whose address a compiled pass was given.
        self.weights, self.bias = weights_of(self.layer).detach(), self.layer.bias.detach()
        self.weight_gradient = torch.empty_like(self.weights) if self.trained else self.weights[:0]
        self.bias_gradient = torch.empty_like(self.bias) if self.trained else self.bias[:0]

    @property
    def passed(self) -> tuple[Tensor, Tensor]:
        """What the next layer reads, and where it puts the gradient of that."""
        return self.y if self.normed is None else self.normed.y, self.dy

    def _jump(self, array: Tensor) -> int:
        """Bytes from a tile of the batch to the next."""
        return (array.stride(0) if array.dim() == 3 else self.tile) * array.element_size()

    def row(self) -> tuple[list[int], list[Tensor]]:
        """The layer as compiled passes take it, and all that it points to."""
        weights, gradient, indices = self.weights, self.weight_gradient, list[Tensor]()
        layer, dense = self.layer, True
        if self.scratch is not None:
            weights, gradient = self.scratch.weight, self.scratch.gradient
        elif isinstance(layer, SparseLinear):
            indices = [layer.row_pointer, layer.columns, *(csr.transpose(layer) if self.trained else ())]
            dense = False
            assert csr.unsigned(layer.transpose_columns).dtype == INDEX.dtype
        pointer, columns, *transpose = [*(index.data_ptr() for index in indices), *(0,) * (5 - len(indices))]
        arrays = [self.x, self.y, self.dx, self.dy, gradient, self.bias_gradient]
        x, y, dx, dy, dvalues, dbias = (array.data_ptr() for array in arrays)
        row = [0] * passes.FIELDS
        for place, value in {
            passes.OUT: layer.out_features, passes.IN: layer.in_features, passes.NNZ: 0 if dense else weights.numel(),
            passes.POINTER: pointer, passes.COLUMNS: columns, passes.VALUES: weights.data_ptr(),
            passes.BIAS: self.bias.data_ptr(), passes.RELU: self.relu and self.normed is None,
            passes.GATED: self.gated, passes.DENSE: dense, passes.TRANSPOSE_POINTER: transpose[0],
            passes.TRANSPOSE_COLUMNS: transpose[1], passes.TRANSPOSE_ORDER: transpose[2],
            passes.X_WIDTH: self.x.shape[-1], passes.X_JUMP: self._jump(self.x),
            passes.Y_WIDTH: self.y.shape[-1], passes.Y_JUMP: self._jump(self.y),
            passes.X: x, passes.Y: y, passes.DX: dx, passes.DY: dy, passes.DVALUES: dvalues, passes.DBIAS: dbias,
        }.items():  # fmt: skip
            row[place] = value
        if self.normed is not None:
            for place, array in self.normed.places().items():
                row[place] = array.data_ptr()
            arrays += self.normed.places().values()
        return row, [weights, self.bias, *arrays, *indices]


class Normed:
    """What comes between a layer of one network and the next: normalisation and ReLU."""

    def __init__(self, norm: nn.LayerNorm, z: Tensor, batch: int, trained: bool, like: Normed | None) -> None:
        self.norm = norm
        self.scale, self.shift = norm.weight.detach(), norm.bias.detach()
        self.scale_gradient, self.shift_gradient = (
            torch.empty_like(tensor) if trained else tensor[:0] for tensor in (self.scale, self.shift)
        )
        units = -(-batch * z.element_size() // (UNIT * VECTOR_BYTES)) if trained else 0
        self.y = torch.empty_like(z) if trained else z  # z is asked for again in the backward pass
        self.statistics: Tensor = z.new_empty(*z.shape[:-2], 4, z.shape[-1]) if like is None else like.statistics
        self.unit_sums = z.new_empty(units, 2, z.shape[-2])

    def places(self) -> dict[int, Tensor]:
        """What compiled passes are told of it."""
        return {
            passes.NORMALISED: self.y, passes.STATISTICS: self.statistics, passes.SCALE: self.scale,
            passes.SHIFT: self.shift, passes.UNIT_SUMS: self.unit_sums, passes.DSCALE: self.scale_gradient,
            passes.DSHIFT: self.shift_gradient,
        }  # fmt: skip


class Scratch:
    """The weight of a `gemm` layer as a matrix, into which the values are scattered, and its gradient."""

    def __init__(self, layer: SparseLinear) -> None:
        self.weight = layer.values.new_zeros(layer.shape, requires_grad=False)
        self.gradient = torch.empty_like(self.weight)
        self._scattered: tuple[int, int] | None = None

    def scatter(self, values: Tensor, positions: Tensor) -> None:
        """Make the matrix of these values."""
        now = positions.data_ptr(), positions._version
        if self._scattered != now:  # connections have moved, or another network's were here before
            self.weight.zero_()
            self._scattered = now
        self.weight.view(-1).index_copy_(0, positions, values)

    def gather(self, positions: Tensor, out: Tensor) -> None:
        """The gradient at the connections."""
        torch.index_select(self.gradient.view(-1), 0, positions, out=out)


class FusedNetworks:
    """Networks of one shape on one batch of inputs (see `perceptrons.fusible`); a closing Tanh is left to the caller.

    Args:
        networks: to be computed; their parameters are read where they lie, at every pass.
        inputs: (in_features, batch), contiguous, read at every pass.
        trained: whether gradients will be asked for.
        like: other networks of this shape whose activations may be overwritten, instead of own ones.

    Addresses are taken once: make a new one when a parameter or index has moved (`Watch`).
    """

    tile: int
    """Entries of the batch that lie together in hidden activations; the whole batch where they are one matrix."""

    def __init__(
        self, networks: Sequence[nn.Module], inputs: Tensor, *, trained: bool = True, like: FusedNetworks | None = None
    ) -> None:
        found = [one for network in networks if (one := perceptron(network))]
        self.inputs, self.trained, self._activations = inputs, trained, list[Tensor]()
        count, self.batch = len(found), inputs.shape[1]
        if not self.batch:
            raise ValueError("`inputs` must hold at least one batch entry (features, batch), got none")
        self.tile = _tile(found, inputs) if like is None else like.tile
        self._tiles = -(-self.batch // self.tile)
        self.input_gradients = inputs.new_empty(count, *inputs.shape) if trained else inputs
        self.steps: list[list[Step]] = []  # by depth, then network
        x, dx = [inputs] * count, [*self.input_gradients] if trained else [inputs] * count
        for number, column in enumerate(zip(*(one.layers for one in found), strict=True)):
            relu, features = number < len(found[0].layers) - 1, column[0].out_features
            shape = (self._tiles, features, self.tile) if relu and self._tiles > 1 else (features, self.batch)
            y = inputs.new_empty(count, *shape) if like is None else like._activations[number]
            dy = torch.empty_like(y) if trained else y
            self._activations.append(y)
            norms = [one.norms[number] for one in found]
            others = [None] * count if like is None else like.steps[number]
            self.steps.append([
                Step(
                    layer, x[i], y[i], dx[i], dy[i], relu, number > 0, trained,
                    _scratch(layer, other), _normed(norm, y[i], self.batch, trained, other), self.tile,
                )
                for i, (layer, norm, other) in enumerate(zip(column, norms, others, strict=True))
            ])  # fmt: skip
            x, dx = ([step.passed[side] for step in self.steps[-1]] for side in (0, 1))
            self.outputs, self.output_gradients = y, dy
        self._bind()

    def _bind(self) -> None:
        """Write down where everything is."""
        found = [[step.row() for step in network] for network in zip(*self.steps, strict=True)]
        self._rows = np.array([[row for row, _ in network] for network in found], np.int64)
        self._kept = [kept for network in found for _, kept in network]
        self._like = np.zeros(1, self.inputs.numpy().dtype)[0]
        self._scattered = [
            (step.scratch, step, step.layer.positions)
            for column in self.steps
            for step in column
            if step.scratch is not None and isinstance(step.layer, SparseLinear)
        ]
        dense = self._rows[:, :, passes.DENSE] * self._rows[:, :, passes.OUT] * self._rows[:, :, passes.IN]
        # A normalisation's sums over the batch are by whole units: a batch of less than one is not cut.
        normalised = bool(self._rows[:, :, passes.NORMALISED].any())
        self._whole = normalised and self.inputs[0].nbytes < UNIT * VECTOR_BYTES
        self._work = self.batch * int(dense.sum() + self._rows[:, :, passes.NNZ].sum())
        # As `_rows`, with all tiles of hidden activations in one place: those of a tile are gone with the next.
        self._passing = self._rows.copy()
        self._passing[:, :-1, passes.Y_JUMP] = self._passing[:, 1:, passes.X_JUMP] = 0
        widest = max((column[0].y.shape[-2] for column in self.steps[:-1]), default=0)
        large = widest * self.batch * self.inputs.element_size() >= CACHE
        self._streams = self.tile < self.batch and large and not self._scattered

    def _slices(self) -> int:
        """Into how many parts each network's work is cut; 0 for one thread alone."""
        threads = threads_for(self._work)
        return 0 if threads == 1 else -(-threads // len(self._rows))

    def parts(self) -> list[Part]:
        """The batch in parts that had best be taken from `forward` to `gradients` one after the other, or whole.

        Results are the same. Parts are tiles, and pay where one thread computes activations that are larger than the
        cache; growth signals are those of whole batches, and a `gemm` layer's matrix is scattered for all of one.
        """
        if not self._streams or self._slices():
            return [None]
        layers = [step.layer for column in self.steps for step in column]
        if any(isinstance(layer, SparseLinear) and layer.capture is not None for layer in layers):
            return [None]
        return [(start, min(start + self.tile, self.batch)) for start in range(0, self.batch, self.tile)]

    def forward(self, part: Part = None) -> None:
        """Compute `outputs` from `inputs`."""
        for scratch, step, positions in self._scattered:
            scratch.scatter(step.weights, positions)
        if part is None and (slices := self._slices()):
            passes.forward_threaded(self._rows, self.batch, self.tile, slices, self._like)
        else:
            rows = self._rows if self.trained and part is None else self._passing
            passes.forward_serial(rows, *(part or (0, self.batch)), self.tile, self._like)

    def backward(self, inputs: tuple[int, int] = (0, 0), part: Part = None) -> None:
        """From `output_gradients`: every activation's gradient, and those of these inputs (first, last + 1)."""
        if part is None and (slices := self._slices()):
            slices = 1 if self._whole else slices
            passes.backward_threaded(self._rows, self.batch, self.tile, *inputs, slices, self._like, INDEX)
        else:
            rows = self._rows if part is None else self._passing
            passes.backward_serial(rows, *(part or (0, self.batch)), self.tile, *inputs, self._like, INDEX)

    def gradients(self, part: Part = None) -> None:
        """After `backward`: gradients of all parameters, and what growth rules asked for; parts come in order."""
        if part is not None:
            piece = part[0] // self.tile
            passes.gradients_serial(self._passing, self.batch, self.tile, piece, piece + 1, self._like)
            return
        if slices := self._slices():
            passes.gradients_threaded(self._rows, self.batch, self.tile, slices, self._like)
        else:
            passes.gradients_serial(self._rows, self.batch, self.tile, 0, self._tiles, self._like)
        for scratch, step, positions in self._scattered:
            scratch.gather(positions, step.weight_gradient)
        for column in self.steps:
            for step in column:
                if isinstance(step.layer, SparseLinear) and step.layer.capture is not None:
                    step.layer.capture.add(*(_entries(array, self.batch) for array in (step.x, step.dy)))

    def first(self) -> FusedNetworks:
        """The first network alone, on the same arrays."""
        alone = copy(self)
        alone.steps = [column[:1] for column in self.steps]
        alone.input_gradients, alone.outputs = self.input_gradients[:1], self.outputs[:1]
        alone.output_gradients = self.output_gradients[:1]
        alone._bind()
        return alone

    def parameters(self) -> list[tuple[Tensor, Tensor]]:
        """Every parameter with the array its gradient is in."""
        found = []
        for column in self.steps:
            for step in column:
                assert step.layer.bias is not None
                found += [(weights_of(step.layer), step.weight_gradient), (step.layer.bias, step.bias_gradient)]
                if (normed := step.normed) is not None:
                    found += [(normed.norm.weight, normed.scale_gradient), (normed.norm.bias, normed.shift_gradient)]
        return found


def _scratch(layer: Linear, other: Step | None) -> Scratch | None:
    if not isinstance(layer, SparseLinear) or layer.backend != "gemm":
        return None
    return Scratch(layer) if other is None else other.scratch


def _normed(norm: nn.LayerNorm | None, z: Tensor, batch: int, trained: bool, other: Step | None) -> Normed | None:
    return None if norm is None else Normed(norm, z, batch, trained, None if other is None else other.normed)


def _tile(networks: Sequence[Perceptron], inputs: Tensor) -> int:
    """Entries of the batch that lie together: as many as a kernel takes at once, so that the cache holds them.

    Of a whole batch a wide layer's rows are far apart and its activations larger than the cache. A network with a dense
    hidden layer is not cut: its weights are what would have to be read again for every tile.
    """
    batch, tile = inputs.shape[1], LARGEST * VECTOR_BYTES // inputs.element_size()
    hidden = [layer for one in networks for layer in one.layers[:-1]]
    sparse = hidden and all(isinstance(layer, SparseLinear) and layer.backend == "csr" for layer in hidden)
    return tile if sparse and batch >= 2 * tile else batch


def _entries(array: Tensor, batch: int) -> Tensor:
    """Batch first: (batch, features)."""
    return array.T if array.dim() == 2 else array.transpose(1, 2).flatten(0, 1)[:batch]


class Watch:
    """Notices in microseconds when what `FusedNetworks` of these modules were bound to is no longer so."""

    def __init__(self, *modules: nn.Module) -> None:
        found = [each for module in modules for each in module.modules()]
        self._holders = [each._parameters for each in found if each._parameters]
        self._children = [each._modules for each in found if each._modules]
        self._layers = [each for each in found if isinstance(each, SparseLinear)]
        self._norms = [each for each in found if isinstance(each, nn.LayerNorm)]

    def now(self) -> list[object]:
        """Where parameters are, whether they learn, what modules there are; indices move with values or backends."""
        parameters = [parameter for held in self._holders for parameter in held.values() if parameter is not None]
        return [
            *(parameter.data_ptr() for parameter in parameters),
            *(parameter.requires_grad for parameter in parameters),
            *(id(child) for held in self._children for child in held.values()),
            *(layer.generation for layer in self._layers),
            *(norm.eps for norm in self._norms),
        ]
