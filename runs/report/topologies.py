"""Pictures of topologies: how far they searched, whom they feed, who sleeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from runs.report.courses import Course, mean_course
from runs.report.drawing import Palette, figure, name_arms, plain, short_numbers
from runs.report.loading import Evidence, Run
from runs.report.statistics import Array
from runs.studies.plan import Arm

_NETWORKS = ("actor", "critic")


def course(runs: Sequence[Run], column: int) -> Course | None:
    """Steps of the topology changes, and one column of them (1: replaced, 2: explored) averaged over runs."""
    return mean_course(runs, "topology_course", lambda row: row[column])


def dormant(runs: Sequence[Run], network: str) -> Course | None:
    """Steps of the evaluations, and the share of dormant neurons averaged over runs."""
    return mean_course(runs, "dormant", lambda row: row[1].get(network))


def draw_search(evidence: Evidence, group: str, palette: Palette) -> Figure:
    """Exploration rate, churn, and dormant neurons over training."""
    made = figure(10.5, 5.8)
    panels = made.subplots(2, 2)
    titles = ("positions ever connected", "connections replaced at a change", "dormant: actor", "dormant: critics")
    for arm in evidence.arms:
        runs = evidence.of(group, arm.name)
        courses = [course(runs, 2), course(runs, 1), *(dormant(runs, network) for network in _NETWORKS)]
        for axes, found in zip(panels.flat, courses, strict=True):
            if found is not None:
                axes.plot(
                    found[0], 100 * found[1], color=palette.colour(arm), linestyle=palette.line(arm), label=arm.name
                )
    for axes, title in zip(panels.flat, titles, strict=True):
        plain(axes, ylabel="%", title=title)
        axes.set_ylim(bottom=0)
        short_numbers(axes.xaxis)
    for axes in panels[1]:
        axes.set_xlabel("environment steps")
    name_arms(made, *panels[1, 0].get_legend_handles_labels())
    return made


def degrees(runs: Sequence[Run], network: str, side: str) -> Array | None:
    """Degrees of all neurons of a network's second layer, over all runs; `side` is fan_in or fan_out."""
    found: list[Array] = []
    for run in runs:
        layers: dict[str, Any] = run.result.get("degrees") or {}
        own = [name for name in layers if name.startswith(network)]
        first = {name.rpartition(".")[0]: name for name in reversed(own)}
        # The first layer of each network has few inputs; what lies between hidden layers says more.
        inner = [name for name in own if name not in first.values()] or own
        for name in inner:
            values, counts = np.array(layers[name][side]).T
            found.append(np.repeat(values, counts))
    return np.concatenate(found) if found else None


def draw_degrees(evidence: Evidence, group: str, palette: Palette) -> Figure | None:
    """How many connections neurons of the inner layers have at the end, arm by arm; None without sparse arms."""
    made = figure(10.5, 5.4)
    panels = made.subplots(2, 2)
    drawn = False
    for row, network in enumerate(_NETWORKS):
        for axes, side in zip(panels[row], ("fan_in", "fan_out"), strict=True):
            for arm in evidence.arms:
                found = degrees(evidence.of(group, arm.name), network, side)
                if found is None:
                    continue
                drawn = True
                shares = np.arange(1, len(found) + 1) / len(found)
                axes.step(
                    np.sort(found), 100 * shares, where="post", color=palette.colour(arm), linestyle=palette.line(arm),
                    label=arm.name,
                )  # fmt: skip
            what = "into a neuron" if side == "fan_in" else "out of a neuron"
            plain(axes, xlabel=f"connections {what}", title=f"{network}, between hidden layers")
        panels[row, 0].set_ylabel("% of neurons with at most so many")
    name_arms(made, *panels[0, 0].get_legend_handles_labels())
    return made if drawn else None


def draw_inputs(evidence: Evidence, group: str) -> Figure | None:
    """Connections out of each input, relative to the arm's mean; None without sparse arms."""
    arms = [arm for arm in evidence.arms if _inputs(evidence.of(group, arm.name), "actor") is not None and _sparse(arm)]
    if not arms:
        return None
    made = figure(10.5, 1.6 + 0.62 * len(arms))
    panels = made.subplots(2, 1)
    image, observations = None, 0
    for axes, network in zip(panels, _NETWORKS, strict=True):
        rows = [_inputs(evidence.of(group, arm.name), network) for arm in arms]
        table = np.array([row / row.mean() for row in rows if row is not None])
        image = axes.imshow(table, cmap="RdBu_r", vmin=0, vmax=2, aspect="auto")
        if network == "actor":
            observations = table.shape[1]
        else:
            axes.axvline(observations - 0.5, color="black", linewidth=1.2)
        axes.set_yticks(range(len(arms)), [arm.name for arm in arms], fontsize=8)
        axes.set_xticks(range(table.shape[1]) if table.shape[1] <= 40 else range(0, table.shape[1], 10))
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title("actor: observations" if network == "actor" else "critics: observations | actions", fontsize=10)
    panels[-1].set_xlabel("input")
    assert image is not None
    made.colorbar(image, ax=list(panels), label="connections, mean of the network = 1")
    return made


def _sparse(arm: Arm) -> bool:
    return all(settings["sparsity"] > 0 or settings.get("input_sparsity") for settings in arm.settings.values())


def _inputs(runs: Sequence[Run], network: str) -> Array | None:
    """Connections out of each input, averaged over runs and over the networks of that kind."""
    found = [
        counts
        for run in runs
        for name, counts in (run.result.get("input_connections") or {}).items()
        if name.startswith(network)
    ]
    return np.array(found, np.float64).mean(axis=0) if found else None
