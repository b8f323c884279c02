"""Deep R: weights of fixed sign that walk, and go when they would change it (Bellec et al. 2018, arXiv:1711.05136)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_core.birth import birth
from sparse_core.drop import drop_rule
from sparse_core.presets import PRESETS, Preset
from sparse_core.steps import STEP_RULES, StepRule
from sparse_core.view import LayerView

NOISE = 1e-5
SHRINKAGE = 1e-5


def walk(values: Tensor, marks: dict[str, Tensor], rate: float, generator: torch.Generator) -> None:
    """θ += η · N(0, 1e-5) - η · 1e-5, where θ = sign · value; a connection's sign is what it was born with."""
    noise = torch.empty(values.shape, dtype=values.dtype).normal_(0, NOISE, generator=generator).to(values.device)
    values.add_((noise - SHRINKAGE) * marks["sign"], alpha=rate)


def note_signs(values: Tensor, marks: dict[str, Tensor]) -> None:
    """Keep the sign of every connection; one that has none yet, because it is new, has that of its value."""
    own = torch.where(values < 0, -1.0, 1.0).to(values.dtype)
    known = marks.get("sign")
    marks["sign"] = own if known is None else torch.where(known == 0, own, known.to(own))


STEP_RULES.add("deepr", StepRule(note_signs, walk))


@drop_rule("sign-crossing", own_count=True)
def crossed(view: LayerView, count: int) -> Tensor:
    """Drop every connection whose value no longer has the sign it was born with; zero counts as crossed."""
    if "sign" not in view.marks:
        return torch.empty(0, dtype=torch.int64)
    return (view.values * view.marks["sign"].to(view.values) <= 0).nonzero().squeeze(1)


@birth("tiny")
def tiny(view: LayerView, grown: Tensor, *, size: float = 1e-12) -> Tensor:
    """±size, the sign at random."""
    signs = torch.randint(2, (grown.numel(),), generator=view.generator) * 2 - 1
    return signs.to(view.values.dtype) * size


PRESETS.add(
    "deepr",
    Preset(
        "weights of fixed sign that walk at every step, and go when they cross zero (Deep R, arXiv:1711.05136)",
        drop="sign-crossing", grow="random", period=1, own_period=True, step_rule="deepr", birth="tiny",
    ),
)  # fmt: skip
