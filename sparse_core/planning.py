"""What `sparsify` would make sparse of a model, with how many weights, and what stays dense and why."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType

from torch import nn
from torch.nn.parameter import is_lazy

from sparse_core.conv import Unit, reason_against
from sparse_core.correlated import Correlated
from sparse_core.courses import multiplied_counts, starting_counts
from sparse_core.distributions import Distribution
from sparse_core.initial_topologies import Placing, placing
from sparse_core.layers import sparse_layers
from sparse_core.mlp import dense_indices
from sparse_core.presets import PRESETS


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
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ValueError(f"{', '.join(lazy)} have no shape yet; run one batch through the model first")
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
