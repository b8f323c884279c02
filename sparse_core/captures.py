"""What rules see of training: batches captured in the layers before a change, and shown to rules that watch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sparse_core.layers import SparseLinear
from sparse_core.schedules import Every
from sparse_core.signals import Capture


class Captures:
    """Arms a `Capture` in every layer in time for the next change.

    Args:
        layers: the sparse layers by name.
        batches: how many a capture keeps; 0 where no rule looks, and nothing is ever captured.
        stride: steps in which one batch comes.
        every: when changes are due.
        observer: shown every batch by `show`, if a rule watches training.
    """

    def __init__(
        self, layers: Mapping[str, SparseLinear], batches: int, stride: int, every: Every, observer: Any
    ) -> None:
        self._layers, self._batches, self._every, self._observer = layers, batches, every, observer
        self._steps = batches * stride

    @property
    def are_shown(self) -> bool:
        """Whether a rule watches training, batch after batch."""
        return self._observer is not None

    def arm(self, step: int, pending: bool) -> None:
        """Start capturing when the next change is near enough; captures count batches by the step."""
        if not self._batches:
            return
        following = self._every.next_due(step)
        near = pending or self._observer is not None or (following is not None and following - step <= self._steps)
        for layer in self._layers.values():
            if near and layer.capture is None:
                layer.capture = Capture(self._batches)
            if layer.capture is not None:
                layer.capture.batch = step

    def show(self, step: int, memory: Mapping[str, dict[str, Tensor]]) -> bool:
        """Show a rule that watches training the batch of the step before `step`; whether there was one."""
        shown = False
        if self._observer is None:
            return shown
        for name, layer in self._layers.items():
            if layer.capture is not None and len(layer.capture) and layer.capture.newest == step - 1:
                self._observer(memory[name], layer.capture.latest(), layer.shape)
                shown = True
        return shown

    def drop(self) -> None:
        """Forget all batches and capture no more until armed."""
        for layer in self._layers.values():
            layer.capture = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within this block forward passes are not captured."""
        captures = {name: layer.capture for name, layer in self._layers.items()}
        self.drop()
        try:
            yield
        finally:
            for name, layer in self._layers.items():
                layer.capture = captures[name]

    def state_dict(self) -> dict[str, Any]:
        """The batches by layer."""
        return {name: layer.capture.state() for name, layer in self._layers.items() if layer.capture is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave, where capturing is armed."""
        for name, pairs in state.items():
            layer = self._layers[name]
            if layer.capture is not None:
                device = layer.values.device
                layer.capture.load([(batch, inputs.to(device), given.to(device)) for batch, inputs, given in pairs])
