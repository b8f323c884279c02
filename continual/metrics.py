"""What a continual learner is worth, from its accuracy matrix R: R[i, j] is the accuracy on task j after task i.

Accuracies are fractions in [0, 1]; all tasks are evaluated after each, so R is T × T. By hand, for three tasks

    R = 0.9  0.0  0.1       after task 1
        0.7  0.8  0.2       after task 2
        0.6  0.5  1.0       after task 3        ACC  = (0.6 + 0.5 + 1.0) / 3                    =  0.7
                                                BWT  = ((0.6 - 0.9) + (0.5 - 0.8)) / 2          = -0.3
                                                F    = ((0.9 - 0.6) + (0.8 - 0.5)) / 2          =  0.3
                                                LA   = (0.9 + 0.8 + 1.0) / 3                    =  0.9

No function changes what it is given. NaN, a matrix that is not square and percentages raise a `ValueError`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """The numbers of one run, fractions; None where one has no meaning (see the functions of the same names)."""

    acc: float
    bwt: float | None
    fwt: float | None
    forgetting: float | None
    learning_accuracy: float
    average_incremental: float
    intransigence: float | None = None


def scores(r: ArrayLike, initial: ArrayLike | None = None, joint: ArrayLike | None = None) -> Scores:
    """All scores of a matrix R (T × T); `fwt` needs the `initial` row, `intransigence` the `joint` row (both T)."""
    return Scores(
        acc(r), bwt(r), fwt(r, initial), forgetting(r), learning_accuracy(r), average_incremental(r),
        None if joint is None else intransigence(r, joint),
    )  # fmt: skip


def acc(r: ArrayLike) -> float:
    """Mean accuracy over all tasks after the last: (1/T) Σ_j R[T, j] (GEM, arXiv:1706.08840)."""
    return float(_matrix(r)[-1].mean())


def bwt(r: ArrayLike) -> float | None:
    """Backward transfer, (1/(T-1)) Σ_{j<T} (R[T, j] - R[j, j]) (GEM, arXiv:1706.08840); None for one task.

    The divisor is the paper's; GEM's published code divides by T.
    """
    matrix = _matrix(r)
    return None if len(matrix) == 1 else float((matrix[-1] - matrix.diagonal())[:-1].mean())


def fwt(r: ArrayLike, initial: ArrayLike | None) -> float | None:
    """Forward transfer, (1/(T-1)) Σ_{j>1} (R[j-1, j] - b[j]) (GEM, arXiv:1706.08840); None for one task.

    Args:
        r: the matrix, T × T.
        initial: b, the accuracy on each task before any training, chance where there is no answer yet (T numbers).
            None gives None: where one head serves all classes, a task's classes are never predicted before it is
            learned, and the number means nothing.
    """
    matrix = _matrix(r)
    if initial is None or len(matrix) == 1:
        return None
    return float((matrix.diagonal(1) - _row(initial, len(matrix), "initial")[1:]).mean())


def forgetting(r: ArrayLike) -> float | None:
    """Mean loss from the best, (1/(T-1)) Σ_{j<T} (max_{l<T} R[l, j] - R[T, j]) (arXiv:1801.10112); None for one task.

    Avalanche's metric of this name starts from R[j, j] instead of the best: that is -BWT.
    """
    matrix = _matrix(r)
    return None if len(matrix) == 1 else float((matrix[:-1].max(axis=0) - matrix[-1])[:-1].mean())


def learning_accuracy(r: ArrayLike) -> float:
    """Mean accuracy on each task just after it was learned: (1/T) Σ_j R[j, j]. ACC = LA + (T-1)/T · BWT."""
    return float(_matrix(r).diagonal().mean())


def average_incremental(r: ArrayLike) -> float:
    """Mean over time of the mean accuracy on the tasks seen so far: (1/T) Σ_i (1/i) Σ_{j≤i} R[i, j] (iCaRL)."""
    matrix = _matrix(r)
    return float(np.mean([row[: seen + 1].mean() for seen, row in enumerate(matrix)]))


def intransigence(r: ArrayLike, joint_row: ArrayLike) -> float:
    """Mean inability to learn, (1/T) Σ_k (a*[k] - R[k, k]) (after arXiv:1801.10112).

    Args:
        r: the matrix, T × T.
        joint_row: a*[k] is the accuracy on task k of a reference model (T numbers): in the paper one trained on tasks
            1 to k together for each k, in our runs one trained on all, so that early tasks may score below 0.
    """
    matrix = _matrix(r)
    return float((_row(joint_row, len(matrix), "joint") - matrix.diagonal()).mean())


def _matrix(r: ArrayLike) -> Matrix:
    matrix = np.asarray(r, np.float64)
    if matrix.ndim != 2 or len(matrix) != matrix.shape[1] or not len(matrix):
        raise ValueError(f"R must be T × T, all tasks evaluated after each, got shape {matrix.shape}")
    _check(matrix, "R")
    return matrix


def _row(row: ArrayLike, tasks: int, name: str) -> Matrix:
    numbers = np.asarray(row, np.float64)
    if numbers.shape != (tasks,):
        raise ValueError(f"the {name} row must hold one accuracy for each of {tasks} tasks, got shape {numbers.shape}")
    _check(numbers, f"the {name} row")
    return numbers


def _check(numbers: Matrix, name: str) -> None:
    if np.isnan(numbers).any():
        where = ", ".join(map(str, (np.argwhere(np.isnan(numbers))[0] + 1).tolist()))
        raise ValueError(f"{name} holds NaN, first at ({where}) counted from 1; evaluate every task after each task")
    if numbers.min() < 0 or numbers.max() > 1:
        raise ValueError(f"{name} must hold fractions in [0, 1], got {numbers.min():g} to {numbers.max():g}")
