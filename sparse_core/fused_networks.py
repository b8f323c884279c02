"""Alike networks (twin critics) computed together, forward and backward, without autograd and without allocating.

Activations are feature-major (features, batch). Layers of the `csr` backend run in compiled passes over all of
them at once (`passes`), dense layers and those of `gemm` as torch products into the same arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sparse_core import passes
from sparse_core.csr import DTYPES, unsigned
from sparse_core.dense_product import multiply
from sparse_core.kernels import threads_for
from sparse_core.layers import SparseLinear
from sparse_core.topology import Topology

Linear = SparseLinear | nn.Linear

SMALL = 1 << 13  # cells of a dense layer up to which the compiled pass beats the call of a torch product


def perceptron(network: nn.Module) -> tuple[list[Linear], bool] | None:
    """The layers of linear, ReLU, linear, …, linear and whether Tanh closes them; None for any other network."""
    modules: list[nn.Module] = list(network) if isinstance(network, nn.Sequential) else []
    closed = bool(modules) and type(modules[-1]) is nn.Tanh
    modules = modules[: len(modules) - closed]
    layers = [
        module for module in modules[::2] if isinstance(module, Linear) and type(module) in (SparseLinear, nn.Linear)
    ]
    fits = len(modules) % 2 == 1 and len(layers) == len(modules[::2])
    return (layers, closed) if fits and all(type(module) is nn.ReLU for module in modules[1::2]) else None


def fusible(*networks: nn.Module) -> bool:
    """Whether `FusedNetworks` can compute these together."""
    found = [perceptron(network) for network in networks]
    if any(one is None for one in found):
        return False
    depth = [list(layers) for layers in zip(*(one[0] for one in found if one), strict=False)]
    if len({len(one[0]) for one in found if one}) > 1:
        return False
    tensors = [tensor for network in networks for tensor in network.parameters()]
    return (
        {tensor.device.type for tensor in tensors} == {"cpu"}
        and len({tensor.dtype for tensor in tensors}) == 1
        and tensors[0].dtype in DTYPES
        and all(tensor.requires_grad and tensor.is_contiguous() for tensor in tensors)
        and all(len({_kind(layer) for layer in layers}) == 1 for layers in depth)
        and all(len({(layer.out_features, layer.in_features) for layer in layers}) == 1 for layers in depth)
        and all(_kind(layer) != "other" for layers in depth for layer in layers)
    )


def _kind(layer: Linear) -> str:
    if isinstance(layer, nn.Linear):
        return "dense" if layer.bias is not None else "other"
    frozen = bool(layer.frozen.numel() or layer.frozen_bias.numel())
    wide = layer.out_features > 1 << 16
    return "other" if frozen or layer.bias is None or wide or layer.backend not in ("csr", "gemm") else layer.backend


def weights_of(layer: Linear) -> Tensor:
    """The parameter that holds a layer's weights: all of them, or those of its connections."""
    return layer.values if isinstance(layer, SparseLinear) else layer.weight


@dataclass
class Step:
    """One layer of one network: its parameters, its arrays (features, batch) and where its gradients go."""

    layer: Linear
    x: Tensor
    y: Tensor
    dx: Tensor
    dy: Tensor
    relu: bool
    gated: bool
    trained: bool
    weights: Tensor = field(init=False)
    bias: Tensor = field(init=False)
    weight_gradient: Tensor = field(init=False)
    bias_gradient: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # Aliases: they keep the storage alive whose address a compiled pass was given.
        assert self.layer.bias is not None
        self.weights, self.bias = weights_of(self.layer).detach(), self.layer.bias.detach()
        self.weight_gradient = torch.empty_like(self.weights) if self.trained else self.weights[:0]
        self.bias_gradient = torch.empty_like(self.bias) if self.trained else self.bias[:0]


class Stage(Protocol):
    """Consecutive layers of all networks that are computed in one way."""

    def forward(self) -> None:
        """From x to y."""

    def backward(self, first: int, last: int) -> None:
        """From dy to dx; of the networks' own inputs only those from `first` up to `last`."""

    def gradients(self) -> None:
        """From x and dy to the gradients of weights and biases."""

    def first(self) -> Stage:
        """The same for the first network alone."""
        ...


