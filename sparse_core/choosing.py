"""How hard a choice by score is: always the best, drawn with odds by score, or a share of it at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_core.draws import largest, sample_distinct

LOWEST = torch.finfo(torch.float32).min  # the key of a score of zero: above what may never be taken (-inf)


@dataclass(frozen=True)
class Choosing:
    """The best by score; or softly; or mixed with random ones.

    Attributes:
        temperature: None takes the best. A number T draws without replacement, with odds proportional to scoreᵀ, as
            soft rules of CHTs (NeurIPS 2025): 0 is uniform, a large one nearly hard.
        mix: share of what is chosen that is drawn uniformly from the rest instead, in [0, 1].
    """

    temperature: float | None = None
    mix: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise ValueError(f"a temperature must be a number ≥ 0, or left out, got {self.temperature!r}")
        if not 0 <= self.mix <= 1:
            raise ValueError(f"a mix must be a share in [0, 1], got {self.mix!r}")

    def scored(self, count: int) -> int:
        """How many of `count` go by score."""
        return count - round(self.mix * count)

    def keys(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """Keys whose largest are the choice by score: the scores (≥ 0) themselves, or perturbed logarithms of them.

        The largest of T·log(score) + Gumbel noise are a draw without replacement with odds scoreᵀ (Vieira 2014). A
        score of -inf has a key of -inf, which is never taken.
        """
        if self.temperature is None:
            return scores
        noise = torch.empty(scores.shape, dtype=torch.float32).exponential_(generator=generator)
        noise = noise.log_().neg_().to(scores.device)
        keys = noise if self.temperature == 0 else scores.abs().log().to(torch.float32) * self.temperature + noise
        return keys.clamp_(min=LOWEST).masked_fill_(scores == -torch.inf, -torch.inf)


HARD = Choosing()


def lowest(scores: Tensor, count: int, choosing: Choosing, generator: torch.Generator) -> Tensor:
    """Indices, ascending, of `count` entries to go, those with low scores (≥ 0 where a temperature is set) first.

    With a temperature those that stay are drawn, with odds by score; equal scores go from the lowest index on.
    """
    scored = choosing.scored(count)
    chosen = largest(-choosing.keys(scores, generator), scored)
    if scored == count:
        return chosen
    rest = torch.ones(scores.numel(), dtype=torch.bool)
    rest[chosen] = False
    others = rest.nonzero().squeeze(1)
    return torch.cat([chosen, others[sample_distinct(others.numel(), count - scored, generator)]]).sort().values
