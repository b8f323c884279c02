"""The parts of a page on agents: curves, endpoints, aggregates, costs, topologies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from runs.report import page
from runs.report.aggregates import aggregates
from runs.report.curves import (
    CLOCKS,
    COSTS,
    cost_names,
    draw_costs,
    draw_curves,
    draw_endpoints,
    draw_seconds,
    seconds_of,
)
from runs.report.drawing import Palette
from runs.report.endpoints import Endpoint
from runs.report.inputs import draw_kept, draw_real_share, real_share
from runs.report.loading import Evidence
from runs.report.movement import MEANING, draw_movement, movement_rows, small_world_csv, small_world_table
from runs.report.outputs import Files
from runs.report.statistics import mean_curve
from runs.report.tables import (
    as_csv,
    cost_rows,
    costs_csv,
    curves_csv,
    endpoint_rows,
    endpoints_csv,
    interval_text,
    runs_csv,
)
from runs.report.topologies import course, dormant, draw_degrees, draw_inputs, draw_search
from runs.studies.plan import folder_name

_MEANING = (
    "Mean over runs with its 95 % interval (Student's t). Mean return over training is the area under the curve of "
    "evaluations divided by its steps; final return the mean of the last ten evaluations; fresh episodes are played by "
    "the final policy, with starts that training never saw."
)


def agent_sections(evidence: Evidence, endpoints: Sequence[Endpoint], files: Files, resamples: int) -> Iterator[str]:
    """All of them, group by group."""
    palette = Palette(evidence.study.arms)
    for group in evidence.groups:
        name = folder_name(group)
        yield page.heading(f"Learning curves: {group}")
        yield page.paragraph(
            "Mean over runs of each evaluation's mean return. Below, each arm by itself: thin lines are runs, the "
            "band is the 95 % interval of the mean at each evaluation (stratified bootstrap of whole runs, "
            "expanded percentiles); grey are the other arms.",
            "quiet",
        )
        yield files.picture(f"curves-{name}", draw_curves(evidence, group, palette, resamples), "learning curves")
        yield files.picture(
            f"seconds-{name}", draw_seconds(evidence, group, palette), "mean return over seconds of training"
        )
        yield page.heading(f"Endpoints: {group}")
        yield endpoint_table(evidence, group, endpoints)
        yield files.picture(f"endpoints-{name}", draw_endpoints(evidence, group, palette, endpoints), "endpoints")
    yield from aggregates(evidence, endpoints, files, palette, resamples)
    for group in evidence.groups:
        name = folder_name(group)
        yield page.heading(f"What it cost: {group}")
        headings = ["arm", *(COSTS[cost][0] for cost in cost_names(evidence))]
        yield page.table(headings, cost_rows(evidence, group))
        yield page.paragraph(
            "In brackets: as a share of the first row. FLOPs are counted by one formula for all arms, bytes are "
            "parameters, gradients, optimizer, indices and scratch; seconds are measured, on a machine "
            "that other runs of the study kept busy, and so the least exact of these. Arms that cost the same are "
            "drawn side by side.",
            "quiet",
        )
        yield files.picture(f"costs-{name}", draw_costs(evidence, group, palette, endpoints[0]), "return against costs")
    for group in evidence.groups:
        name = folder_name(group)
        yield page.heading(f"Topologies: {group}")
        yield page.paragraph(
            "Above: positions that ever held a connection, and connections replaced at each change, of all sparse "
            "layers. Below: hidden neurons whose mean activity is at most a tenth of their layer's mean.",
            "quiet",
        )
        yield files.picture(
            f"search-{name}", draw_search(evidence, group, palette), "exploration, churn, dormant neurons"
        )
        movement = draw_movement(evidence, group, palette)
        picture = files.picture(f"movement-{name}", movement, "topology distances, gradient flow")
        if picture:
            yield page.paragraph(MEANING, "quiet")
            yield picture
        yield small_world_table(evidence, group)
        yield files.picture(f"degrees-{name}", draw_degrees(evidence, group, palette), "degree distributions")
        yield files.picture(f"inputs-{name}", draw_inputs(evidence, group), "connections out of each input")
        yield files.picture(
            f"real-share-{name}", draw_real_share(evidence, group, palette), "connections on real features"
        )
        yield files.picture(f"kept-{name}", draw_kept(evidence, group), "connections of real and noise features")
    files.contents["runs.csv"] = runs_csv(evidence, endpoints)
    files.contents["curves.csv"] = curves_csv(evidence, resamples)
    files.contents["endpoints.csv"] = endpoints_csv(evidence, endpoints)
    files.contents["topology.csv"] = topology_csv(evidence)
    files.contents["costs.csv"] = costs_csv(evidence)
    files.contents["small-world.csv"] = small_world_csv(evidence)
    files.contents["degrees.csv"] = degrees_csv(evidence)
    files.contents["seconds.csv"] = seconds_csv(evidence)


def endpoint_table(evidence: Evidence, group: str, endpoints: Sequence[Endpoint]) -> str:
    """Arms × endpoints."""
    found = {(arm, name): interval for arm, name, interval in endpoint_rows(evidence, group, endpoints)}
    rows = [
        [
            arm.name,
            *(
                interval_text(endpoint, found[arm.name, endpoint.name]) if (arm.name, endpoint.name) in found else "–"
                for endpoint in endpoints
            ),
        ]
        for arm in evidence.arms
        if evidence.of(group, arm.name)
    ]
    return page.table(["arm", *(endpoint.label for endpoint in endpoints)], rows) + page.paragraph(_MEANING, "quiet")


def degrees_csv(evidence: Evidence) -> bytes:
    """One line for each degree of each layer: how many neurons have it at the end, over all runs of an arm."""
    counts: Counter[tuple[str, str, str, str, int]] = Counter()
    for run in evidence.runs:
        for layer, sides in (run.result.get("degrees") or {}).items():
            for side, histogram in sides.items():
                for degree, neurons in histogram:
                    counts[run.group, run.arm.name, layer, side, degree] += neurons
    rows = [[*key, neurons] for key, neurons in sorted(counts.items())]
    return as_csv(["group", "arm", "layer", "side", "degree", "neurons"], rows)


def seconds_csv(evidence: Evidence) -> bytes:
    """One line for each point of the curves over seconds of training."""
    rows: list[list[object]] = []
    for group in evidence.groups:
        for arm in evidence.arms:
            for clock in CLOCKS:
                found = seconds_of(evidence.of(group, arm.name), clock)
                if found is not None:
                    points = zip(found[0], mean_curve(found[1]), strict=True)
                    rows += [[group, arm.name, clock, *point] for point in points]
    return as_csv(["group", "arm", "clock", "seconds", "mean_return"], rows)


def topology_csv(evidence: Evidence) -> bytes:
    """One line for each point of the pictures of topologies, averaged over runs."""
    rows: list[list[object]] = []
    for group in evidence.groups:
        for arm in evidence.arms:
            runs = evidence.of(group, arm.name)
            found = {
                "replaced": course(runs, 1), "explored": course(runs, 2), "dormant_actor": dormant(runs, "actor"),
                "dormant_critic": dormant(runs, "critic"), "real_share_actor": real_share(runs, "actor"),
                "real_share_critic": real_share(runs, "critic"),
            }  # fmt: skip
            for what, points in found.items():
                if points is not None:
                    rows += [[group, arm.name, what, int(step), value] for step, value in zip(*points, strict=True)]
            rows += [
                [group, arm.name, f"input_connections.{network}", number, count]
                for run in runs[:1]
                for network, counts in (run.result.get("input_connections") or {}).items()
                for number, count in enumerate(
                    np.mean([each.result["input_connections"][network] for each in runs], axis=0)
                )
            ]
        rows += movement_rows(evidence, group)
    return as_csv(["group", "arm", "what", "step_or_input", "value"], rows)
