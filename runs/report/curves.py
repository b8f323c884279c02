"""Pictures of returns: over steps and seconds, endpoints, profiles, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from runs.report.drawing import Palette, few_ticks, figure, name_arms, name_lines, plain, short_numbers
from runs.report.endpoints import Endpoint
from runs.report.loading import Evidence, Run
from runs.report.statistics import Array, bootstrap, generator_for, mean, mean_curve, profile, profile_band
from runs.studies.plan import Arm

_TIMES = 60  # points of a curve over seconds


def curve_of(runs: Sequence[Run]) -> tuple[Array, Array]:
    """Steps that all runs were evaluated at, and returns (runs, 1, times) there."""
    common = sorted(set.intersection(*({int(step) for step, _ in run.result["curve"]} for run in runs)))
    courses = [dict((int(step), value) for step, value in run.result["curve"]) for run in runs]
    return np.array(common, np.float64), np.array([[[course[step] for step in common]] for course in courses])


def curve_band(group: str, arm: Arm, returns: Array, resamples: int) -> tuple[Array, Array] | None:
    """The 95 % interval of the mean at each time; the same for a picture and for its numbers."""
    return bootstrap(returns, mean_curve, generator_for("curve", group, arm.name), resamples)


CLOCKS = {
    "seconds": ("curve_seconds", "seconds of training (evaluation not counted)"),
    "processor_seconds": ("curve_processor_seconds", "seconds of processors in training"),
}
"""What a course over time is timed by: where it stands in `measured`, and the axis."""


def seconds_of(runs: Sequence[Run], clock: str) -> tuple[Array, Array] | None:
    """A clock's seconds up to where every run has come, and returns (runs, 1, times) there; None if nobody timed it."""
    courses = []
    for run in runs:
        timed = run.result["measured"].get(CLOCKS[clock][0])
        if not timed or len(timed) != len(run.result["curve"]):
            return None
        courses.append((np.array(timed)[:, 1], np.array(run.result["curve"])[:, 1]))
    if not courses:
        return None
    first, last = max(seconds[0] for seconds, _ in courses), min(seconds[-1] for seconds, _ in courses)
    grid = np.linspace(first, max(first, last), _TIMES)
    return grid, np.array([[np.interp(grid, seconds, returns)] for seconds, returns in courses])


def not_timed(evidence: Evidence) -> list[str]:
    """A line for each group where a clock timed some arms and not others, which then have no curve over its seconds."""
    lines = []
    for group in evidence.groups if evidence.study.kind == "agents" else []:
        arms = [arm for arm in evidence.arms if evidence.of(group, arm.name)]
        for clock, (field, _) in CLOCKS.items():
            without = [arm.name for arm in arms if seconds_of(evidence.of(group, arm.name), clock) is None]
            if without and len(without) < len(arms):
                lines.append(f"not timed on {group}: {', '.join(without)} without `{field}`, left out of its curves")
    return lines


def draw_curves(evidence: Evidence, group: str, palette: Palette, resamples: int) -> Figure:
    """All means together, then each arm by itself: its runs, mean and interval."""
    arms = [arm for arm in evidence.arms if evidence.of(group, arm.name)]
    columns = min(4, max(2, len(arms)))
    rows = math.ceil(len(arms) / columns)
    made = figure(2.9 * columns, 4.2 + 2.3 * rows)
    parts: Any = made.subfigures(2, 1, height_ratios=(4.2, 2.3 * rows))
    upper, lower = parts
    together = upper.subplots()
    panels = lower.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    courses = {arm.name: curve_of(evidence.of(group, arm.name)) for arm in arms}
    for arm in arms:
        steps, returns = courses[arm.name]
        together.plot(
            steps, mean_curve(returns), color=palette.colour(arm), linestyle=palette.line(arm), label=arm.name
        )
    plain(together, xlabel="environment steps", ylabel="return", title="mean of each arm")
    short_numbers(together.xaxis)
    name_lines(together, 4.2)
    for arm, axes in zip(arms, panels.flat, strict=False):
        for other in arms:
            axes.plot(courses[other.name][0], mean_curve(courses[other.name][1]), color="#cccccc", linewidth=0.7)
        steps, returns = courses[arm.name]
        axes.plot(steps, returns[:, 0].T, color=palette.colour(arm), linewidth=0.5, alpha=0.5)
        band = curve_band(group, arm, returns, resamples)
        if band is not None:
            axes.fill_between(steps, *band, color=palette.colour(arm), alpha=0.2, linewidth=0)
        axes.plot(steps, mean_curve(returns), color=palette.colour(arm), linewidth=1.8)
        plain(axes, title=f"{arm.name} (n = {len(returns)})")
        short_numbers(axes.xaxis)
    for axes in panels.flat[len(arms) :]:
        axes.set_axis_off()
    return made


