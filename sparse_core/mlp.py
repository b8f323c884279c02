"""A sparse multilayer perceptron, and which layers of a network stay dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise

import torch
from torch import nn

from sparse_core.activations import Factory, made
from sparse_core.courses import multiplied_counts, starting_counts
from sparse_core.distributions import Distribution
from sparse_core.initial_topologies import Placing, draw, placing
from sparse_core.layers import SparseLinear
from sparse_core.maskings import MASKINGS
from sparse_core.presets import PRESETS


class SparseMLP(nn.Sequential):
    """A multilayer perceptron whose sparsity is exact over the whole network; layers at density 1 are `nn.Linear`.

    Args:
        sizes: features from input to output, e.g. [17, 256, 256, 6].
        sparsity: 1 - connections / Σ in × out over all layers, dense ones included, biases not; None where
            `distribution` fixes the number of connections, or where the method has its own (`sr-ste`: of those layers
            that it masks, whose inputs are a multiple of m).
        topology: the method that will move its connections; see `sparsify`.
        distribution: how the connections are shared out (see `allocate`); the method's own by default.
        dense: layers kept dense: `"input"`, `"output"` or indices.
        activation: makes the activation between layers; one that wants an argument, as `AllReLU`, is given the number
            of the hidden layer, from 0.
        output_activation: after the last one, if any.
        init: see `SparseLinear`.
        initial_topology: where connections are at the start; see `sparsify`.
        generator: draws every layer's topology and weights in order.
        backend: see `SparseLinear`.
        device: see `SparseLinear`.
        dtype: see `SparseLinear`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        sparsity: float | None = None,
        topology: str = "static",
        distribution: str | Distribution | None = None,
        dense: str | Sequence[str | int] = "output",
        activation: Factory = nn.ReLU,
        output_activation: Callable[[], nn.Module] | None = None,
        init: str = "torch",
        initial_topology: str | Placing | None = None,
        generator: torch.Generator | None = None,
        backend: str = "gemm",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"`sizes` must name at least an input and an output, all positive, got {list(sizes)}")
        generator = torch.default_generator if generator is None else generator
        shapes = [(fan_out, fan_in) for fan_in, fan_out in pairwise(sizes)]
        names = [str(index) for index in range(len(shapes))]
        method = PRESETS[topology]
        sparsity = method.settled(sparsity)
        kept = set(range(len(shapes))) if sparsity == 0 else dense_indices(dense, names)
        kept |= {index for index, (_, fan_in) in enumerate(shapes) if fan_in % method.group}
        if sparsity and method.group > 1 and len(kept) == len(shapes):
            raise ValueError(
                f"no layer's inputs are a multiple of {method.group}, which {topology!r} takes together: {list(sizes)}"
            )
        distribution = method.distribution if distribution is None else distribution
        initial = initial_topology or method.initial_topology
        placing(initial)
        counts = starting_counts(shapes, sparsity, method, distribution, kept)
        falls = bool(sparsity) and method.begins_wider
        masking = method.rule(method.masking, MASKINGS)
        active = multiplied_counts(shapes, sparsity, method, distribution, kept)
        modules: list[nn.Module] = []
        for index, ((fan_out, fan_in), count) in enumerate(zip(shapes, counts, strict=True)):
            if count == fan_in * fan_out and (index in kept or not falls):
                modules.append(_dense_linear(fan_in, fan_out, generator, device, dtype))
            else:
                connections = draw(initial, (fan_out, fan_in), count, generator)
                layer = SparseLinear(
                    fan_in, fan_out, topology=connections, init=init, generator=generator, backend=backend,
                    device=device, dtype=dtype,
                )  # fmt: skip
                layer.masking = None if masking is None else masking.choose(layer, active[index])
                modules.append(layer)
            if index < len(shapes) - 1:
                modules.append(made(activation, index))
            elif output_activation is not None:
                modules.append(output_activation())
        super().__init__(*modules)


def dense_indices(dense: str | Sequence[str | int], names: Sequence[str]) -> set[int]:
    """Indices of the layers that `dense` names: `"input"`, `"output"`, indices, globs over `names`.

    A network of one layer has no separate input or output layer.
    """
    chosen: set[int] = set()
    for item in [dense] if isinstance(dense, str) else dense:
        if item in ("input", "output"):
            if len(names) > 1:
                chosen.add(0 if item == "input" else len(names) - 1)
            continue
        found = {item % len(names)} if isinstance(item, int) and -len(names) <= item < len(names) else set()
        if isinstance(item, str):
            found = {index for index, name in enumerate(names) if fnmatchcase(name, item)}
        if not found:
            raise ValueError(
                f"`dense` names no layer with {item!r}; give 'input', 'output', an index from 0 to {len(names) - 1}, "
                f"or a glob over the names {', '.join(map(repr, names))}"
            )
        chosen |= found
    return chosen


def _dense_linear(
    fan_in: int, fan_out: int, generator: torch.Generator, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Linear:
    """A plain `nn.Linear` with torch's own initial distribution, drawn from the named generator."""
    linear = nn.Linear(fan_in, fan_out, device="meta", dtype=dtype).to_empty(device=device or "cpu")
    bound = fan_in**-0.5
    with torch.no_grad():
        for parameter in (linear.weight, linear.bias):
            drawn = torch.empty(parameter.shape, dtype=parameter.dtype).uniform_(-bound, bound, generator=generator)
            parameter.copy_(drawn)
    return linear
