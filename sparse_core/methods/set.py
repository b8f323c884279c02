"""SET: sparse evolutionary training (Mocanu et al. 2018, arXiv:1707.04780)."""

from sparse_core.presets import PRESETS, Preset

PRESETS.add(
    "set",
    Preset(
        "drop the weakest of each sign, grow at random (Mocanu et al. 2018, arXiv:1707.04780)",
        drop="signed", grow="random", drop_fraction=0.3, regrow="kept",
    ),
)  # fmt: skip
PRESETS.add(
    "set-fresh",
    Preset(
        "as set, but what was just dropped may not come back in the same change",
        drop="signed", grow="random", drop_fraction=0.3,
    ),
)  # fmt: skip
PRESETS.add(
    "reset-in-place",
    Preset(
        "control: as set, but what is dropped grows where it was, anew: refreshed weights, no search",
        drop="signed", grow="in-place", drop_fraction=0.3, regrow="fresh",
    ),
)  # fmt: skip
