"""One result: ours beside one peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from runs.bench.timing import Samples

Peer = Literal["torch-dense", "torch-csr", "stable-baselines3", "sbx", "dense", "small-dense"]
PEERS: tuple[str, ...] = get_args(Peer)


@dataclass(frozen=True)
class Row:
    """Ours beside one peer in one case; `ours` and `peer` are medians of the raw figures."""

    what: str
    sparsity: float
    width: int
    peer_name: Peer
    raw_ours: Sequence[float]
    raw_peer: Sequence[float]
    batch_size: int | None = None
    backend: str = "torch"
    """What multiplies in ours."""
    peer_note: str = ""
    """What a person should know of this peer beside its name."""
    unit: str = "1/s"
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further facts, for programs."""

    @property
    def ours(self) -> float:
        """Median of ours."""
        return float(np.median(self.raw_ours))

    @property
    def peer(self) -> float:
        """Median of the peer."""
        return float(np.median(self.raw_peer))

    @property
    def ratio(self) -> float:
        """Ours / peer: of rates, above 1 ours is faster; of bytes, below 1 ours is smaller."""
        return self.ours / self.peer

    def as_json(self, threads: int) -> dict[str, Any]:
        """The row for programs."""
        return {
            "what": self.what,
            "sparsity": self.sparsity,
            "batch_size": self.batch_size,
            "width": self.width,
            "threads": threads,
            "backend": self.backend,
            "ours": self.ours,
            "peer": self.peer,
            "peer_name": self.peer_name,
            "peer_note": self.peer_note,
            "ratio": self.ratio,
            "unit": self.unit,
            "spread": {"ours": quartiles(self.raw_ours), "peer": quartiles(self.raw_peer)},
            "raw": {"ours": list(self.raw_ours), "peer": list(self.raw_peer)},
            **self.details,
        }


def row(what: str, ours: Samples, peer: Samples, peer_name: Peer, **facts: Any) -> Row:
    """The row of two contestants that were measured together."""
    details = dict(facts.pop("details", {}))
    if not ours.whole:
        details["note"] = "its samples are shorter than the time between two topology changes, and hold none"
    details["runs_per_sample"] = {"ours": ours.count, "peer": peer.count}
    return Row(what=what, raw_ours=ours.rates, raw_peer=peer.rates, peer_name=peer_name, details=details, **facts)


def quartiles(samples: Sequence[float]) -> list[float]:
    """First and third quartile."""
    return [float(value) for value in np.quantile(samples, [0.25, 0.75])]
