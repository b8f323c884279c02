"""Plain fine-tuning of a dense network with as many connections as SpaceNet's tasks get together."""

from itertools import pairwise

from continual.baselines import SGD_CHOICES, Baseline, check_choices, perceptron
from continual.learner import Learner, Setup
from continual.options import Sizes


def build(setup: Setup) -> Learner:
    """Fine-tuning on a dense perceptron of narrow layers."""
    check_choices(setup, *SGD_CHOICES)
    return Baseline(setup=setup, model=perceptron(setup, narrowed(setup)))


def narrowed(setup: Setup) -> tuple[int, ...]:
    """The hidden widths, all shrunk alike, whose dense connections come nearest to those of the sparse learner."""
    wanted = setup.tasks * sum(
        Sizes.fitting(_shapes(setup, setup.hidden), setup.classes_per_task, setup.tasks).connections
    )
    widest = max(setup.hidden)
    candidates = [
        tuple(max(1, round(width * share / widest)) for width in setup.hidden) for share in range(1, widest + 1)
    ]
    return min(
        candidates, key=lambda hidden: abs(sum(rows * columns for rows, columns in _shapes(setup, hidden)) - wanted)
    )  # fmt: skip


def _shapes(setup: Setup, hidden: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(rows, columns) for columns, rows in pairwise([setup.inputs, *hidden, setup.benchmark.classes])]
