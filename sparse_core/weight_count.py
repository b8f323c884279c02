"""How many weights each layer multiplied, over all of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_core.layers import SparseLinear


class WeightCount:
    """Counts the weights that each layer multiplies, step after step: some methods change how many there are."""

    def __init__(self, layers: Mapping[str, SparseLinear]) -> None:
        self._layers = layers
        self._sums: dict[str, Any] = dict.fromkeys(layers, 0)  # weights × steps, up to the step `_until`
        self._until = 0

    def sum_up(self, step: int) -> None:
        """Add the steps since the last call; call it before a layer's count changes."""
        for name, layer in self._layers.items():
            # Kept as a tensor where it is one: this may be asked at every step.
            count = layer.nnz if layer.masking is None else layer.masking.kept.sum()
            self._sums[name] = self._sums[name] + count * (step - self._until)
        self._until = step

    def mean(self, step: int) -> dict[str, float]:
        """Weights of each layer, averaged over the first `step` steps."""
        now = {name: layer.multiplied for name, layer in self._layers.items()}
        return {
            name: (int(self._sums[name]) + count * (step - self._until)) / step if step else float(count)
            for name, count in now.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The sums, and the step they go up to."""
        return {"weight_steps": {name: int(total) for name, total in self._sums.items()}, "summed": self._until}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave, from a dictionary that may hold more; what is missing stays."""
        self._sums = dict(state.get("weight_steps", self._sums))
        self._until = state.get("summed", 0)
