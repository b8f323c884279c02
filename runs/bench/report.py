"""What a bench found: a table for people, one JSON object for programs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table

from runs.bench.rows import PEERS, Row, quartiles
from runs.machine import command, commit, machine, usable_cores, versions


def surroundings(threads: int, load: float | None) -> dict[str, Any]:
    """The machine, the versions of what counts, and how busy it was before the bench."""
    return {
        **machine(),
        "memory_bytes": _memory_bytes(),
        "usable_cores": usable_cores(),
        "threads": threads,
        "load_average_before": load,
        "versions": versions() | _versions_of_rivals(),
    }


def _versions_of_rivals() -> dict[str, str]:
    found = {}
    for name in ("sbx-rl", "jax"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def document(name: str, quick: bool, rows: Sequence[Row], where: dict[str, Any]) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "bench": name,
        "quick": quick,
        "machine": where,
        "command": shlex.join(command()),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": [row.as_json(where["threads"]) for row in rows],
    }


def table(rows: Sequence[Row]) -> Table:
    """One line per case, one column per peer: the ratio, and what it is the ratio of."""
    cases: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row.what, row.width, row.batch_size, row.sparsity), {})[row.peer_name] = row
    peers = [name for name in PEERS if any(row.peer_name == name for row in rows)]
    batched = any(row.batch_size is not None for row in rows)
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    made.add_column("what", no_wrap=True)
    for heading in ("width", *(["batch"] if batched else []), "sparsity", f"ours [{rows[0].unit}]", *peers):
        made.add_column(heading.replace("[", "\\["), justify="right", no_wrap=True)
    for (what, width, batch, sparsity), found in cases.items():
        ours = next(iter(found.values()))
        sizes = [f"{width:,}", *([f"{batch}"] if batched else []), f"{sparsity * 100:g} %"]
        against = [_against(found[name]) if name in found else "" for name in peers]
        made.add_row(what, *sizes, _figure(ours.ours, ours.raw_ours), *against)
    return made


def notes(rows: Sequence[Row]) -> list[str]:
    """One line per case of which there is more to say."""
    noted = {
        f"{row.what}, {row.width:,} wide, {row.sparsity * 100:g} %: {row.details['note']}": None
        for row in rows
        if "note" in row.details
    }
    return list(noted)


def _against(row: Row) -> str:
    note = f" ({row.peer_note})" if row.peer_note else ""
    return f"{row.ratio:.2f}× of {_figure(row.peer, row.raw_peer)}{note}"


def _figure(median: float, samples: Sequence[float]) -> str:
    """A median with half the distance of the quartiles, in percent of it."""
    low, high = quartiles(samples)
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    spread = f" ±{50 * (high - low) / median:.0f}%" if len(samples) > 1 else ""
    return f"{median:,.{digits}f}{spread}"
