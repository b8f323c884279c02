"""The flags of `sparse-agents methods`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from runs.flags import left_out


@dataclass(frozen=True)
class Methods:
    """Train one perceptron on images with every method, and table what each reaches and costs.

    Runs that are finished are kept: the same command continues, and several may work on one directory.
    """

    images: Literal["digits", "mnist"] = "digits"
    """What is learned. digits needs no download; mnist is looked for in $SPARSE_AGENTS_DATA."""
    topologies: Annotated[str | None, left_out("NAMES", "(default: all)")] = None
    """Methods, comma list (`sparse-agents list topologies`); dense, small-dense and static are always there."""
    sparsities: str = "0.95,0.99"
    """Share of connections left out, comma list."""
    seeds: str = "3"
    """How many runs of each, seeded 0, 1, 2, …; or the seeds themselves, comma list: 3,7 (one alone: 3,)."""
    hidden: str = "400,400"
    """Widths of the hidden layers."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 100
    """Images in a mini-batch."""
    learning_rate: float = 1e-3
    """Of Adam with an age per connection."""
    initial_topology: Annotated[str | None, left_out("NAME", "(default: each topology's)")] = None
    """Where connections are at the start (`sparse-agents list initial-topologies`), correlated included."""
    target: float = 0.97
    """Accuracy on validation images that `time to` is measured to, looked at four times an epoch."""
    threads: int = 1
    """CPU threads."""
    out: Annotated[Path | None, left_out("PATH")] = None
    """Directory for the runs and the table. Default: results/methods/IMAGES."""
