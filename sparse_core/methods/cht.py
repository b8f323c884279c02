"""CHT and CHTs: growth that a network's own topology predicts (Zhang et al., ICLR 2024 and NeurIPS 2025)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_core.drop import drop_rule
from sparse_core.grow import grow_rule
from sparse_core.presets import PRESETS, Preset
from sparse_core.view import LayerView


@drop_rule("relative-importance")
def least_relative(view: LayerView, count: int) -> Tensor:
    """Drop the smallest |w| / Σ|w into the output| + |w| / Σ|w out of the input| (CHT's `ri`)."""
    sizes, width = view.values.abs().double(), view.shape[1]
    row, column = view.positions // width, view.positions % width
    into = torch.zeros(view.shape[0], dtype=torch.float64).index_add_(0, row, sizes)
    out = torch.zeros(width, dtype=torch.float64).index_add_(0, column, sizes)
    least = torch.finfo(torch.float64).tiny
    return view.least(sizes / into[row].clamp(min=least) + sizes / out[column].clamp(min=least), count)


@grow_rule("ch2-l3n")
def common_neighbours(view: LayerView, count: int) -> Tensor:
    """Grow where the nodes that output and input share at distance two are tied to each other most (CH2-L3n), streamed.

    With M the mask after the drop, D = M Mᵀ and T = Mᵀ M counts of common neighbours: for output u and input v the sum
    over outputs b that feed on v of (D_ub + 1) / max(degree_b - D_ub, 1), where D_ub > 0, and likewise over inputs.
    It asks neither data nor gradients.
    """
    mask = _mask(view)
    return view.strongest(count, _by_rows(view, lambda rows: _ch2(mask, rows)))


@grow_rule("ch3-l3p")
def paths(view: LayerView, count: int) -> Tensor:
    """Grow where most paths of length three lead from the output to the input, each through nodes with few other links.

    CH3-L3p: a path u - a - b - v counts 1 / √((1 + e_a)(1 + e_b)), e the links of a node to neither end nor to the
    nodes between them. With the mask M after the drop alone: no data, no gradients. Streamed.
    """
    from sparse_core.path_kernels import ch3_l3p_rows

    mask = _mask(view)
    by_input = mask.tocsc()
    tables = [table.astype(np.int64) for table in (mask.indptr, mask.indices, by_input.indptr, by_input.indices)]

    def scored(rows: Any) -> Any:
        scores = np.zeros((len(rows), view.shape[1]))
        ch3_l3p_rows(rows.astype(np.int64), *tables, scores)
        return scores

    return view.strongest(count, _by_rows(view, scored))


def _mask(view: LayerView) -> Any:
    """What is present after the drop as a SciPy sparse matrix of ones (out, in): frozen connections, too."""
    from scipy import sparse

    present = view.blocked if view.dropped is None else view.blocked[~torch.isin(view.blocked, view.dropped)]
    positions = present.numpy()
    ones = np.ones(positions.size)
    return sparse.csr_matrix((ones, (positions // view.shape[1], positions % view.shape[1])), shape=view.shape)


def _by_rows(view: LayerView, scores: Callable[[Any], Any]) -> Callable[[int, int], Tensor]:
    outputs = view.allowed_outputs.numpy()
    return lambda start, stop: torch.from_numpy(np.asarray(scores(outputs[start:stop]), dtype=np.float64))


def _ch2(mask: Any, rows: Any) -> Any:
    """CH2-L3n scores of some outputs, (rows, in), dense."""
    own = mask[rows]
    degree_out, degree_in = (np.asarray(mask.sum(axis)).ravel() for axis in (1, 0))
    over_outputs = _tied(own @ mask.T, degree_out) @ mask
    # Only inputs that these outputs read matter: the others' rows of T would be multiplied by zero.
    read = np.unique(own.indices)
    over_inputs = own[:, read] @ _tied_by_row(mask[:, read].T @ mask, degree_in[read])
    return (over_outputs + over_inputs).toarray()


def _tied(shared: Any, degrees: Any) -> Any:
    """(D + 1) / max(degree - D, 1) where D > 0, the degree that of the column."""
    shared = shared.tocsr()
    shared.data = (shared.data + 1) / np.maximum(degrees[shared.indices] - shared.data, 1)
    return shared


def _tied_by_row(shared: Any, degrees: Any) -> Any:
    shared = shared.tocsr()
    shared.data = (shared.data + 1) / np.maximum(np.repeat(degrees, np.diff(shared.indptr)) - shared.data, 1)
    return shared


PRESETS.add(
    "cht",
    Preset(
        "drop the weakest and what hangs loose, grow by paths of the topology itself (CHT: Zhang et al., ICLR 2024)",
        drop="magnitude", grow="ch3-l3p", drop_fraction=0.3, distribution="uniform", chains=True, regrow="fresh",
    ),
)  # fmt: skip
PRESETS.add(
    "chts",
    Preset(
        "drop softly and what hangs loose, grow softly by common neighbours (CHTs: Zhang et al., NeurIPS 2025)",
        drop="magnitude", grow="ch2-l3n", drop_fraction=0.3, schedule="cosine", stop=0.75, distribution="uniform",
        chains=True, regrow="fresh", drop_temperature=1.0, final_drop_temperature=9.0, grow_temperature=1.0,
    ),
)  # fmt: skip
