"""The loop over a task's epochs, which can go on where it was, and the sparsifier that follows every step."""

from __future__ import annotations

from typing import Any

from sparse_core import Sparsifier


class SparseEpochs:
    """A mixin, named before an Avalanche strategy that makes a `Sparsifier` for each task."""

    epochs_done: int = 0
    """Epochs of the current task that have been trained."""
    sparsifier: Sparsifier | None = None

    def _train_exp(self: Any, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        """Avalanche's loop over epochs, which always starts at the first, from the first not trained yet."""
        for _ in range(self.epochs_done, self.train_epochs):
            self._before_training_epoch(**kwargs)
            if self._stop_training:
                self._stop_training = False
                break
            self.training_epoch(**kwargs)
            self.epochs_done += 1
            self._after_training_epoch(**kwargs)

    def let_go(self) -> None:
        """Part with the sparsifier of the task that ends, or was interrupted."""
        if self.sparsifier is not None:
            self.sparsifier.detach()
            self.sparsifier = None

    def _after_update(self: Any, **kwargs: Any) -> None:
        super()._after_update(**kwargs)  # type: ignore[misc]
        self.sparsifier.step()
