"""Says so when compiled code has to be made first, which happens once per machine and takes seconds."""

from __future__ import annotations

import logging
from functools import cache

from numba.core import event

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