def draw_seconds(evidence: Evidence, group: str, palette: Palette) -> Figure | None:
    """Means over seconds of training, one panel a clock; None where no run was timed."""
    timed = {
        clock: [(arm, found) for arm in evidence.arms if (found := seconds_of(evidence.of(group, arm.name), clock))]
        for clock in CLOCKS
    }
    timed = {clock: courses for clock, courses in timed.items() if courses}
    if not timed:
        return None
    made = figure(9 if len(timed) == 1 else 12, 4.2)
    panels = np.atleast_1d(made.subplots(1, len(timed), sharey=True))
    for axes, (clock, courses) in zip(panels, timed.items(), strict=True):
        for arm, (seconds, returns) in courses:
            axes.plot(
                seconds, mean_curve(returns), color=palette.colour(arm), linestyle=palette.line(arm), label=arm.name
            )
        plain(axes, xlabel=CLOCKS[clock][1])
    panels[0].set_ylabel("return")
    name_lines(panels[-1], 4.2)
    return made


def draw_endpoints(evidence: Evidence, group: str, palette: Palette, endpoints: Sequence[Endpoint]) -> Figure:
    """Every run as a point, the mean of each arm with its interval, one panel an endpoint."""
    arms = [arm for arm in evidence.arms if evidence.of(group, arm.name)]
    made = figure(10, 1.2 + 0.34 * len(arms))
    panels = np.atleast_1d(made.subplots(1, len(endpoints), sharey=True))
    for axes, endpoint in zip(panels, endpoints, strict=True):
        for row, arm in enumerate(arms):
            values = endpoint.values(evidence.of(group, arm.name)) * (100 if endpoint.percent else 1)
            if not len(values):
                continue
            found, colour = mean(values), palette.colour(arm)
            axes.plot(values, np.full(len(values), row), ".", color=colour, alpha=0.45, markersize=6)
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [row, row], color=colour, linewidth=2, solid_capstyle="round")
            axes.plot([found.value], [row], palette.marker(arm), color=colour, markersize=6)
        plain(axes, xlabel="percent" if endpoint.percent else "return", title=endpoint.label)
        if not endpoint.percent:
            short_numbers(axes.xaxis)
    panels[0].set_yticks(range(len(arms)), [arm.name for arm in arms], fontsize=8)
    panels[0].invert_yaxis()
    return made


@dataclass(frozen=True)
class Profiles:
    """Shares of runs above thresholds, by arm, with their intervals where there are any."""

    thresholds: Array
    shares: dict[str, Array]
    bands: dict[str, tuple[Array, Array] | None]


def profiles(tasks: dict[str, list[Array]], resamples: int) -> Profiles:
    """Of scores by arm, one array a task."""
    every = {name: np.concatenate(each) for name, each in tasks.items()}
    lowest = min(float(each.min()) for each in every.values())
    highest = max(float(each.max()) for each in every.values())
    room = 0.05 * (highest - lowest or 1.0)
    thresholds = np.linspace(lowest - room, highest + room, 201)
    return Profiles(
        thresholds,
        {name: profile(each[:, None], thresholds) for name, each in every.items()},
        {
            name: profile_band(each, thresholds, generator_for("profile", name), resamples)
            for name, each in tasks.items()
        },
    )


