"""The part of a page on all environments together: interquartile means and performance profiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runs.report import page
from runs.report.curves import Profiles, draw_profile, profiles
from runs.report.drawing import Palette
from runs.report.endpoints import Endpoint, normalised
from runs.report.loading import Evidence
from runs.report.outputs import Files
from runs.report.statistics import Array, Interval, generator_for, iqm
from runs.report.tables import as_csv


def aggregates(
    evidence: Evidence, endpoints: Sequence[Endpoint], files: Files, palette: Palette, resamples: int
) -> Iterator[str]:
    """IQM over environments, and the performance profile."""
    many = len(evidence.groups) > 1
    yield page.heading("Over all environments" if many else f"Interquartile means and profile: {evidence.groups[0]}")
    rows: list[list[str]] = [[arm.name] for arm in evidence.arms]
    numbers: list[list[object]] = []
    base = ""
    for endpoint in endpoints:
        tasks, base = _tasks(evidence, endpoint)
        for row, arm in zip(rows, evidence.arms, strict=True):
            mine, generator = tasks.get(arm.name), generator_for("iqm", endpoint.name, arm.name)
            found = iqm(mine, generator, resamples) if mine else None
            some = (
                f" ({len(mine)} of {len(evidence.groups)} environments)"
                if mine and len(mine) < len(evidence.groups)
                else ""
            )
            row.append("–" if found is None else _ratio(found) + some)
            if found is not None and mine:
                numbers.append([
                    arm.name, endpoint.name, found.value, found.low, found.high, found.runs, len(mine), found.kind,
                    base,
                ])  # fmt: skip
    yield page.table(["arm", *(f"IQM of {endpoint.label}" for endpoint in endpoints)], rows)
    count = len(evidence.groups)
    yield page.paragraph(
        f"Interquartile mean over the runs of {count} environment{'s' if count > 1 else ''}, each score divided by "
        f"{base} in its environment (where that mean m is negative: 1 + (score - m) / |m|); in brackets the 95 % "
        "interval (stratified bootstrap, expanded percentiles). Below, the share of runs above each score, with the "
        "same kind of interval.",
        "quiet",
    )
    files.contents["aggregates.csv"] = as_csv(
        ["arm", "endpoint", "iqm", "low", "high", "fewest_runs", "groups", "interval", "divided_by"], numbers
    )
    tasks, _ = _tasks(evidence, endpoints[0])
    found_profiles = profiles(tasks, resamples)
    files.contents["profile.csv"] = _profile_csv(found_profiles)
    label = f"{endpoints[0].label}, divided by {base}"
    yield files.picture("profile", draw_profile(found_profiles, evidence.arms, palette, label), "performance profile")


def _tasks(evidence: Evidence, endpoint: Endpoint) -> tuple[dict[str, list[Array]], str]:
    """Normalised scores by arm, one array for each group that it has; and what was divided by."""
    scores, base = normalised(evidence, endpoint)
    found = {
        arm.name: [scores.values(evidence.of(group, arm.name)) for group in evidence.groups] for arm in evidence.arms
    }
    there = {name: [each for each in tasks if len(each)] for name, tasks in found.items()}
    return {name: tasks for name, tasks in there.items() if tasks}, base


def _profile_csv(found: Profiles) -> bytes:
    """One line for each threshold and arm."""
    rows: list[list[object]] = []
    for name, shares in found.shares.items():
        nothing = [None] * len(shares)
        low, high = found.bands[name] or (nothing, nothing)
        rows += [[name, *point] for point in zip(found.thresholds, shares, low, high, strict=True)]
    return as_csv(["arm", "threshold", "share", "low", "high"], rows)


def _ratio(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.3f} (n = {found.runs})"
    return f"{found.value:.3f} ({found.low:.3f} … {found.high:.3f}; n = {found.runs})"
