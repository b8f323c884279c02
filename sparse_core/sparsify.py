"""A user's own model made sparse: its `nn.Linear` layers swapped for sparse ones, by name."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

import torch
from torch import nn

from sparse_core.distributions import Distribution, allocate
from sparse_core.layers import SparseLinear, sparse_layers
from sparse_core.mlp import dense_indices
from sparse_core.topology import Topology

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What `sparsify` will do: connections per layer it makes sparse, and why others stay as they are."""

    counts: Mapping[str, int]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{name}: {count} connections" for name, count in self.counts.items()]
        lines += [f"{name}: stays dense, {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def sparsify(
    model: nn.Module,
    sparsity: float,
    *,
    distribution: str | Distribution = "erk",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    dense: str | Sequence[str | int] = "output",
    init: str = "torch",
    generator: torch.Generator | None = None,
    backend: str = "gemm",
) -> nn.Module:
    """Swap a model's linear layers for sparse ones, in place, so that the whole model has exactly `sparsity`.

    The model keeps its weights at the connections that are drawn, and its parameter order. Make the
    optimizer afterwards: parameters are new. What stays dense is logged with the reason; see `plan`.

    Args:
        model: any module; a plain `nn.Linear` is returned as a sparse layer.
        sparsity: 1 - connections / cells over all weight matrices of the model (parameters with two or
            more axes), dense ones included; 0 leaves the model as it is.
        distribution: see `allocate`.
        include: globs over layer names that may become sparse.
        exclude: globs over layer names that stay dense.
        dense: further layers kept dense: `"input"`, `"output"` (first and last linear layer), globs, indices.
        init: `"torch"` keeps the weights as they are, `"fan-in"` scales them for the actual fan-in.
        generator: draws the topologies, layer by layer; torch's global one by default.
        backend: see `SparseLinear`.

    Returns:
        The model.

    Raises:
        ValueError: for a sparsity that cannot be met, or globs that name nothing.
    """
    chosen = plan(model, sparsity, distribution=distribution, include=include, exclude=exclude, dense=dense)
    generator = torch.default_generator if generator is None else generator
    for name, reason in chosen.skipped.items():
        logger.info("%s stays dense: %s", name or "the model", reason)
    for name, count in chosen.counts.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        if count == linear.weight.numel():
            continue
        topology = Topology.random((linear.out_features, linear.in_features), count, generator)
        layer = SparseLinear.from_dense(linear, topology, init=init, backend=backend)
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


def plan(
    model: nn.Module,
    sparsity: float,
    *,
    distribution: str | Distribution = "erk",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    dense: str | Sequence[str | int] = "output",
) -> Plan:
    """What `sparsify` would do with these arguments, without doing it."""
    included, excluded = ([globs] if isinstance(globs, str) else list(globs) for globs in (include, exclude))
    already = sparse_layers(model)
    if already and sparsity:
        raise ValueError(f"the model has sparse layers already: {', '.join(already)}; sparsify a dense model, once")
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for glob in [*included, *excluded]:
        if glob != "*" and not any(fnmatchcase(name, glob) for name in linears):
            raise ValueError(f"glob {glob!r} names no linear layer; known: {', '.join(linears) or 'none'}")
    names = list(linears)
    kept_dense = {names[index] for index in dense_indices(dense, names)} if names and sparsity else set()
    skipped = {}
    for name, linear in linears.items():
        reason = _reason_to_skip(model, name, linear)
        if not any(fnmatchcase(name, glob) for glob in included):
            reason = "not included"
        elif any(fnmatchcase(name, glob) for glob in excluded):
            reason = "excluded"
        elif name in kept_dense and sparsity:
            reason = f"kept dense by `dense={dense!r}`"
        if reason:
            skipped[name] = reason
    chosen = [name for name in linears if name not in skipped]
    shapes: list[tuple[int, ...]] = [tuple(linears[name].weight.shape) for name in chosen]
    own = {id(linears[name].weight) for name in chosen}
    others = [tuple(p.shape) for p in model.parameters() if p.dim() >= 2 and id(p) not in own]
    if not shapes and sparsity:
        raise ValueError(f"no layer of this model can be made sparse:\n{Plan({}, skipped)}")
    counts = allocate([*shapes, *others], sparsity, distribution, range(len(shapes), len(shapes) + len(others)))
    return Plan(MappingProxyType(dict(zip(chosen, counts, strict=False))), MappingProxyType(skipped))


def _reason_to_skip(model: nn.Module, name: str, linear: nn.Linear) -> str | None:
    """Why a linear layer's weight is not its own, or None when it may become sparse."""
    if type(linear) is not nn.Linear:
        inside = _owner(model, name)
        if isinstance(inside, nn.MultiheadAttention):
            return "an attention projection whose weight its module reads"
        return f"a {type(linear).__name__}, not a plain nn.Linear"
    if linear._forward_pre_hooks or linear._forward_hooks or linear._backward_pre_hooks or linear._backward_hooks:
        return "it has hooks, one of which may make its weight (as weight_norm does), and the new layer would lose them"
    users = [n for n, p in model.named_parameters(remove_duplicate=False) if p is linear.weight]
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
