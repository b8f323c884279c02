"""What a training says of its topology while it runs: exploration, distances, gradient flow, and the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from runs.topology_measures import distance, finite, small_worldness
from sparse_core import gradient_flow, in_time_overparameterisation
from sparse_core.sparsifier import Rewirings
from sparse_core.topology_measures import topologies


class Watch:
    """Follows one model whose topology `moves` or not; what it found is in `record`."""

    def __init__(self, model: nn.Module, moves: bool) -> None:
        self._model, self._moves = model, moves
        self._start = self._last = topologies(model)
        self._explored: dict[str, Tensor] = {}
        cells = sum(topology.shape[0] * topology.shape[1] for topology in self._start.values())
        self._rate = sum(topology.nnz for topology in self._start.values()) / max(cells, 1)
        self.record: dict[str, list[Any]] = {"explored": [], "topology_distance": [], "gradient_flow": []}

    def step(self, changes: Rewirings) -> None:
        """Take in what the sparsifier changed, if anything."""
        if changes:
            self._rate = in_time_overparameterisation(self._explored, changes)

    def look(self) -> None:
        """Gradient flow of the last update; of what moves, also exploration, and distances from start and last look."""
        self.record["gradient_flow"].append(finite(gradient_flow(self._model)))
        if self._moves:
            now = topologies(self._model)
            self.record["explored"].append(self._rate)
            self.record["topology_distance"].append([distance(before, now) for before in (self._start, self._last)])
            self._last = now

    def close(self, generator: torch.Generator) -> dict[str, Any]:
        """All that was found, and small-worldness as it is now."""
        world = small_worldness(topologies(self._model), generator)
        return _shortened({**self.record, "small_world": None if world is None else world._asdict()})


def _shortened(values: Any) -> Any:
    """Six digits of every number: there are a hundred of them for each look."""
    if isinstance(values, dict):
        return {name: _shortened(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_shortened(value) for value in values]
    return float(f"{values:.6g}") if isinstance(values, float) else values