class FusedNetworks:
    """Networks of one shape on one batch of inputs (see `fusible`); a closing Tanh is left to the caller.

    Args:
        networks: to be computed; their parameters are read where they lie, at every pass.
        inputs: (in_features, batch), contiguous, read at every pass.
        trained: whether gradients will be asked for.
        like: other networks of this shape whose activations may be overwritten, instead of own ones.

    Addresses are taken once: make a new one when a parameter or index has moved (`addresses`).
    """

    def __init__(
        self, networks: Sequence[nn.Module], inputs: Tensor, *, trained: bool = True, like: FusedNetworks | None = None
    ) -> None:
        layers = [found[0] for network in networks if (found := perceptron(network))]
        self.inputs, self._activations = inputs, list[Tensor]()
        count, batch = len(layers), inputs.shape[1]
        self.input_gradients = inputs.new_empty(count, *inputs.shape) if trained else inputs
        self.steps: list[list[Step]] = []  # by depth, then network
        x, dx = inputs.expand(count, -1, -1), self.input_gradients
        for number, column in enumerate(zip(*layers, strict=True)):
            shape, relu = (count, column[0].out_features, batch), number < len(layers[0]) - 1
            y = x.new_empty(shape) if like is None else like._activations[number]
            dy = torch.empty_like(y) if trained else y
            self._activations.append(y)
            self.steps.append([
                Step(layer, x[i], y[i], dx[i], dy[i], relu=relu, gated=number > 0, trained=trained)
                for i, layer in enumerate(column)
            ])  # fmt: skip
            x, dx = y, dy
        self.outputs, self.output_gradients = x, dx
        self._stages = self._staged()

    def _staged(self) -> list[Stage]:
        compiled = any(_kind(step.layer) == "csr" for column in self.steps for step in column)

        def is_compiled(column: list[Step]) -> bool:
            kind = _kind(column[0].layer)
            return kind == "csr" or (compiled and kind == "dense" and column[0].weights.numel() <= SMALL)

        stages: list[Stage] = []
        for together, columns in groupby(self.steps, is_compiled):
            if together:
                stages.append(CompiledLayers(list(columns)))
            else:
                stages.extend(TorchLayers(column) for column in columns)
        return stages

    def forward(self) -> None:
        """Compute `outputs` from `inputs`."""
        for stage in self._stages:
            stage.forward()

    def backward(self, inputs: tuple[int, int] = (0, 0)) -> None:
        """From `output_gradients`: every activation's gradient, and those of these inputs (first, last + 1)."""
        for stage in reversed(self._stages):
            stage.backward(*inputs)

    def gradients(self) -> None:
        """After `backward`: gradients of all parameters, and what growth rules asked for."""
        for stage in self._stages:
            stage.gradients()
        for column in self.steps:
            for step in column:
                if isinstance(step.layer, SparseLinear) and step.layer.capture is not None:
                    step.layer.capture.add(step.x.T, step.dy.T)

    def first(self) -> FusedNetworks:
        """The first network alone, on the same arrays."""
        alone = copy(self)
        alone.steps = [column[:1] for column in self.steps]
        alone.input_gradients, alone.outputs = self.input_gradients[:1], self.outputs[:1]
        alone.output_gradients = self.output_gradients[:1]
        alone._stages = [stage.first() for stage in self._stages]
        return alone

    def parameters(self) -> list[tuple[Tensor, Tensor]]:
        """Every parameter with the array its gradient is in."""
        found = []
        for column in self.steps:
            for step in column:
                assert step.layer.bias is not None
                found += [(weights_of(step.layer), step.weight_gradient), (step.layer.bias, step.bias_gradient)]
        return found


class Watch:
    """Notices when what `FusedNetworks` of these modules were bound to lies elsewhere, in microseconds."""

    def __init__(self, *modules: nn.Module) -> None:
        parts = [part for module in modules for part in module.modules()]
        self._holders = [part._parameters for part in parts if part._parameters]
        self._layers = [part for part in parts if isinstance(part, SparseLinear)]

    def now(self) -> list[object]:
        """Where the parameters are; indices move with values, or when the backend changes."""
        parameters = [parameter for held in self._holders for parameter in held.values() if parameter is not None]
        return [*(parameter.data_ptr() for parameter in parameters), *(layer.backend for layer in self._layers)]


