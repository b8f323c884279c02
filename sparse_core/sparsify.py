"""A user's own model made sparse: its `nn.Linear` and `nn.Conv2d` layers swapped for sparse ones, by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sparse_core.conv import SparseConv2d, Unit
from sparse_core.distributions import Distribution
from sparse_core.initial_topologies import Placing, draw
from sparse_core.layers import SparseLinear, sparse_layers
from sparse_core.maskings import MASKINGS
from sparse_core.planning import Plan, plan
from sparse_core.presets import PRESETS
from sparse_core.topology import Topology

logger = logging.getLogger(__name__)


def sparsify(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    topology: str = "static",
    distribution: str | Distribution | None = None,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    dense: str | Sequence[str | int] = "output",
    conv_unit: Unit = "weight",
    init: str = "torch",
    initial_topology: str | Placing | None = None,
    generator: torch.Generator | None = None,
    topologies: Mapping[str, Topology] | None = None,
    backend: str = "gemm",
) -> nn.Module:
    """Swap a model's linear layers and convolutions for sparse ones, in place; the whole model has exactly `sparsity`.

    The model keeps its weights at the connections that are drawn, and its parameter order. Make the
    optimizer afterwards: parameters are new. What stays dense is logged with the reason; see `plan`.

    Args:
        model: any module; a plain `nn.Linear` or `nn.Conv2d` is returned as a sparse layer.
        sparsity: 1 - weights / cells over all weight matrices of the model (parameters with two or
            more axes), dense ones included; 0 leaves the model as it is. None where the distribution fixes the number
            of connections (`"epsilon"`, `"densities:0.1,0.2"`, `"counts:100,200"`), or where the method has its own
            (`sr-ste`: of those layers that it masks; one whose inputs are no multiple of m stays dense).
        topology: the method that will move its connections, a name from `PRESETS`. One that comes down to `sparsity`
            along training (GMP, GraNet) starts with its own; every layer that may be sparse is, then, full ones, too.
        distribution: see `allocate`; the method's own by default, which is ERK for most.
        include: globs over layer names that may become sparse.
        exclude: globs over layer names that stay dense.
        dense: further layers kept dense: `"input"`, `"output"` (first and last of these layers), globs, indices.
        conv_unit: what a connection of a convolution is, `"weight"` or `"kernel"` (see `SparseConv2d`). Kernels come
            whole: where no other layer can make up for it, the total is off by at most half a kernel.
        init: `"torch"` keeps the weights as they are, `"fan-in"` scales them for the actual fan-in.
        initial_topology: where connections are at the start, a name from `INITIAL_TOPOLOGIES` with options
            (`"small-world:beta=0.2"`), a `Correlated(inputs)`, or a function (shape, count, generator) -> positions;
            the method's own by default, which is `"random"` for all.
        generator: draws the topologies, layer by layer; torch's global one by default.
        topologies: by layer name, of every layer that becomes sparse, instead of drawn ones; of the counts that
            `sparsity` and `distribution` give.
        backend: see `SparseLinear`.

    Returns:
        The model.

    Raises:
        ValueError: for a sparsity that cannot be met, globs that name nothing, or topologies that do not fit.
    """
    chosen = plan(
        model, sparsity, topology=topology, distribution=distribution, include=include, exclude=exclude, dense=dense,
        conv_unit=conv_unit, initial_topology=initial_topology if topologies is None else None,
    )  # fmt: skip
    method = PRESETS[topology]
    initial = initial_topology or method.initial_topology
    generator = torch.default_generator if generator is None else generator
    sparsity = method.settled(sparsity)
    masking = method.rule(method.masking, MASKINGS)
    wanted = _wanted(model, chosen, full=sparsity != 0 and method.begins_wider)
    if topologies is None:
        topologies = {name: draw(initial, shape, count, generator) for name, (shape, count) in wanted.items()}
    else:
        _check_topologies(topologies, wanted)
    for name, reason in chosen.skipped.items():
        logger.info("%s stays dense: %s", name or "the model", reason)
    swapped: dict[int, nn.Module] = {}
    replaced = []  # held until the end, so that no other object can have the identity of one
    for name in wanted:
        dense_layer = model.get_submodule(name)
        assert isinstance(dense_layer, nn.Linear | nn.Conv2d)
        layer = _sparse(dense_layer, topologies[name], conv_unit, init, backend)
        layer.masking = None if masking is None else masking.choose(layer, chosen.multiplied[name])
        if not name:
            return layer
        replaced.append(dense_layer)
        swapped[id(dense_layer)] = layer
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], layer)
        if isinstance(parent, nn.TransformerEncoderLayer):
            # Its inference fast path reads `.weight`; this flag sends it the ordinary way.
            parent.activation_relu_or_gelu = 0
    _swap_in_containers(model, swapped)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and sparse_layers(module):
            module.use_nested_tensor = False  # the same fast path, one level up
    return model


def _swap_in_containers(model: nn.Module, swapped: Mapping[int, nn.Module]) -> None:
    """Let the plain lists, dicts and tuples that modules hold beside their layers hold the new ones, too."""
    for module in model.modules():
        for name, held in vars(module).items():
            if name == "_modules":
                continue
            if isinstance(held, list):
                held[:] = [swapped.get(id(each), each) for each in held]
            elif isinstance(held, dict):
                held.update({key: swapped[id(each)] for key, each in held.items() if id(each) in swapped})
            elif type(held) is tuple and any(id(each) in swapped for each in held):
                vars(module)[name] = tuple(swapped.get(id(each), each) for each in held)


def _wanted(model: nn.Module, chosen: Plan, full: bool) -> dict[str, tuple[tuple[int, int], int]]:
    """Shape and number of connections of every layer that becomes sparse; a full one stays as it is unless `full`."""
    wanted = {}
    for name, count in chosen.counts.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        each, (outputs, cells) = chosen.kernels.get(name, 1), (layer.weight.shape[0], layer.weight.numel())
        if full or count != cells:
            wanted[name] = (outputs, cells // (outputs * each)), count // each
    return wanted


def _check_topologies(topologies: Mapping[str, Topology], wanted: Mapping[str, tuple[tuple[int, int], int]]) -> None:
    if set(topologies) != set(wanted):
        wrong = ", ".join(sorted(set(topologies) ^ set(wanted)))
        raise ValueError(f"`topologies` must name every layer that becomes sparse and no other; differing: {wrong}")
    for name, (shape, count) in wanted.items():
        given = topologies[name]
        if given.shape != shape or given.nnz != count:
            raise ValueError(
                f"`topologies` gives {name!r} {given.nnz} connections of shape {given.shape}, where sparsity and "
                f"distribution ask for {count} of shape {shape}; give them as they were where the topology comes from"
            )


def _sparse(layer: nn.Linear | nn.Conv2d, topology: Topology, conv_unit: Unit, init: str, backend: str) -> SparseLinear:
    if isinstance(layer, nn.Conv2d):
        return SparseConv2d.from_dense(layer, topology, unit=conv_unit, init=init, backend=backend)
    return SparseLinear.from_dense(layer, topology, init=init, backend=backend)
