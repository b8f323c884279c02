"""The flags of `report`; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from runs.flags import left_out


@dataclass(frozen=True)
class Report:
    """Say what a study shows: verdicts with their uncertainty and their cost, as one page that opens anywhere.

    Writes DIR/report.html, and its pictures (PNG) and numbers (CSV) into DIR/report/.
    """

    directory: tyro.conf.Positional[Path]
    """Study directory: the --out of `compare`."""
    contrast: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Two arms to be compared, as ADAPTIVE:CONTROL (set-0.9:static-0.9). May be repeated; replaces the usual ones."""
    margin: float = 0.05
    """Smallest difference that matters, as a share of the control's mean. A difference surely smaller is a no."""
    resamples: int = 10_000
    """Bootstrap resamples of each interval."""
    record: Annotated[Path | None, left_out("PATH")] = None
    """Also copy plan, results, numbers and page into this directory: small files, which can be reported again."""
