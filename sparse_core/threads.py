"""How many threads compiled kernels may use: as many as torch, on a pool that is worth it."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from typing import Any

import numba
import torch
from numba.np.ufunc.parallel import threading_layer

SETTINGS: Any = numba.config  # filled while Numba is imported, so no type checker knows what is in it

_seen = 0  # torch's count when Numba was last told


def thread_count() -> int:
    """Torch's thread count, which Numba is made to follow; 1 where no good thread pool loads."""
    global _seen
    count = torch.get_num_threads()
    if count == 1 or not _pool_is_good():
        return 1
    count = min(count, SETTINGS.NUMBA_NUM_THREADS)
    if count != _seen:
        numba.set_num_threads(count)
        _seen = count
    return count


@cache
def _pool_is_good() -> bool:
    """Choose Numba's thread pool: OpenMP, else TBB, else none; a choice of the user's own stays.

    Numba's own workqueue made these kernels 3 to 7 times slower. Where torch brings its own libgomp, Numba's
    OpenMP pool finds that one already loaded, so both share one set of threads (torch is imported first here).
    """
    try:
        pool = threading_layer()  # type: ignore[no-untyped-call]  # parallel code ran already, so it is settled
    except ValueError:
        pool = SETTINGS.THREADING_LAYER
        if pool == "default":
            pool = next((name for name in ("omp", "tbb") if _loads(name)), "workqueue")
            if pool != "workqueue":
                SETTINGS.THREADING_LAYER = pool
    if pool != "workqueue":
        return True
    warnings.warn(
        "compiled kernels run on one thread: neither OpenMP nor TBB is there, and Numba's `workqueue` pool is slower "
        "than one thread; install the system package `libgomp1`, or `pip install tbb`",
        RuntimeWarning,
        stacklevel=3,
    )
    return False


def _loads(pool: str) -> bool:
    try:
        import_module(f"numba.np.ufunc.{pool}pool")
    except ImportError:
        return False
    return True
