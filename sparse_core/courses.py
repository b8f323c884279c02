"""How sparse a network is along its training: pure functions of the way covered."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from torch import nn

from sparse_core.conv import SparseConv2d
from sparse_core.distributions import Distribution, allocate, fixes_total
from sparse_core.drop import DROP_RULES
from sparse_core.layers import SparseLinear
from sparse_core.meters import layer_counts
from sparse_core.presets import Preset
from sparse_core.registry import Registry

Course = Callable[[float, float, float], float]
"""(share of the way in [0, 1], sparsity at the start, final sparsity) -> sparsity."""

COURSES: Registry[Course] = Registry("course")
course = COURSES.register


@course("cubic")
def cubic(way: float, start: float, final: float) -> float:
    """From start to final along a cube, fast at first (Zhu & Gupta 2017, arXiv:1710.01878)."""
    return final + (start - final) * (1 - way) ** 3


@course("sigmoid")
def sigmoid(way: float, start: float, final: float) -> float:
    """From start to final along a logistic curve of the density (CHTss, NeurIPS 2025), its ends stretched to both."""
    curve = [1 / (1 + math.exp(-6 * (2 * at - 1))) for at in (0.0, way, 1.0)]
    return start + (final - start) * (curve[1] - curve[0]) / (curve[2] - curve[0])


@course("staged")
def staged(way: float, start: float, final: float) -> float:
    """Start for three quarters of the way, halfway for the last, then final (MEST, arXiv:2110.14032)."""
    return start if way < 0.75 else (start + final) / 2 if way < 1 else final


@course("at-once")
def at_once(way: float, start: float, final: float) -> float:
    """Final from the first change on (SNIP, arXiv:1810.02340; GraSP, arXiv:2002.07376)."""
    return final


@course("phases")
def phases(way: float, start: float, final: float) -> float:
    """Final and start in turn: final from 5 to 15, 25 to 35, … and from 85 % to the end (AC/DC, arXiv:2106.12379)."""
    return final if way >= 0.85 or (round(100 * way - 5, 6) % 20 < 10 and way >= 0.05) else start


def starting_counts(
    shapes: Sequence[tuple[int, ...]],
    sparsity: float | None,
    method: Preset,
    distribution: str | Distribution,
    dense: Collection[int],
) -> list[int]:
    """Weights per layer at the start of a method that ends with `sparsity`; an error where that cannot be met."""
    if method.begins_wider:
        check_shares(distribution)
    final = multiplied_counts(shapes, sparsity, method, distribution, dense)
    if not sparsity or not method.begins_wider:
        return final
    return allocate(shapes, method.starting(sparsity), distribution, dense)


def check_shares(distribution: str | Distribution) -> None:
    """Raise a `ValueError` for a distribution that fixes what a method changes along training."""
    if fixes_total(distribution):
        raise ValueError(
            f"distribution {distribution!r} fixes the number of connections, which this method brings down along "
            "training, or exceeds; take one that only shares them out, as 'erk', or a method that keeps its number, as "
            "'set'"
        )


def multiplied_counts(
    shapes: Sequence[tuple[int, ...]],
    sparsity: float | None,
    method: Preset,
    distribution: str | Distribution,
    dense: Collection[int],
) -> list[int]:
    """Weights per layer that multiply at this sparsity: shared out by the distribution, or n of every m."""
    own = method.own_sparsity
    if own is None or not sparsity:
        return allocate(shapes, sparsity, distribution, dense)
    cells = [math.prod(shape) for shape in shapes]
    return [size if index in dense else round((1 - own) * size) for index, size in enumerate(cells)]


class Budget:
    """How many movable connections a model's sparse layers are to have at a sparsity of the whole model.

    Args:
        layers: the sparse layers by name.
        dense_shapes: of the model's other weight matrices, which stay as they are.
        distribution: how connections are shared out between layers; see `allocate`.

    Raises:
        ValueError: for convolutions whose connections are whole kernels.
    """

    def __init__(
        self, layers: dict[str, SparseLinear], dense_shapes: Sequence[tuple[int, ...]], distribution: str
    ) -> None:
        if any(layer.weights_per_connection > 1 for layer in layers.values()):
            raise ValueError(
                "a sparsity that changes along training needs connections of one weight: `conv_unit='weight'`"
            )
        self._layers, self._distribution = layers, distribution
        self._shapes: list[tuple[int, ...]] = [
            (layer.out_channels, layer.in_channels, *layer.kernel_size)
            if isinstance(layer, SparseConv2d)
            else layer.shape
            for layer in layers.values()
        ]
        self._shapes += dense_shapes
        self._dense = range(len(layers), len(self._shapes))

    def of_layers(self, sparsity: float) -> dict[str, int]:
        """Movable connections of each layer, shared out by the distribution."""
        counts = allocate(self._shapes, sparsity, self._distribution, self._dense)
        pairs = zip(self._layers.items(), counts, strict=False)
        return {name: max(count - layer.frozen.numel(), 0) for (name, layer), count in pairs}

    def total(self, sparsity: float) -> int:
        """Movable connections of all layers together."""
        return sum(self.of_layers(sparsity).values())


class CourseOfCounts:
    """Movable connections that a method wants after each share of the way."""

    def __init__(self, choices: Preset, budget: Budget, start: float, final: float) -> None:
        assert choices.course is not None
        assert choices.prune is not None
        self._course, self._budget, self._final = COURSES[choices.course], budget, final
        self._whole = DROP_RULES[choices.prune].network
        self.start = start

    def __call__(self, way: float) -> int | dict[str, int]:
        """Connections in all, where the rule sees the whole network, else of each layer."""
        wanted = self._course(way, self.start, self._final)
        return self._budget.total(wanted) if self._whole else self._budget.of_layers(wanted)


def course_of_counts(
    choices: Preset, model: nn.Module, layers: Mapping[str, SparseLinear], sparsity: float | None
) -> CourseOfCounts | None:
    """The counts that a method's course of the sparsity means for a model as it stands; None without a course."""
    if choices.course is None or not layers:
        return None
    assert sparsity is not None
    counts = layer_counts(model)
    dense = [(count.cells,) for name, count in counts.items() if name not in layers]
    cells = sum(count.cells for count in counts.values())
    start = 1 - sum(count.nnz for count in counts.values()) / cells
    return CourseOfCounts(choices, Budget(dict(layers), dense, choices.distribution), start, sparsity)
