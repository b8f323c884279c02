"""The dense rival of a sparse agent: narrower layers, as many weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def weights_of(widths: Sequence[int]) -> int:
    """Weights of a dense chain of layers: inputs, hidden widths, outputs; biases not counted."""
    return sum(one * other for one, other in pairwise(widths))


def agent_weights(hidden: Sequence[int], observations: int, actions: int, heads: int = 1) -> tuple[int, int]:
    """Weights of a dense actor with so many outputs (`heads`) for each action, and of one dense critic."""
    return weights_of([observations, *hidden, heads * actions]), weights_of([observations + actions, *hidden, 1])


def small_hidden(hidden: Sequence[int], wanted: int, observations: int, actions: int, heads: int = 1) -> list[int]:
    """Hidden widths in the ratio of `hidden` whose dense actor and two critics have most nearly `wanted` weights."""

    def scaled(widest: int) -> list[int]:
        return [max(1, round(width * widest / max(hidden))) for width in hidden]

    def count(widest: int) -> int:
        actor, critic = agent_weights(scaled(widest), observations, actions, heads)
        return actor + 2 * critic

    widest = 1
    while count(widest + 1) <= wanted:
        widest += 1
    return scaled(widest if wanted - count(widest) <= count(widest + 1) - wanted else widest + 1)
