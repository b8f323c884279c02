"""The table of `sparse-agents methods`: a mean over seeds for each method and sparsity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from sparse_core import PRESETS


class Row(NamedTuple):
    """One method at one sparsity."""

    topology: str
    sparsity: float
    seeds: int
    accuracy: float
    """Mean share of test images that are right, after the last epoch."""
    accuracy_std: float | None
    """Standard deviation over seeds; None for one."""
    seconds_to_target: float | None
    """Mean training seconds to the validation target, over the seeds that reached it; None where none did."""
    reached: int
    """Seeds that reached it."""
    seconds: float
    nnz: float
    bytes: int
    flops: float
    dense_by_nature: str
    explored: float | None = None
    """Share of positions that ever held a connection; None for what never moves and runs that did not record it."""
    distance: float | None = None
    """Topology distance between start and end."""
    sigma: float | None = None
    """Small-worldness at the end."""


def rows_of(runs: Sequence[tuple[str, float, dict[str, Any]]]) -> list[Row]:
    """One row for each method and sparsity, in the order given."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for topology, sparsity, run in runs:
        groups.setdefault((topology, sparsity), []).append(run)
    return [_row(topology, sparsity, group) for (topology, sparsity), group in groups.items()]


def _row(topology: str, sparsity: float, runs: list[dict[str, Any]]) -> Row:
    accuracies = [run["accuracy"] for run in runs]
    times = [run["measured"]["seconds_to_target"] for run in runs]
    reached = [seconds for seconds in times if seconds is not None]
    return Row(
        topology, sparsity, len(runs), mean(accuracies), stdev(accuracies) if len(runs) > 1 else None,
        mean(reached) if reached else None, len(reached), mean(run["measured"]["seconds"] for run in runs),
        mean(run["nnz"] for run in runs), max(run["bytes"] for run in runs), mean(run["flops"] for run in runs),
        PRESETS[topology].dense_by_nature if topology in PRESETS else "",
        _mean(_last(run, "explored") for run in runs), _mean(_from_start(run) for run in runs),
        _mean(((run.get("measures") or {}).get("small_world") or {}).get("sigma") for run in runs),
    )  # fmt: skip


def _last(run: dict[str, Any], what: str) -> Any:
    """The last of a list of measures, if the run has any."""
    return ((run.get("measures") or {}).get(what) or [None])[-1]


def _from_start(run: dict[str, Any]) -> float | None:
    found: Sequence[float | None] = _last(run, "topology_distance") or [None]
    return found[0]


def _mean(values: Iterable[float | None]) -> float | None:
    """Over all runs; None unless each has a value."""
    found = [*values]
    there = [value for value in found if value is not None]
    return mean(there) if len(there) == len(found) else None


def _si(count: float) -> str:
    """Three digits and a letter: 2.85 T."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count:.0f}"


def as_markdown(rows: Sequence[Row]) -> str:
    """A table for people: percent, seconds, bytes and FLOPs in words."""
    head = ["method", "sparsity", "accuracy", "seconds to target", "seconds", "weights", "bytes", "training FLOPs"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        spread = "" if row.accuracy_std is None else f" ± {100 * row.accuracy_std:.2f}"
        time = "never" if row.seconds_to_target is None else f"{row.seconds_to_target:.1f}"
        some = f" ({row.reached} of {row.seeds})" if 0 < row.reached < row.seeds else ""
        name = f"{row.topology} *" if row.dense_by_nature else row.topology
        cells = [
            name, f"{100 * row.sparsity:g} %", f"{100 * row.accuracy:.2f}{spread}", time + some, f"{row.seconds:.1f}",
            f"{row.nnz:,.0f}", f"{row.bytes / 1e6:.2f} MB", _si(row.flops),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    marked = [f"{row.topology} {row.dense_by_nature}" for row in rows if row.dense_by_nature]
    notes = [f"\\* dense by nature: {'; '.join(dict.fromkeys(marked))}."] if marked else []
    notes.append(
        "Mean over seeds ± standard deviation. Bytes are the peak of weights, gradients, optimizer state, indices,"
    )
    notes.append(
        "scratch and what a method remembers; FLOPs count weights that are there, and a method's looks at gradients."
    )
    notes.append(
        "Seconds are those of the processors, in training alone: other programs on the machine do not lengthen them."
    )
    return "\n".join([*lines, "", *notes])
