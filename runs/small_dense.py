"""The dense rival of a sparse agent: narrower layers, as many weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise


def weights_of(widths: Sequence[int]) -> int:
    """Weights of a dense chain of layers: inputs, hidden widths, outputs; biases not counted."""
    return sum(one * other for one, other in pairwise(widths))


def agent_weights(hidden: Sequence[int], observations: int, actions: int, heads: int = 1) -> tuple[int, int]:
    """Weights of a dense actor with so many outputs (`heads`) for each action, and of one dense critic."""
    return weights_of([observations, *hidden, heads * actions]), weights_of([observations + actions, *hidden, 1])


def small_hidden(hidden: Sequence[int], wanted: int, observations: int, actions: int, heads: int = 1) -> list[int]:
    """Hidden widths in the ratio of `hidden` whose dense actor and two critics have most nearly `wanted` weights."""

    def count(widths: Sequence[int]) -> int:
        actor, critic = agent_weights(widths, observations, actions, heads)
        return actor + 2 * critic

    return narrowed(hidden, count, wanted)


def narrowed(hidden: Sequence[int], count: Callable[[Sequence[int]], int], wanted: float) -> list[int]:
    """Hidden widths in the ratio of `hidden` with most nearly `wanted` weights; `count` counts them."""

    def scaled(widest: int) -> list[int]:
        return [max(1, round(width * widest / max(hidden))) for width in hidden]

    widest = 1
    while count(scaled(widest + 1)) <= wanted:
        widest += 1
    below, above = scaled(widest), scaled(widest + 1)
    return below if wanted - count(below) <= count(above) - wanted else above
