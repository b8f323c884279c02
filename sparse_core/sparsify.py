"""A user's own model made sparse: its `nn.Linear` and `nn.Conv2d` layers swapped for sparse ones, by name."""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType

import torch
from torch import nn

from sparse_core.conv import SparseConv2d, Unit, reason_against
from sparse_core.correlated import Correlated
from sparse_core.courses import multiplied_counts, starting_counts
from sparse_core.distributions import Distribution
from sparse_core.initial_topologies import Placing, draw, placing
from sparse_core.layers import SparseLinear, sparse_layers
from sparse_core.maskings import MASKINGS
from sparse_core.mlp import dense_indices
from sparse_core.presets import PRESETS
from sparse_core.topology import Topology

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What `sparsify` will do: weights per layer it makes sparse, and why others stay as they are."""

    counts: Mapping[str, int]
    skipped: Mapping[str, str]
    kernels: Mapping[str, int] = field(default_factory=dict)
    """Weights per kernel of the layers whose connections are whole kernels; a connection is one weight elsewhere."""
    multiplied: Mapping[str, int] = field(default_factory=dict)
    """Weights that multiply in the layers of a method that keeps more of them; empty for others."""

    def __str__(self) -> str:
        lines = [
            f"{name}: {count // self.kernels.get(name, 1)} connections"
            + (f" of {self.kernels[name]} weights each" if name in self.kernels else "")
            for name, count in self.counts.items()
        ]
        lines += [f"{name}: {count} of its weights multiply" for name, count in self.multiplied.items()]
        lines += [f"{name}: stays dense, {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


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
    initial = initial_topology or PRESETS[topology].initial_topology
    generator = torch.default_generator if generator is None else generator
    method = PRESETS[topology]
    sparsity = method.settled(sparsity)
    masking = method.rule(method.masking, MASKINGS)
    wanted = _wanted(model, chosen, full=sparsity != 0 and method.begins_wider)
    if topologies is None:
        topologies = {name: draw(initial, shape, count, generator) for name, (shape, count) in wanted.items()}
    else:
        _check_topologies(topologies, wanted)
    for name, reason in chosen.skipped.items():
        logger.info("%s stays dense: %s", name or "the model", reason)
    for name in wanted:
        dense_layer = model.get_submodule(name)
        assert isinstance(dense_layer, nn.Linear | nn.Conv2d)
        layer = _sparse(dense_layer, topologies[name], conv_unit, init, backend)
        layer.masking = None if masking is None else masking.choose(layer, chosen.multiplied[name])
        if not name:
            return layer
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], layer)
        if isinstance(parent, nn.TransformerEncoderLayer):
            # Its inference fast path reads `.weight`; this flag sends it the ordinary way.
            parent.activation_relu_or_gelu = 0
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and sparse_layers(module):
            module.use_nested_tensor = False  # the same fast path, one level up
    return model


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


def plan(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    topology: str = "static",
    distribution: str | Distribution | None = None,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    dense: str | Sequence[str | int] = "output",
    conv_unit: Unit = "weight",
    initial_topology: str | Placing | None = None,
) -> Plan:
    """What `sparsify` would do with these arguments, without doing it."""
    method = PRESETS[topology]
    sparsity = method.settled(sparsity)
    distribution = method.distribution if distribution is None else distribution
    already = sparse_layers(model)
    if already and sparsity != 0:
        raise ValueError(f"the model has sparse layers already: {', '.join(already)}; sparsify a dense model, once")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    skipped = _skipped(model, layers, include, exclude, dense if sparsity != 0 else ())
    skipped = _ungrouped(layers, method.group) | skipped
    chosen = [name for name in layers if name not in skipped]
    _check_initial(initial_topology or method.initial_topology, [layers[name] for name in chosen])
    shapes: list[tuple[int, ...]] = [tuple(layers[name].weight.shape) for name in chosen]
    own = {id(layers[name].weight) for name in chosen}
    others = [tuple(p.shape) for p in model.parameters() if p.dim() >= 2 and id(p) not in own]
    if not shapes and sparsity != 0:
        raise ValueError(f"no layer of this model can be made sparse:\n{Plan({}, skipped)}")
    fixed = range(len(shapes), len(shapes) + len(others))
    counts = starting_counts([*shapes, *others], sparsity, method, distribution, fixed)
    kernels = _kernel_sizes(dict(zip(chosen, shapes, strict=True)), conv_unit)
    if kernels:
        cells, each = [math.prod(shape) for shape in shapes], [kernels.get(name, 1) for name in chosen]
        counts = _whole_kernels(counts[: len(shapes)], cells, each)
    planned = dict(zip(chosen, counts, strict=False))
    active = multiplied_counts([*shapes, *others], sparsity, method, distribution, fixed) if method.masking else []
    multiplied = dict(zip(chosen, active, strict=False))
    return Plan(*map(MappingProxyType, (planned, skipped, kernels, multiplied)))


def _ungrouped(layers: Mapping[str, nn.Linear | nn.Conv2d], group: int) -> dict[str, str]:
    """Layers whose inputs (of a convolution, channels) are no multiple of `group`, and so stay dense."""
    inputs = {name: layer.weight.shape[1] for name, layer in layers.items()}
    return {name: f"its {size} inputs are no multiple of {group}" for name, size in inputs.items() if size % group}


def _skipped(
    model: nn.Module,
    layers: Mapping[str, nn.Linear | nn.Conv2d],
    include: str | Sequence[str],
    exclude: str | Sequence[str],
    dense: str | Sequence[str | int],
) -> dict[str, str]:
    """Layers that stay dense, and why."""
    included, excluded = ([globs] if isinstance(globs, str) else list(globs) for globs in (include, exclude))
    for glob in [*included, *excluded]:
        if glob != "*" and not any(fnmatchcase(name, glob) for name in layers):
            raise ValueError(
                f"glob {glob!r} names no linear layer or convolution; known: {', '.join(layers) or 'none'}"
            )
    names = list(layers)
    kept_dense = {names[index] for index in dense_indices(dense, names)} if names else set()
    skipped = {}
    for name, layer in layers.items():
        reason = f"kept dense by `dense={dense!r}`" if name in kept_dense else _reason_to_skip(model, name, layer)
        if not any(fnmatchcase(name, glob) for glob in included):
            reason = "not included"
        elif any(fnmatchcase(name, glob) for glob in excluded):
            reason = "excluded"
        if reason:
            skipped[name] = reason
    return skipped


def _check_initial(initial: str | Placing, layers: Sequence[nn.Module]) -> None:
    placing(initial)
    if isinstance(initial, Correlated) and any(isinstance(layer, nn.Conv2d) for layer in layers):
        raise ValueError(
            "`Correlated` places connections of linear layers only; exclude the convolutions, or take another initial "
            "topology for the model"
        )


def _kernel_sizes(shapes: Mapping[str, tuple[int, ...]], conv_unit: Unit) -> dict[str, int]:
    """Weights per connection of the layers whose connections are whole kernels."""
    if conv_unit not in ("weight", "kernel"):
        raise ValueError(f"`conv_unit` must be 'weight' or 'kernel', got {conv_unit!r}")
    return {name: math.prod(shape[2:]) for name, shape in shapes.items() if conv_unit == "kernel" and len(shape) == 4}


def _whole_kernels(counts: list[int], cells: list[int], each: list[int]) -> list[int]:
    """Counts that are multiples of `each`, with the same sum where layers of single weights can make up for it.

    Small layers are rounded first, so that larger ones can make up for what a single kernel means there.
    """
    found, left = list(counts), 0
    order = sorted((size == 1, count, index) for index, (count, size) in enumerate(zip(counts, each, strict=True)))
    for _, count, index in order:
        if count == cells[index]:
            continue
        size = each[index]
        found[index] = min(max(1, round((count + left) / size)), cells[index] // size) * size
        left += count - found[index]
    if 2 * abs(left) > max(each, default=1):
        raise ValueError(
            f"`sparsity` cannot be met with whole kernels: each layer keeps at least one, which is {abs(left)} weights "
            "off; use `conv_unit='weight'`, another sparsity or another distribution"
        )
    return found


def _reason_to_skip(model: nn.Module, name: str, layer: nn.Linear | nn.Conv2d) -> str | None:
    """Why a layer's weight is not its own, or none that can be sparse; None when it may become sparse."""
    plain = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    if type(layer) is not plain:
        inside = _owner(model, name)
        if isinstance(inside, nn.MultiheadAttention):
            return "an attention projection whose weight its module reads"
        return f"a {type(layer).__name__}, not a plain nn.{plain.__name__}"
    if isinstance(layer, nn.Conv2d) and (reason := reason_against(layer)):
        return reason
    if layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks:
        return "it has hooks, one of which may make its weight (as weight_norm does), and the new layer would lose them"
    users = [n for n, p in model.named_parameters(remove_duplicate=False) if p is layer.weight]
    if len(users) > 1:
        return f"its weight is tied: {', '.join(users)}"
    return _weight_reader(model, name)


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _weight_reader(model: nn.Module, name: str) -> str | None:
    """The class of a module above `name` whose source reads this layer's `.weight`, if one does."""
    parts = name.split(".")
    for depth in range(len(parts)):
        owner = model.get_submodule(".".join(parts[:depth]))
        if type(owner).__module__.startswith("torch.nn."):
            continue
        source = _source(type(owner))
        path = "".join(rf"\[\s*{part}\s*\]" if part.isdigit() else rf"\.{re.escape(part)}" for part in parts[depth:])
        if re.search(rf"self{path}\.weight\b", source):
            return f"{type(owner).__name__} reads its `.weight`"
    return None


def _source(owner: type[nn.Module]) -> str:
    """Source of a module's class and those it inherits from, without what only sets initial weights."""
    text = ""
    for kind in owner.__mro__:
        if kind.__module__.partition(".")[0] in ("torch", "builtins"):
            continue
        try:
            source = inspect.getsource(kind)
            for name in ("__init__", "reset_parameters"):
                if name in vars(kind):
                    source = source.replace(inspect.getsource(vars(kind)[name]), "")
        except (OSError, TypeError):
            continue
        text += source
    return text
