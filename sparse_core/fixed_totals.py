"""Distributions that say themselves how many connections there are: SET's ε, densities, counts; and ε ↔ density."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from sparse_core.distributions import Shape, distribution, erdos_renyi

SET_EPSILON = 20.0


@distribution("epsilon", fixed=True)
def by_epsilon(
    shapes: Sequence[Shape], numbers: Sequence[float] | None, *, epsilon: float = SET_EPSILON
) -> list[float]:
    """Density ε (in + out) / (in · out), at most 1: SET's own parameter, or one ε for each layer (`epsilon:7,64`)."""
    if numbers is not None and epsilon != SET_EPSILON:
        raise ValueError(f"give ε once: for all layers (`epsilon:epsilon={epsilon:g}`) or for each of them")
    each = [epsilon] * len(shapes) if numbers is None else numbers
    if not all(0 < number < math.inf for number in each):
        raise ValueError(f"ε must be a positive number, got {', '.join(f'{number:g}' for number in each)}")
    return [
        min(1.0, own * density) * math.prod(shape)
        for own, density, shape in zip(each, erdos_renyi(shapes), shapes, strict=True)
    ]


@distribution("densities", fixed=True)
def by_density(shapes: Sequence[Shape], numbers: Sequence[float] | None) -> list[float]:
    """The density of each sparse layer as given: `densities:0.1,0.2`."""
    if numbers is None or not all(0 < density <= 1 for density in numbers):
        raise ValueError(
            f"distribution 'densities' wants a density in (0, 1] for each of the {len(shapes)} sparse layers, as in "
            f"{'densities:' + ','.join(['0.1'] * len(shapes))!r}, got {_written(numbers)}"
        )
    return [density * math.prod(shape) for density, shape in zip(numbers, shapes, strict=True)]


@distribution("counts", fixed=True)
def by_count(shapes: Sequence[Shape], numbers: Sequence[float] | None) -> list[float]:
    """The connections of each sparse layer as given: `counts:100,200`."""
    cells = [math.prod(shape) for shape in shapes]
    if numbers is None or not all(
        number == int(number) and 1 <= number <= most for number, most in zip(numbers, cells, strict=True)
    ):
        raise ValueError(
            f"distribution 'counts' wants a whole number for each of the {len(shapes)} sparse layers, at least 1 and "
            f"at most {', '.join(map(str, cells))}, got {_written(numbers)}"
        )
    return list(numbers)


def _written(numbers: Sequence[float] | None) -> str:
    return "none" if numbers is None else ",".join(f"{number:g}" for number in numbers)


def density_of_epsilon(shapes: Sequence[Shape], epsilon: float, dense: Collection[int] = ()) -> float:
    """The global density that SET's ε means, before rounding; `dense` holds the indices of dense layers.

    The other way is `epsilon_of_density`.
    """
    sparse = [shape for index, shape in enumerate(shapes) if index not in dense]
    kept = sum(math.prod(shapes[index]) for index in dense)
    return math.fsum([kept, *by_epsilon(sparse, [epsilon] * len(sparse))]) / sum(map(math.prod, shapes))


def epsilon_of_density(shapes: Sequence[Shape], density: float, dense: Collection[int] = ()) -> float:
    """The smallest ε that means this global density: the inverse of `density_of_epsilon`, layers at density 1 included.

    Raises:
        ValueError: for a density that is not more than the dense layers' share, or more than 1.
    """
    total = sum(map(math.prod, shapes))
    kept = sum(math.prod(shapes[index]) for index in dense)
    if not kept / total < density <= 1:
        raise ValueError(
            f"`density` must be in ({kept / total:.6g}, 1], the share of layers kept dense being left out, "
            f"got {density!r}"
        )
    sparse = [shape for index, shape in enumerate(shapes) if index not in dense]
    # Below its own limit a layer has ε · slope connections, above it all its cells; the first to fill up come first.
    layers = sorted((1 / own, own * math.prod(shape)) for own, shape in zip(erdos_renyi(sparse), sparse, strict=True))
    left, slope = density * total - kept, math.fsum(slope for _, slope in layers)
    for limit, own in layers:
        if left <= limit * slope:
            break
        left -= limit * own
        slope -= own
    else:
        return layers[-1][0]
    return left / slope
