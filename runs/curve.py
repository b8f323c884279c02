"""The learning curve of a run as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runs.files import writing


def draw_curve(directory: Path, result: dict[str, Any], chance: float | None = None) -> Path:
    """Draw mean return over steps into DIRECTORY/curve.png; `chance` is the return of a random policy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps, returns = zip(*result["curve"], strict=True)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(
        steps, returns, marker="o", markersize=3, label=f"{result['topology']}, sparsity {result['sparsity']:.2f}"
    )
    if chance is not None:
        axes.axhline(chance, color="grey", linestyle="--", linewidth=1, label="random policy")
    axes.set(xlabel="environment steps", ylabel="return", title=f"{result['env']}, seed {result['seed']}")
    axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path = directory / "curve.png"
    with writing(path):
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
