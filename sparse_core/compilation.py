"""How kernels are compiled: once per machine and per state of this package's sources, and said when it happens."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import event
from numba.core.caching import FunctionCache

logger = logging.getLogger(__name__)


class _Announcer(event.Listener):
    """Logs the first compilation; code that is loaded from the cache on disk is none."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: event.Event) -> None:
        if not self.said:
            self.said = True
            logger.warning("compiling kernels: once on this machine, about 10 seconds")

    def on_end(self, event: event.Event) -> None:
        pass


@cache
def announce() -> None:
    """From now on, log when this package compiles something."""
    event.register("numba:compile", _Announcer())  # type: ignore[no-untyped-call]


@cache
def sources(folder: Path = Path(__file__).parent) -> str:
    """A digest of the files of `folder` that import Numba or this file, which is what kernels are made of."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        text = path.read_bytes()
        if b"numba" in text or b"compilation import" in text:
            digest.update(text)
    return digest.hexdigest()


class _Cache(FunctionCache):
    """Numba's cache on disk, which by itself looks at a function's own file and not at what that calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        # What was kept under another stamp is replaced, not kept beside.
        self._cache_file._source_stamp = (self._cache_file._source_stamp, sources())


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(nogil=True, error_model="numpy", **options)(function)
        dispatcher._cache = _Cache(function)
        announce()
        return dispatcher

    return decorate


serial = _compiled()
"""Compiles a function, without the GIL and kept on disk; division by zero gives NumPy's infinities."""

threaded = _compiled(parallel=True)
"""As `serial`, with `prange` on threads."""
