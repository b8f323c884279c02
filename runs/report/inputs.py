"""Pictures of noisy observations: how connections find the real features, and which they keep."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from runs.report.courses import Course, mean_course
from runs.report.drawing import Palette, figure, name_arms, plain, short_numbers
from runs.report.loading import Evidence, Run
from runs.report.statistics import Array

_NETWORKS = ("actor", "critic")


def real_share(runs: Sequence[Run], network: str) -> Course | None:
    """Steps of the evaluations, and the share of connections on real features averaged over runs."""
    return mean_course(runs, "input_course", lambda row: row[1][network][0] if network in row[1] else None)


def kept(runs: Sequence[Run], network: str) -> tuple[Array, Array] | None:
    """Connections out of each real feature, and out of each noise feature, at the end: the most first.

    Averaged over runs rank by rank, since the places of features differ from run to run where they change.
    """
    real, noise = [], []
    for run in runs:
        own, inputs = run.result.get("real_features"), run.result.get("input_connections") or {}
        if own is None or "actor" not in inputs:
            continue
        features = len(inputs["actor"])
        counts = np.mean([each[:features] for name, each in inputs.items() if name.startswith(network)], axis=0)
        is_real = np.isin(np.arange(features), own)
        real.append(-np.sort(-counts[is_real]))
        noise.append(-np.sort(-counts[~is_real]))
    return (np.mean(real, axis=0), np.mean(noise, axis=0)) if real else None


def draw_real_share(evidence: Evidence, group: str, palette: Palette) -> Figure | None:
    """Share of the first layers' connections that are on real features, over training; None without noise."""
    made = figure(10.5, 3.2)
    panels = made.subplots(1, 2)
    drawn = False
    for axes, network in zip(panels, _NETWORKS, strict=True):
        for arm in evidence.arms:
            runs = evidence.of(group, arm.name)
            found = real_share(runs, network)
            if found is None:
                continue
            if not drawn or not axes.lines:
                axes.axhline(100 * _by_chance(runs), color="black", linewidth=0.8, linestyle=":")
            drawn = True
            axes.plot(found[0], 100 * found[1], color=palette.colour(arm), linestyle=palette.line(arm), label=arm.name)
        plain(axes, xlabel="environment steps", title=f"{network}: connections on real features")
        axes.set_ylim(bottom=0)
        short_numbers(axes.xaxis)
    panels[0].set_ylabel("% (dotted: by chance)")
    name_arms(made, *panels[0].get_legend_handles_labels())
    return made if drawn else None


def _by_chance(runs: Sequence[Run]) -> float:
    """The share of features that are real, which connections placed at random have on them."""
    result = next(run.result for run in runs if run.result.get("real_features"))
    share: float = len(result["real_features"]) / len(result["input_connections"]["actor"])
    return share


def draw_kept(evidence: Evidence, group: str) -> Figure | None:
    """A bar of connections for each input at the end, real features beside noise, arm by arm; None without noise."""
    arms = [arm for arm in evidence.arms if kept(evidence.of(group, arm.name), "actor") is not None]
    if not arms:
        return None
    made = figure(10.5, 0.9 + 1.5 * len(arms))
    panels = made.subplots(len(arms), 2, squeeze=False)
    for row, arm in zip(panels, arms, strict=True):
        for axes, network in zip(row, _NETWORKS, strict=True):
            found = kept(evidence.of(group, arm.name), network)
            assert found is not None
            real, noise = found
            axes.bar(np.arange(len(real)), real, width=1.0, color="#0072B2", label="real features")
            axes.bar(len(real) + np.arange(len(noise)), noise, width=1.0, color="#BBBBBB", label="noise features")
            plain(axes, title=f"{arm.name}, {network}")
            axes.margins(x=0.01)
        row[0].set_ylabel("connections")
    for axes in panels[-1]:
        axes.set_xlabel("inputs, the most connected of a kind first")
    name_arms(made, *panels[0, 0].get_legend_handles_labels())
    return made
