"""Layer shapes × sparsity → an exact number of connections per layer.

A distribution gives each layer a relative density; `allocate` scales them to the budget, makes
layers that would pass density 1 dense, and rounds so that the total is exact to the connection.
Some fix the number of connections themselves (`fixed_totals.py`); no sparsity is asked for, then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from numbers import Real
from typing import NamedTuple

from sparse_core.registry import Rules

Shape = tuple[int, ...]
Distribution = Callable[[Sequence[Shape]], list[float]]


class DistributionRule(NamedTuple):
    """A distribution: how connections are shared out, or, where it is `fixed`, how many there are."""

    choose: Callable[..., list[float]]
    """(shapes, **options) -> relative density of each; fixed: (shapes, numbers, **options) -> connections of each,
    not rounded yet, where numbers stand behind the name (`"counts:100,200"`), one for each shape, or None."""
    fixed: bool = False


DISTRIBUTIONS: Rules[DistributionRule] = Rules("distribution", DistributionRule)
distribution = DISTRIBUTIONS.rule


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


@distribution("er-power")
def erdos_renyi_power(shapes: Sequence[Shape], *, power: float = 1.0) -> list[float]:
    """Density ∝ ((in + out) / (in · out))^power: 1 is er, 0 uniform (the power of RigL's release)."""
    if not math.isfinite(power):
        raise ValueError(f"option 'power' of distribution 'er-power' must be finite, got {power}")
    return [density**power for density in erdos_renyi(shapes)]


def fixes_total(distribution: str | Distribution) -> bool:
    """Whether a distribution says itself how many connections there are; a `ValueError` for a name that is not one."""
    return isinstance(distribution, str) and _parsed(distribution)[0].fixed


def repeated(distribution: str, networks: int) -> str:
    """The distribution of several alike networks together: numbers of layers (`er:7,64`) once for each."""
    name, *parts = distribution.split(":")
    return ":".join([name, *(part if "=" in part else ",".join([part] * networks) for part in parts)])


def check_sparsity(sparsity: float | None) -> float:
    """`sparsity` as a float in [0, 1), or a `ValueError`."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real) or not 0 <= sparsity < 1:
        raise ValueError(f"`sparsity` must be a number in [0, 1), the share of connections left out, got {sparsity!r}")
    return float(sparsity)


def allocate(
    shapes: Sequence[Shape],
    sparsity: float | None,
    distribution: str | Distribution = "erk",
    dense: Collection[int] = (),
) -> list[int]:
    """Connections per layer, so that 1 - connections / cells over all layers is `sparsity`, to the connection.

    Args:
        shapes: the weights' shapes (out, in, …), those kept dense included.
        sparsity: share of connections left out over the whole network, in [0, 1); None where the distribution fixes
            the number of connections.
        distribution: a name, with options (`"er-power:power=0.5"`) and, if wanted, one factor per sparse layer
            (`"er:7,64"` is Erdős–Rényi with ε = 7 and 64 up to the common scale), or a function of the shapes of the
            sparse layers.
        dense: indices of layers that keep every connection.

    Raises:
        ValueError: for a sparsity that the layers which may be sparse cannot reach, or that is not the distribution's.
    """
    fixed = fixes_total(distribution)  # an unknown name is an error at any sparsity
    sparsity = None if fixed and sparsity is None else check_sparsity(sparsity)
    cells = [math.prod(shape) for shape in shapes]
    total = sum(cells)
    unknown = [index for index in dense if not 0 <= index < len(shapes)]
    if unknown:
        raise ValueError(f"`dense` must hold indices of the {len(shapes)} layers from 0 on, got {unknown}")
    if sparsity == 0 and not fixed:
        return cells
    target = None if sparsity is None else total - round(sparsity * total)
    sparse = [index for index in range(len(shapes)) if index not in dense]
    available = sum(cells[index] for index in sparse)
    relative = _relative_densities(distribution, [shapes[index] for index in sparse])
    if fixed:
        target = _fixed_target(str(distribution), relative, [cells[i] for i in sparse], total, sparsity, target)
    assert target is not None
    budget = target - (total - available)
    # A layer with no connection cuts the network in two, so every layer keeps at least one.
    if not len(sparse) <= budget <= available:
        most = 1 - (total - available + len(sparse)) / total
        raise ValueError(
            f"`sparsity` {sparsity:g} cannot be met: of {total} connections {total - available} are in layers kept "
            f"dense and each other layer needs one, so at most {most:.6g} can; lower it, widen the network or keep "
            "fewer layers dense"
        )
    counts, own = list(cells), [cells[index] for index in sparse]
    filled = _rounded([d * size for d, size in zip(relative, own, strict=True)], budget) if fixed else None
    for index, count in zip(sparse, filled or _fill(relative, own, budget), strict=True):
        counts[index] = count
    return counts


def _fixed_target(
    distribution: str, densities: list[float], cells: list[int], total: int, sparsity: float | None, target: int | None
) -> int:
    """Connections of the whole network that a distribution fixes; an error where a sparsity means another number."""
    wanted = math.fsum(density * size for density, size in zip(densities, cells, strict=True))
    wanted += total - sum(cells)
    if target is None:
        return round(wanted)
    if not math.floor(wanted + 1e-6) <= target <= math.ceil(wanted - 1e-6):
        raise ValueError(
            f"distribution {distribution!r} fixes the number of connections, {wanted:.10g} of {total}, which is a "
            f"sparsity of {1 - wanted / total:.6g}, but `sparsity` {sparsity:g} was asked for, too; leave the sparsity "
            "out, or take a distribution that only shares connections out, as 'er'"
        )
    return target


def _parsed(text: str) -> tuple[DistributionRule, list[float] | None]:
    """The rule with its options, and the numbers that stand behind its name; NaN for what is no number."""
    name, *parts = text.split(":")
    listed = [part for part in parts if "=" not in part]
    rule = DISTRIBUTIONS[":".join([name, *(part for part in parts if "=" in part)])]
    if not listed:
        return rule, None
    if len(listed) > 1:
        raise ValueError(f"distribution {text!r} has two lists of numbers; give one, one number for each sparse layer")
    return rule, [_number(part) for part in listed[0].split(",")]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _relative_densities(distribution: str | Distribution, shapes: Sequence[Shape]) -> list[float]:
    """Density of each layer up to a common factor, which is 1 where the distribution fixes the total."""
    if callable(distribution):
        return _checked(distribution(shapes), "`distribution`", len(shapes))
    rule, numbers = _parsed(distribution)
    if numbers is not None and (len(numbers) != len(shapes) or not all(0 < number < math.inf for number in numbers)):
        example = distribution.partition(":")[0] + ":" + ",".join(["1"] * len(shapes))
        raise ValueError(
            f"distribution {distribution!r} must give one positive {'number' if rule.fixed else 'factor'} for each of "
            f"the {len(shapes)} sparse layers, as in {example!r}"
        )
    if rule.fixed:
        counts = rule.choose(shapes, numbers)
        return [max(1.0, count) / math.prod(shape) for count, shape in zip(counts, shapes, strict=True)]
    relative = _checked(rule.choose(shapes), f"distribution {distribution!r}", len(shapes))
    return relative if numbers is None else [density * own for density, own in zip(relative, numbers, strict=True)]


def _checked(relative: list[float], what: str, layers: int) -> list[float]:
    if len(relative) != layers or not all(0 < density < math.inf for density in relative):
        raise ValueError(
            f"{what} must return one positive density for each of the {layers} sparse layers, got {relative!r}"
        )
    return relative


def _rounded(wanted: list[float], budget: int) -> list[int]:
    """Whole numbers next to these, with the sum `budget`: the largest remainders are rounded up, ties by index."""
    counts = [math.floor(number + 1e-9) for number in wanted]
    order = sorted(range(len(wanted)), key=lambda index: (counts[index] - wanted[index], index))
    for index in order[: budget - sum(counts)]:
        counts[index] += 1
    return counts


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
