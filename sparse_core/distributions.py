"""Layer shapes × sparsity → an exact number of connections per layer.

A distribution gives each layer a relative density; `allocate` scales them to the budget, makes
layers that would pass density 1 dense, and rounds so that the total is exact to the connection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from numbers import Real

from sparse_core.registry import Registry

Shape = tuple[int, ...]
Distribution = Callable[[Sequence[Shape]], list[float]]

DISTRIBUTIONS: Registry[Distribution] = Registry("distribution")
distribution = DISTRIBUTIONS.register


@distribution("uniform")
def uniform(shapes: Sequence[Shape]) -> list[float]:
    """The same density in every layer."""
    return [1.0] * len(shapes)


@distribution("er")
def erdos_renyi(shapes: Sequence[Shape]) -> list[float]:
    """Density ∝ (in + out) / (in · out): SET's Erdős–Rényi (Mocanu et al. 2018, arXiv:1707.04780)."""
    return [(shape[0] + shape[1]) / (shape[0] * shape[1]) for shape in shapes]


@distribution("erk")
def erdos_renyi_kernel(shapes: Sequence[Shape]) -> list[float]:
    """Density ∝ Σ dims / ∏ dims: RigL's kernel-aware form (Evci et al. 2020, arXiv:1911.11134)."""
    return [sum(shape) / math.prod(shape) for shape in shapes]


def check_sparsity(sparsity: float) -> float:
    """`sparsity` as a float in [0, 1), or a `ValueError`."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real) or not 0 <= sparsity < 1:
        raise ValueError(f"`sparsity` must be a number in [0, 1), the share of connections left out, got {sparsity!r}")
    return float(sparsity)


def allocate(
    shapes: Sequence[Shape], sparsity: float, distribution: str | Distribution = "erk", dense: Collection[int] = ()
) -> list[int]:
    """Connections per layer, so that 1 - connections / cells over all layers is `sparsity`, to the connection.

    Args:
        shapes: the weights' shapes (out, in, …), those kept dense included.
        sparsity: share of connections left out over the whole network, in [0, 1).
        distribution: a name, a name with one factor per sparse layer (`"er:7,64"` is Erdős–Rényi with
            ε = 7 and 64 up to the common scale), or a function of the shapes of the sparse layers.
        dense: indices of layers that keep every connection.

    Raises:
        ValueError: for a sparsity that the layers which may be sparse cannot reach.
    """
    sparsity = check_sparsity(sparsity)
    cells = [math.prod(shape) for shape in shapes]
    total = sum(cells)
    unknown = [index for index in dense if not 0 <= index < len(shapes)]
    if unknown:
        raise ValueError(f"`dense` must hold indices of the {len(shapes)} layers from 0 on, got {unknown}")
    if isinstance(distribution, str):
        DISTRIBUTIONS[distribution.partition(":")[0]]  # an unknown name is an error at any sparsity
    if sparsity == 0:
        return cells
    target = total - round(sparsity * total)
    sparse = [index for index in range(len(shapes)) if index not in dense]
    available = sum(cells[index] for index in sparse)
    budget = target - (total - available)
    # A layer with no connection cuts the network in two, so every layer keeps at least one.
    if not len(sparse) <= budget <= available:
        most = 1 - (total - available + len(sparse)) / total
        raise ValueError(
            f"`sparsity` {sparsity:g} cannot be met: of {total} connections {total - available} are in layers kept "
            f"dense and each other layer needs one, so at most {most:.6g} can; lower it, widen the network or keep "
            "fewer layers dense"
        )
    relative = _relative_densities(distribution, [shapes[index] for index in sparse])
    counts = list(cells)
    for index, count in zip(sparse, _fill(relative, [cells[i] for i in sparse], budget), strict=True):
        counts[index] = count
    return counts


def _relative_densities(distribution: str | Distribution, shapes: Sequence[Shape]) -> list[float]:
    if callable(distribution):
        relative = distribution(shapes)
        if len(relative) != len(shapes) or not all(0 < density < math.inf for density in relative):
            raise ValueError(
                f"`distribution` must return one positive density for each of the {len(shapes)} sparse layers, "
                f"got {relative!r}"
            )
        return relative
    name, _, text = distribution.partition(":")
    relative = DISTRIBUTIONS[name](shapes)
    if not text:
        return relative
    try:
        factors = [float(factor) for factor in text.split(",")]
    except ValueError:
        factors = []
    if len(factors) != len(shapes) or not all(0 < factor < math.inf for factor in factors):
        raise ValueError(
            f"distribution {distribution!r} must give one positive factor for each of the {len(shapes)} sparse layers, "
            f"as in {name + ':' + ','.join(['1'] * len(shapes))!r}"
        )
    return [density * factor for density, factor in zip(relative, factors, strict=True)]


def _fill(relative: list[float], cells: list[int], budget: int) -> list[int]:
    """Counts ∝ relative · cells, capped at cells, at least 1, with the exact sum `budget`."""
    if not cells:
        return []
    full: set[int] = set()
    while True:
        free = [index for index in range(len(cells)) if index not in full]
        left = budget - sum(cells[index] for index in full)
        weight = sum(relative[index] * cells[index] for index in free)
        over = {index for index in free if left * relative[index] >= weight}
        if not over or not free:
            break
        full |= over
    ideal = {index: left * relative[index] * cells[index] / weight for index in free}
    counts = [cells[index] if index in full else max(1, math.floor(ideal[index])) for index in range(len(cells))]
    # Largest remainders first, ties by index; a layer lifted to one connection is paid for by the largest.
    order = sorted(free, key=lambda index: (math.floor(ideal[index]) - ideal[index], index))
    while (missing := budget - sum(counts)) > 0:
        for index in [i for i in order if counts[i] < cells[i]][:missing]:
            counts[index] += 1
    while sum(counts) > budget:
        counts[max(range(len(counts)), key=lambda index: (counts[index], -index))] -= 1
    return counts
