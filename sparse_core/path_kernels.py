"""Compiled counting of paths through a bipartite topology; importing this file imports Numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_core.compilation import serial


@serial
def ch3_l3p_rows(  # noqa: C901  # one nest of loops
    rows: Any, pointer: Any, columns: Any, pointer_in: Any, outputs: Any, scores: Any
) -> None:
    """CH3-L3p scores of some outputs, added to `scores` (rows, in), zeros before.

    Per output u, every path u - a - b - v is walked once: O(degree³).

    Args:
        rows: the outputs, (r,).
        pointer: compressed rows of the topology, (out + 1,).
        columns: their inputs, (nnz,).
        pointer_in: compressed columns, (in + 1,).
        outputs: their outputs, (nnz,).
        scores: see above.
    """
    shared_out = np.zeros(pointer.shape[0] - 1, np.int64)  # inputs that output b has in common with u
    shared_in = np.zeros(pointer_in.shape[0] - 1, np.int64)  # outputs that input v has in common with a
    for index in range(rows.shape[0]):
        u = rows[index]
        shared_out[:] = 0
        for a in columns[pointer[u] : pointer[u + 1]]:
            for b in outputs[pointer_in[a] : pointer_in[a + 1]]:
                shared_out[b] += 1
        for a in columns[pointer[u] : pointer[u + 1]]:
            readers = outputs[pointer_in[a] : pointer_in[a + 1]]
            for b in readers:
                for v in columns[pointer[b] : pointer[b + 1]]:
                    shared_in[v] += 1
            for b in readers:
                if b != u:
                    free = max(pointer[b + 1] - pointer[b] - shared_out[b], 1)
                    for v in columns[pointer[b] : pointer[b + 1]]:
                        scores[index, v] += 1 / np.sqrt(free * max(readers.shape[0] - shared_in[v], 1))
            for b in readers:
                shared_in[columns[pointer[b] : pointer[b + 1]]] = 0
