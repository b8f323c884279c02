"""ITOP: long periods, so that new connections have time to learn (Liu et al. 2021, arXiv:2102.02887)."""

from sparse_core.presets import PRESETS, Preset

PRESETS.add(
    "itop-set",
    Preset(
        "drop the weakest half, grow at random, seldom (ITOP: Liu et al. 2021, arXiv:2102.02887)",
        drop="magnitude", grow="random", drop_fraction=0.5, schedule="cosine", period=1500, own_period=True,
        regrow="fresh",
    ),
)  # fmt: skip
PRESETS.add(
    "itop-rigl",
    Preset(
        "drop the weakest half, grow where the gradient is largest, seldom (ITOP: Liu et al. 2021, arXiv:2102.02887)",
        drop="magnitude", grow="gradient", drop_fraction=0.5, schedule="cosine", period=4000, own_period=True,
        regrow="fresh",
    ),
)  # fmt: skip
