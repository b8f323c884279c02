"""How far topologies moved, how much gradient reached them, and whether they are small worlds: pictures and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from runs.report import page
from runs.report.courses import Course, mean_course
from runs.report.drawing import Palette, figure, name_arms, plain, short_numbers
from runs.report.loading import Evidence, Run
from runs.report.tables import as_csv

MEANING = (
    "Topology distance (NNSTD): the mean share of inputs in which neurons differ, once they are paired as well as can "
    "be; 0 is the same topology in any order of neurons, 1 nothing in common. Gradient flow: the squared norm of the "
    "gradient at connections, on transitions spread over the replay buffer. Critics are averaged."
)
_NETWORKS = {"actor": "actor", "critic": "critics"}
_WORLD = ("sigma", "clustering", "path_length", "random_clustering", "random_path_length")


def distance(runs: Sequence[Run], column: int, network: str) -> Course | None:
    """Steps of the evaluations, and the distance from the start (1) or from the last one (2) averaged over runs."""
    return mean_course(runs, "topology_distance", lambda row: _average(_of(row[column], network)))


def gradient_flow(runs: Sequence[Run], network: str) -> Course | None:
    """Steps of the evaluations, and a network's gradient flow averaged over runs."""

    def total(row: Sequence[Any]) -> float:
        flows = {name: value for name, value in row[1].items() if name.startswith(network)}
        networks = {".".join(name.split(".")[:2]) for name in flows} if network == "critic" else {network}
        return float(sum(_number(value) for value in flows.values())) / max(len(networks), 1) if flows else np.nan

    return mean_course(runs, "gradient_flow", total)


def _of_layer(name: str, row: Sequence[Any]) -> float:
    return _number(row[1].get(name))


def _of(values: dict[str, Any], network: str) -> list[float]:
    return [_number(value) for name, value in values.items() if name.startswith(network)]


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)


def _average(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else np.nan


def draw_movement(evidence: Evidence, group: str, palette: Palette) -> Figure | None:
    """Distance from the start and between evaluations, and gradient flow; None where no run recorded them."""
    made = figure(10.5, 8.2)
    panels, handles = made.subplots(3, 2), dict[str, Any]()
    for column, (network, title) in enumerate(_NETWORKS.items()):
        for arm in evidence.arms:
            runs = evidence.of(group, arm.name)
            courses = [distance(runs, 1, network), distance(runs, 2, network), gradient_flow(runs, network)]
            for axes, found in zip(panels[:, column], courses, strict=True):
                if found is not None:
                    (handles[arm.name],) = axes.plot(
                        *found, color=palette.colour(arm), linestyle=palette.line(arm), label=arm.name,
                        marker="." if len(found[0]) < 3 else "",
                    )  # fmt: skip
        for row, what in enumerate(("distance from the start", "distance between evaluations", "gradient flow")):
            plain(panels[row, column], title=f"{what}: {title}")
            short_numbers(panels[row, column].xaxis)
            if row == 2:
                panels[row, column].set_yscale("log", nonpositive="mask")
            elif panels[row, column].lines:
                panels[row, column].set_ylim(0, max(1.05 * panels[row, column].dataLim.y1, 0.01))
        panels[2, column].set_xlabel("environment steps")
    name_arms(made, [*handles.values()], [*handles])
    return made if handles else None


def small_worlds(runs: Sequence[Run], network: str) -> dict[str, float]:
    """The measures of small-worldness that all of these runs have, averaged over runs and networks of a kind."""
    found: dict[str, float] = {}
    for what in _WORLD:
        worlds = [
            _number(world.get(what))
            for run in runs
            for name, world in (run.result.get("small_world") or {}).items()
            if name.startswith(network)
        ]
        if worlds and not np.isnan(worlds).any():
            found[what] = _average(worlds)
    return found


def small_world_table(evidence: Evidence, group: str) -> str:
    """Arms × small-worldness at the end; nothing where no run recorded it."""
    rows = []
    for arm in evidence.arms:
        found = [small_worlds(evidence.of(group, arm.name), network) for network in _NETWORKS]
        if any(found):
            rows.append([
                arm.name,
                *(f"{each[what]:.3g}" if what in each else "–" for each in found for what in _WORLD[:3]),
            ])  # fmt: skip
    if not rows:
        return ""
    headings = [f"{what}, {title}" for title in _NETWORKS.values() for what in ("σ", "clustering", "path length")]
    return page.table(["arm", *headings], rows) + page.paragraph(
        "Small-worldness at the end, of the sparse layers as one graph: σ above 1 where neurons share more than one "
        "neighbour more often than in random topologies with the same degrees, at equal distances.",
        "quiet",
    )


def movement_rows(evidence: Evidence, group: str) -> Iterator[list[object]]:
    """[group, arm, what, step, value] for each point of the pictures, and for the gradient flow of each layer."""
    for arm in evidence.arms:
        runs = evidence.of(group, arm.name)
        found = {
            f"{what}_{network}": distance(runs, column, network)
            for column, what in ((1, "distance_from_start"), (2, "distance_from_last"))
            for network in _NETWORKS
        }
        found |= {f"gradient_flow_{network}": gradient_flow(runs, network) for network in _NETWORKS}
        layers = {name: None for run in runs for _, flows in run.result.get("gradient_flow") or [] for name in flows}
        found |= {
            f"gradient_flow.{name}": mean_course(runs, "gradient_flow", partial(_of_layer, name)) for name in layers
        }
        for what, points in found.items():
            for step, value in zip(*points, strict=True) if points is not None else ():
                if not np.isnan(value):
                    yield [group, arm.name, what, int(step), value]


def small_world_csv(evidence: Evidence) -> bytes:
    """One line for each measure of small-worldness of each arm, averaged over runs."""
    rows = [
        [group, arm.name, network, what, value]
        for group in evidence.groups
        for arm in evidence.arms
        for network in _NETWORKS
        for what, value in small_worlds(evidence.of(group, arm.name), network).items()
    ]
    return as_csv(["group", "arm", "network", "what", "value"], rows)
