"""Mini-batches by index where a strategy's data lies in memory, Avalanche's own loader elsewhere."""

from __future__ import annotations

from typing import Any

import torch

from continual.tensors import TensorBatches, tensors_of
from sparse_core import generators


class InMemory:
    """A mixin, named before an Avalanche strategy: its batches come from tensors where the data allow it.

    `batch_seed` seeds the order of the batches; loader options such as `num_workers` are for Avalanche's loader.
    """

    batch_seed: int | None = None
    _batch_generator: torch.Generator | None = None

    @property
    def batch_generator(self) -> torch.Generator:
        """Draws the order of training batches."""
        if self._batch_generator is None:
            self._batch_generator = generators(self.batch_seed, "batches")["batches"]
        return self._batch_generator

    def make_train_dataloader(self: Any, shuffle: bool = True, drop_last: bool = False, **kwargs: Any) -> None:
        """As Avalanche's, by index where it can be."""
        tensors = tensors_of(self.adapted_dataset)
        if tensors is None:
            super().make_train_dataloader(shuffle=shuffle, drop_last=drop_last, **kwargs)  # type: ignore[misc]
            return
        self.dataloader = TensorBatches(*tensors, self.train_mb_size, shuffle, self.batch_generator, drop_last)

    def make_eval_dataloader(self: Any, shuffle: bool = False, **kwargs: Any) -> None:
        """As Avalanche's, by index where it can be."""
        tensors = tensors_of(self.adapted_dataset)
        if tensors is None or shuffle:
            super().make_eval_dataloader(shuffle=shuffle, **kwargs)  # type: ignore[misc]
            return
        self.dataloader = TensorBatches(*tensors, self.eval_mb_size, False, self.batch_generator)
