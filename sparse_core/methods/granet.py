"""GraNet: gradual pruning with regeneration (Liu et al. 2021, arXiv:2106.10404)."""

from sparse_core.presets import PRESETS, Preset

PRESETS.add(
    "granet",
    Preset(
        "from half dense, prune the weakest of all layers along a cube, exchange half by gradient (arXiv:2106.10404)",
        drop="magnitude", grow="gradient", drop_fraction=0.5, schedule="cosine", period=1000, stop=0.7, regrow="fresh",
        prune="global-magnitude", course="cubic", begin=0.5,
        dense_by_nature="begins with half of all connections",
    ),
)  # fmt: skip
