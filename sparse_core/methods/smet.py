"""SMET: random growth, and an Adam that knows the age of every connection (ICML 2026, arXiv:2606.00888)."""

from sparse_core.presets import PRESETS, Preset

PRESETS.add(
    "smet",
    Preset(
        "drop the weakest, grow at random, learning rates of new connections rising over 100 steps (arXiv:2606.00888)",
        drop="magnitude", grow="random", drop_fraction=0.2, schedule="cosine", distribution="uniform", warmup=100,
    ),
)  # fmt: skip