class CompiledLayers:
    """Layers that compiled passes compute, all networks and depths in one call each."""

    def __init__(self, columns: list[list[Step]]) -> None:
        first = columns[0][0]
        self._batch = first.x.shape[1]
        self._like = np.zeros(1, first.x.numpy().dtype)[0]
        self._index = np.uint16(0)
        self._kept: list[Tensor] = []
        rows = [[self._row(step) for step in network] for network in zip(*columns, strict=True)]
        self._rows = np.array(rows, np.int64)
        self._first_is_input = not first.gated

    def first(self) -> CompiledLayers:
        """The same for the first network alone."""
        alone = copy(self)
        alone._rows = self._rows[:1]
        return alone

    def _row(self, step: Step) -> list[int]:
        layer = step.layer
        if isinstance(layer, SparseLinear):
            indices = [layer.row_pointer, layer.columns]
            transpose = [layer.transpose_pointer, layer.transpose_columns, layer.transpose_order]
        else:
            full = Topology.full((layer.out_features, layer.in_features))
            pointer, columns, order = full.transpose.row_pointer, full.transpose.columns, full.transpose.permutation
            indices = [full.row_pointer, full.columns]
            transpose = [pointer, columns.to(torch.int16), order.to(torch.int32)]
        tensors = [step.x, step.y, step.dx, step.dy, step.weight_gradient, step.bias_gradient]
        assert unsigned(transpose[1]).dtype == self._index.dtype
        self._kept += [step.weights, step.bias, *indices, *transpose, *tensors]
        row = [0] * passes.FIELDS
        row[passes.OUT], row[passes.IN], row[passes.NNZ] = layer.out_features, layer.in_features, step.weights.numel()
        row[passes.POINTER], row[passes.COLUMNS] = (tensor.data_ptr() for tensor in indices)
        row[passes.VALUES], row[passes.BIAS] = step.weights.data_ptr(), step.bias.data_ptr()
        row[passes.BIASES], row[passes.RELU], row[passes.GATED] = layer.out_features, step.relu, step.gated
        row[passes.TRANSPOSE_POINTER : passes.TRANSPOSE_ORDER + 1] = [tensor.data_ptr() for tensor in transpose]
        row[passes.X], row[passes.Y], row[passes.DX], row[passes.DY], row[passes.DVALUES], row[passes.DBIAS] = (
            tensor.data_ptr() for tensor in tensors
        )
        return row

    def _slices(self) -> int:
        threads = threads_for(self._batch * int(self._rows[:, :, passes.NNZ].sum()))
        return 0 if threads == 1 else -(-threads // len(self._rows))

    def forward(self) -> None:
        """One call for all of them."""
        slices = self._slices()
        if slices:
            passes.forward_threaded(self._rows, self._batch, slices, self._like)
        else:
            passes.forward_serial(self._rows, self._batch, self._like)

    def backward(self, first: int, last: int) -> None:
        """One call for all of them."""
        if not self._first_is_input:
            first, last = 0, int(self._rows[0, 0, passes.IN])
        slices = self._slices()
        if slices:
            passes.backward_threaded(self._rows, self._batch, first, last, slices, self._like, self._index)
        else:
            passes.backward_serial(self._rows, self._batch, first, last, self._like, self._index)

    def gradients(self) -> None:
        """One call for all of them."""
        slices = self._slices()
        if slices:
            passes.gradients_threaded(self._rows, self._batch, slices, self._like)
        else:
            passes.gradients_serial(self._rows, self._batch, self._like)


class TorchLayers:
    """One layer of each network as torch's own products: dense, or of the `gemm` backend through scratch."""

    def __init__(self, steps: list[Step]) -> None:
        self._steps = steps
        self._weights = [DenseWeight(step) for step in steps]

    def first(self) -> TorchLayers:
        """The same for the first network alone."""
        alone = copy(self)
        alone._steps, alone._weights = self._steps[:1], self._weights[:1]
        return alone

    def forward(self) -> None:
        """Products, biases and ReLU of every network in turn."""
        for step, weight in zip(self._steps, self._weights, strict=True):
            product = multiply(weight.filled(), step.x, step.y)
            torch.add(product, step.bias.unsqueeze(1), out=step.y)
            if step.relu:
                step.y.relu_()

    def backward(self, first: int, last: int) -> None:
        """Products with the transposes, and ReLU's gate."""
        for step, weight in zip(self._steps, self._weights, strict=True):
            if step.gated:
                product = multiply(weight.dense.T, step.dy, step.dx)
                torch.ops.aten.threshold_backward.grad_input(product, step.x, 0, grad_input=step.dx)
            elif last > first:
                torch.mm(weight.dense[:, first:last].T, step.dy, out=step.dx[first:last])

    def gradients(self) -> None:
        """Products with the inputs, and sums over the batch."""
        for step, weight in zip(self._steps, self._weights, strict=True):
            weight.differentiate(step)
            torch.sum(step.dy, 1, out=step.bias_gradient)


class DenseWeight:
    """A layer's weight as a matrix: its own, or scratch into which the values are scattered."""

    def __init__(self, step: Step) -> None:
        layer = step.layer
        self.dense, self._positions = step.weights, torch.empty(0, dtype=torch.int64)
        self._scattered = isinstance(layer, SparseLinear)
        if isinstance(layer, SparseLinear):
            self.dense, self._positions = step.weights.new_zeros(layer.shape), layer.positions
        self._values, self._gradient = step.weights, torch.empty_like(self.dense) if self._scattered else self.dense
        self._seen = self._positions._version

    def filled(self) -> Tensor:
        """The matrix with the values as they are now."""
        if self._scattered:
            if self._seen != self._positions._version:  # connections have moved
                self.dense.zero_()
                self._seen = self._positions._version
            self.dense.view(-1).index_copy_(0, self._positions, self._values)
        return self.dense

    def differentiate(self, step: Step) -> None:
        """The weights' gradient dY Xᵀ, at the connections only."""
        if self._scattered:
            product = multiply(step.dy, step.x.T, self._gradient)
            torch.index_select(product.view(-1), 0, self._positions, out=step.weight_gradient)
        else:
            product = multiply(step.dy, step.x.T, step.weight_gradient)
            if product is not step.weight_gradient:
                step.weight_gradient.copy_(product)
