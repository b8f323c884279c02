"""Which layer feeds which, and what neurons answer: read off a model's modules, for rules that look at activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import activation

from sparse_core.activations import AllReLU
from sparse_core.layers import SparseLinear

_WEIGHTED = (SparseLinear, nn.Linear, nn.modules.conv._ConvNd)
_SHAPING = (nn.LayerNorm, nn.modules.batchnorm._NormBase)


class Shaped(Protocol):
    """A layer or its topology."""

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""


def chain_of(layers: Mapping[str, Shaped], linear: bool = False) -> dict[str, str]:
    """For a layer, the one before it in the same module whose outputs are its inputs, told by the order and the sizes.

    An output may feed several consecutive inputs: a channel the taps of a kernel, or the pixels of a flattened map. Of
    a layer that is not known to be a convolution it feeds one, so that two heads side by side are no chain; bare
    topologies may be of convolutions unless they are said to be `linear`.
    """
    found = {}
    names = list(layers)
    for above, below in pairwise(names):
        together = above.rpartition(".")[0] == below.rpartition(".")[0]
        if together and _feeds(layers[above], layers[below].shape[1], linear):
            found[below] = above
    return found


def _feeds(above: Shaped, inputs: int, linear: bool = False) -> bool:
    """Whether so many inputs can be a layer's outputs, told by the sizes."""
    several = hasattr(above, "kernel_size") or not (linear or isinstance(above, SparseLinear))
    return inputs % above.shape[0] == 0 if several else inputs == above.shape[0]


def readers(model: nn.Module) -> dict[str, tuple[str, int] | None]:
    """For each sparse layer whose outputs another layer with weights reads: a sparse reader, and its inputs a neuron.

    None stands for a reader that is dense. The reader is the next layer with weights in the same module, as long as it
    has as many inputs as there are outputs, or, after a convolution, a multiple; a layer without one is an output
    layer, and left out.
    """
    weighted = [(name, module) for name, module in model.named_modules() if isinstance(module, _WEIGHTED)]
    found: dict[str, tuple[str, int] | None] = {}
    for (name, above), (below, reader) in pairwise(weighted):
        if not isinstance(above, SparseLinear) or name.rpartition(".")[0] != below.rpartition(".")[0]:
            continue
        if isinstance(reader, SparseLinear):
            inputs = reader.shape[1]
        else:
            inputs = reader.in_features if isinstance(reader, nn.Linear) else reader.weight[0].numel()
        if _feeds(above, inputs):
            sparse = isinstance(reader, SparseLinear)
            found[name] = (below, inputs // above.shape[0]) if sparse else None
    return found


def activities(model: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """For each sparse layer, inputs (B, …) -> its neurons' activations (B, out, …) with the weights as they are.

    What follows a layer is told by the order of modules: normalisations and activations up to the next layer with
    weights. Where none is a module (a model that calls `F.relu`), hidden neurons are taken through ReLU, the last
    layer's are linear.
    """
    modules = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    last = max((index for index, (_, module) in enumerate(modules) if isinstance(module, _WEIGHTED)), default=-1)
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for index, (name, module) in enumerate(modules):
        if not isinstance(module, SparseLinear):
            continue
        following = []
        for _, other in modules[index + 1 :]:
            if isinstance(other, _WEIGHTED):
                break
            if type(other).__module__ == activation.__name__ or isinstance(other, (*_SHAPING, AllReLU)):
                following.append(other)
        if not following and index != last:
            following = [nn.ReLU()]
        found[name] = partial(_answer, module, following)
    return found


@torch.no_grad()
def _answer(layer: SparseLinear, following: list[nn.Module], inputs: Tensor) -> Tensor:
    capture, layer.capture = layer.capture, None
    try:
        outputs: Tensor = layer(inputs)
        for module in following:
            training = module.training
            outputs = module.eval()(outputs)
            module.train(training)
    finally:
        layer.capture = capture
    return outputs
