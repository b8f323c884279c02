"""RigL: rigging the lottery (Evci et al. 2020, arXiv:1911.11134)."""

from sparse_core.presets import PRESETS, Preset

PRESETS.add(
    "rigl",
    Preset(
        "drop the weakest, grow where the gradient is largest (Evci et al. 2020, arXiv:1911.11134)",
        drop="magnitude", grow="gradient", drop_fraction=0.3, schedule="cosine", stop=0.75, regrow="kept",
    ),
)  # fmt: skip
PRESETS.add(
    "rigl-fresh",
    Preset(
        "as rigl, but what was just dropped may not come back in the same change",
        drop="magnitude", grow="gradient", drop_fraction=0.3, schedule="cosine", stop=0.75,
    ),
)  # fmt: skip
