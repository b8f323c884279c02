"""Methods of the field by name: a drop rule, a grow rule, a schedule, a distribution and an initialisation."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_core.grow import GROW_RULES
from sparse_core.registry import Registry
from sparse_core.topology import Regrow


@dataclass(frozen=True)
class Preset:
    """A method's choices; `drop=None` means that the topology never changes."""

    summary: str
    drop: str | None = None
    grow: str | None = None
    drop_fraction: float = 0.3
    schedule: str = "constant"
    period: int = 100
    stop: float = 1.0
    """Share of the training steps after which the topology stays."""
    regrow: Regrow = "no"
    distribution: str = "erk"
    init: str = "torch"
    dense: bool = False
    """The dense baseline: a sparsity other than zero is an error."""
    given: bool = False
    """The topology is given, not drawn."""

    @property
    def searches(self) -> bool:
        """Whether connections ever come to new places."""
        return self.grow is not None and not GROW_RULES[self.grow].in_place


PRESETS: Registry[Preset] = Registry("topology")

PRESETS.add("dense", Preset("every connection: the baseline", dense=True))
PRESETS.add("static", Preset("a sparse topology that never changes"))
PRESETS.add(
    "set",
    Preset(
        "drop the weakest of each sign, grow at random (Mocanu et al. 2018, arXiv:1707.04780)",
        drop="signed", grow="random", drop_fraction=0.3, regrow="kept",
    ),
)  # fmt: skip
PRESETS.add(
    "rigl",
    Preset(
        "drop the weakest, grow where the gradient is largest (Evci et al. 2020, arXiv:1911.11134)",
        drop="magnitude", grow="gradient", drop_fraction=0.3, schedule="cosine", stop=0.75, regrow="kept",
    ),
)  # fmt: skip
PRESETS.add(
    "reset-in-place",
    Preset(
        "control: as set, but what is dropped grows where it was, anew: refreshed weights, no search",
        drop="signed", grow="in-place", drop_fraction=0.3, regrow="fresh",
    ),
)  # fmt: skip
PRESETS.add(
    "final-topology",
    Preset("control: the last topology of a finished run, weights drawn anew, never changes", given=True),
)
