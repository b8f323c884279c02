"""What was measured on this machine, kept from run to run: JSON in the user's cache folder, lost without harm."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import sys
import tempfile
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FORMAT = "sparse-agents-measurements"
VERSION = 2  # raise it when kernels or what is measured change
VARIABLE = "SPARSE_AGENTS_CACHE"

Seconds = dict[str, float]


def default_folder() -> Path:
    """`SPARSE_AGENTS_CACHE`, else `sparse-agents` in the user's cache folder."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen)
    if sys.platform == "darwin":
        caches = Path("~/Library/Caches")
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    with suppress(RuntimeError):  # nobody's home
        caches = caches.expanduser()
    return caches / "sparse-agents"


class Measurements:
    """Seconds by candidate for every case measured on this machine with these versions; one file for each such pair.

    A file that is damaged or cannot be written is no error: what it would have held is measured again.
    Of two processes that add at the same time, one may lose what it added.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.header = {"format": FORMAT, "version": VERSION, "machine": machine_name(), "versions": _versions()}
        self.header["processor_features"] = os.environ.get("NUMBA_CPU_FEATURES", "")
        name = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (default_folder() if folder is None else folder) / f"measured-{name}.json"
        self._cases = self._read()

    def get(self, case: str) -> Seconds | None:
        """What this case took, if it was measured before."""
        return self._cases.get(case)

    def add(self, case: str, seconds: Seconds) -> None:
        """Keep a measurement, beside what other processes have kept meanwhile."""
        self._cases = {**self._read(), **self._cases, case: seconds}
        try:
            self._write()
        except OSError as error:
            logger.warning(
                "cannot keep measurements in %s (%s): they will be made again next time; set %s to a folder that can "
                "be written to", self.path, error.strerror or error, VARIABLE,
            )  # fmt: skip

    def _read(self) -> dict[str, Seconds]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            logger.info("cannot read %s (%s); measuring again", self.path, error)
            return {}
        if not isinstance(found, dict) or {name: found.get(name) for name in self.header} != self.header:
            logger.info("%s is not a file of measurements on this machine; measuring again", self.path)
            return {}
        cases = found.get("seconds")
        return {case: taken for case, taken in cases.items() if _sound(taken)} if isinstance(cases, dict) else {}

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self.header, "seconds": self._cases}, indent=1)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.stem}-", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise


def machine_name() -> str:
    """This host and its processor."""
    return f"{platform.node()}, {processor()}"


@cache
def processor() -> str:
    """The model of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "numba"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _sound(taken: Any) -> bool:
    return isinstance(taken, dict) and all(
        isinstance(seconds, float) and math.isfinite(seconds) and seconds > 0 for seconds in taken.values()
    )