def draw_profile(found: Profiles, arms: Sequence[Arm], palette: Palette, label: str) -> Figure:
    """Share of runs above each score, all arms together and each by itself with its interval."""
    there = [arm for arm in arms if arm.name in found.shares]
    columns = min(4, max(2, len(there)))
    rows = math.ceil(len(there) / columns)
    made = figure(2.9 * columns, 3.8 + 1.9 * rows)
    parts: Any = made.subfigures(2, 1, height_ratios=(3.8, 1.9 * rows))
    upper, lower = parts
    together = upper.subplots()
    panels = lower.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for arm in there:
        style: dict[str, Any] = {"color": palette.colour(arm), "where": "post"}
        together.step(found.thresholds, found.shares[arm.name], linestyle=palette.line(arm), label=arm.name, **style)
    plain(together, xlabel=label, ylabel="share of runs above it")
    name_lines(together, 3.8)
    for arm, axes in zip(there, panels.flat, strict=False):
        for other in there:
            axes.step(found.thresholds, found.shares[other.name], color="#cccccc", linewidth=0.7, where="post")
        band, colour = found.bands[arm.name], palette.colour(arm)
        if band is not None:
            axes.fill_between(found.thresholds, *band, color=colour, alpha=0.2, linewidth=0, step="post")
        axes.step(found.thresholds, found.shares[arm.name], color=colour, linewidth=1.8, where="post")
        plain(axes, title=arm.name)
    for axes in panels.flat[len(there) :]:
        axes.set_axis_off()
    return made


COSTS: dict[str, tuple[str, Callable[[dict[str, Any]], float]]] = {
    "connections": ("connections", lambda result: result["nnz_total"]),
    "bytes": ("bytes in training", lambda result: result["bytes"]["total"]),
    "flops": ("training FLOPs", lambda result: result["train_flops"]),
    "seconds": ("seconds of training, as measured", lambda result: result["measured"]["seconds"]),
    "processor_seconds": ("seconds of processors", lambda result: result["measured"]["processor_seconds"]),
}


def cost_names(evidence: Evidence) -> list[str]:
    """What the runs of a study are said to have cost: processors' seconds where all have them, else those passed."""
    if evidence.study.kind != "agents":
        return ["connections", "bytes", "seconds"]
    precise = all(run.result["measured"].get("processor_seconds") for run in evidence.runs)
    return ["connections", "bytes", "flops", "processor_seconds" if precise else "seconds"]


def side_by_side(prices: Sequence[float]) -> list[float]:
    """Prices as they are drawn: those within 1 % of each other a little apart, so that none hides another.

    However many they are, they stay within a tenth of the axis.
    """
    if min(prices) <= 0:
        return [*prices]
    width = max(math.log(max(prices) / min(prices)), 0.3)
    found = []
    for number, price in enumerate(prices):
        near = [other for other, each in enumerate(prices) if abs(math.log(each / price)) < 0.01]
        apart = width * min(0.018, 0.1 / len(near))
        found.append(price * math.exp(apart * (near.index(number) - (len(near) - 1) / 2)))
    return found


def draw_costs(evidence: Evidence, group: str, palette: Palette, endpoint: Endpoint) -> Figure:
    """The primary endpoint against what it cost."""
    arms = [arm for arm in evidence.arms if evidence.of(group, arm.name)]
    made = figure(10.5, 5.6)
    panels = made.subplots(2, 2, sharey=True)
    for axes, (label, cost) in zip(panels.flat, (COSTS[name] for name in cost_names(evidence)), strict=True):
        prices = [float(np.mean([cost(run.result) for run in evidence.of(group, arm.name)])) for arm in arms]
        for arm, price in zip(arms, side_by_side(prices), strict=True):
            found, colour = mean(endpoint.values(evidence.of(group, arm.name))), palette.colour(arm)
            if found.low is not None and found.high is not None:
                axes.plot([price, price], [found.low, found.high], color=colour, alpha=0.6)
            axes.plot([price], [found.value], palette.marker(arm), color=colour, label=arm.name)
        plain(axes, xlabel=label)
        if min(prices, default=0) > 0:
            axes.set_xscale("log")
            few_ticks(axes.xaxis)
        axes.margins(x=0.12)
    for axes in panels[:, 0]:
        axes.set_ylabel("mean return over training")
    name_arms(made, *panels[0, 0].get_legend_handles_labels())
    return made
