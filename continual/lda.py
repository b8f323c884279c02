"""Linear discriminant analysis learned from a stream: class means and one covariance, exact whatever the batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class StreamingLDA:
    """Class means and one covariance for all classes, from samples seen once (Hayes & Kanan, arXiv:1909.01520).

    After any batches in any order it scores as scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr")` fitted on
    all of them at once, up to rounding: Chan's updates in float64, which never subtract large sums.

    Args:
        features: numbers in a sample; x of more dimensions is flattened.
        labels: how many there are; y is below.
        shrinkage: from above 0 to 1, how far the covariance is drawn to a multiple of the identity with the same trace.
            As a share of the trace it means the same for features of any scale.
        device: where statistics are kept, and float64 computed with.

    Raises:
        ValueError: for a size below 1, a shrinkage out of range, samples of another size, labels out of range.
    """

    def __init__(
        self, features: int, labels: int, shrinkage: float = 1e-2, device: str | torch.device = "cpu"
    ) -> None:  # fmt: skip
        if features < 1 or labels < 1:
            raise ValueError(f"`features` and `labels` must be at least 1, got {features} and {labels}")
        if not 0 < shrinkage <= 1:
            raise ValueError(
                f"`shrinkage` must be above 0 and at most 1, got {shrinkage!r}; with 0 a feature that never varies "
                "leaves nothing to solve"
            )
        self.shrinkage = shrinkage
        self.counts = torch.zeros(labels, dtype=torch.float64, device=device)
        self.means = torch.zeros(labels, features, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(features, features, dtype=torch.float64, device=device)
        self._solved: tuple[Tensor, Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the statistics; weights come from them and are not counted."""
        return self.counts.nbytes + self.means.nbytes + self.scatter.nbytes

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in samples x (n, …) with labels y (n,)."""
        x, y = self._checked(x), y.to(self.counts.device)
        if x.shape[0] != y.shape[0]:
            raise ValueError(f"x and y must have one length, got {x.shape[0]} and {y.shape[0]}")
        if not y.numel():
            return
        if int(y.min()) < 0 or int(y.max()) >= self.counts.numel():
            raise ValueError(
                f"labels must be from 0 to {self.counts.numel() - 1}, got {int(y.min())} to {int(y.max())}; "
                "make it with `labels` for all classes to come"
            )
        new = torch.bincount(y, minlength=self.counts.numel()).to(torch.float64)
        # A class that is not in the batch divides by 1, and what comes of it is weighted with 0.
        batch_means = torch.zeros_like(self.means).index_add_(0, y, x) / new.clamp(min=1).unsqueeze(1)
        within = x - batch_means[y]
        total = self.counts + new
        share = new / total.clamp(min=1)
        moved = batch_means - self.means
        self.scatter += within.T @ within + moved.T @ (moved * (self.counts * share).unsqueeze(1))
        self.means += moved * share.unsqueeze(1)
        self.counts, self._solved = total, None

    @torch.no_grad()
    def weights(self) -> tuple[Tensor, Tensor]:
        """The linear scores: weights (labels, features) and biases (labels,), -inf for labels never seen."""
        if self._solved is None:
            share = self.counts / self.counts.sum().clamp(min=1)
            covariance = self.scatter / self.counts.sum().clamp(min=1)
            size = covariance.diagonal().mean()
            covariance = covariance * (1 - self.shrinkage)
            # Samples that are all alike have no covariance at all: then distances decide, as in nearest means.
            covariance.diagonal().add_(self.shrinkage * size if size > 0 else 1.0)
            weights = torch.cholesky_solve(self.means.T, torch.linalg.cholesky(covariance)).T.contiguous()
            self._solved = weights, share.log() - (self.means * weights).sum(1) / 2
        return self._solved

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """Log-likelihoods of x (n, …) with every label, up to a constant: float64 (n, labels), on the device of x.

        -inf for labels never seen. Classes weigh as often as they were seen.
        """
        weights, biases = self.weights()
        return (self._checked(x) @ weights.T + biases).to(x.device)

    def state(self) -> dict[str, Any]:
        """What was learned, as tensors."""
        return {"counts": self.counts.clone(), "means": self.means.clone(), "scatter": self.scatter.clone()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        for name in ("counts", "means", "scatter"):
            mine, given = getattr(self, name), state[name]
            if mine.shape != given.shape:
                raise ValueError(
                    f"`{name}` must have shape {tuple(mine.shape)}, got {tuple(given.shape)}; "
                    "it was kept with other `features` or `labels`"
                )
            setattr(self, name, given.to(mine, copy=True))
        self._solved = None

    def _checked(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if x.shape[1] != self.means.shape[1]:
            raise ValueError(f"samples must have {self.means.shape[1]} features, got {x.shape[1]}")
        return x.to(self.means)
