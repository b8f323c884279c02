"""Reports of studies whose truth is known: what is missing, the page, and every number."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from small_studies import ENV, arm, spread, write_learners, write_study
from tiny_runs import ROOT, main

from runs.files import write_json
from runs.report.command import Findings, make_report, say
from runs.report.drawing import Palette, figure, name_lines, png
from runs.report.loading import load
from runs.report.movement import draw_movement, gradient_flow, movement_rows, small_world_table
from runs.report.options import Report
from runs.report.topologies import draw_search
from runs.studies.plan import Study

pytestmark = pytest.mark.end_to_end

FEW = 100  # resamples


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Findings]:
    """A study of two environments with its report; only to be read."""
    directory = tmp_path_factory.mktemp("reported") / "study"
    levels = {"dense": spread(100, 5, 3), "static-0.9": spread(80, 5, 3), "set-0.9": spread(110, 5, 3)}
    write_study(directory, levels, groups=(ENV, "Ant-v5"))
    return directory, make_report(Report(directory, resamples=FEW))


def rows(directory: Path, name: str) -> list[dict[str, str]]:
    with (directory / "report" / name).open() as file:
        return list(csv.DictReader(file))


def test_report_says_verdicts_and_ends_with_its_path(
    reported: tuple[Path, Findings], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, findings = reported
    say(findings)
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) == 1 + 3 * 3
    assert lines[0].startswith(
        "Mean over 2 environments: Does set-0.9 do better than static-0.9? Yes: mean return over"
    )
    assert lines[3].startswith(f"{ENV}: Does set-0.9 do better than static-0.9? Yes: mean return over training +38 %")
    assert lines[-1] == str(directory / "report.html")
    assert said.err == ""


class Links(HTMLParser):
    """Everything a page would load or lead to, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ")


def read_page(directory: Path) -> Links:
    links = Links()
    links.feed((directory / "report.html").read_text())
    return links


def test_page_loads_nothing_from_elsewhere(reported: tuple[Path, Findings]) -> None:
    page = read_page(reported[0])
    assert page.tags.count("img") == len([*(reported[0] / "report").glob("*.png")]) >= 10
    assert all(each.startswith(("data:image/png;base64,", "#")) for each in page.loaded)
    assert not {"script", "link", "iframe"} & {*page.tags}
    assert "url(" not in (reported[0] / "report.html").read_text()
    assert "As few as 3 seeds an arm is little" in page.text
    assert "18 of 18 runs are finished" in page.text
    assert "It cost 0.10 × the connections, and as many bytes in training, training FLOPs and seconds." in page.text
    assert "sparse-agents compare" in page.text


def test_numbers_in_the_files_are_those_of_the_runs(reported: tuple[Path, Findings]) -> None:
    directory, _ = reported
    found = {(row["group"], row["arm"], row["endpoint"]): row for row in rows(directory, "endpoints.csv")}
    assert len(found) == 2 * 3 * 3
    row = found["Ant-v5", "static-0.9", "auc"]
    half = stats.t.ppf(0.975, 2) * 5 / 3**0.5
    shown = [float(row[name]) for name in ("mean", "low", "high")]
    assert shown == pytest.approx([80, 80 - half, 80 + half])
    assert row["runs"] == "3"
    by_run = rows(directory, "runs.csv")
    assert sorted(float(each["auc"]) for each in by_run if each["arm"] == "set-0.9")[::2] == pytest.approx(
        [105, 110, 115]
    )
    assert {float(each["flops"]) for each in by_run} == {1e9}
    contrast = {(each["group"], each["first"], each["second"]): each for each in rows(directory, "contrasts.csv")}
    assert len(contrast) == 9
    # A level is the same in both environments, and dense is at 100: divided by it 1.1 and 0.8.
    whole = contrast["mean over 2 environments", "set-0.9", "static-0.9"]
    assert float(whole["difference"]) == pytest.approx(0.3)
    assert float(whole["relative"]) == pytest.approx(0.375)
    assert (whole["connections_of_second"], whole["runs_first"]) == ("1.0", "3")
    assert float(contrast[ENV, "set-0.9", "dense"]["connections_of_second"]) == pytest.approx(0.1)
    spent = {(row["group"], row["arm"]): row for row in rows(directory, "costs.csv")}
    assert float(spent["Ant-v5", "dense"]["connections"]) == 1000
    profile = [row for row in rows(directory, "profile.csv") if row["arm"] == "dense"]
    assert [float(profile[0][name]) for name in ("share", "low", "high")] == [1, 1, 1]
    assert all(float(row["low"]) <= float(row["share"]) <= float(row["high"]) for row in profile)
    one = contrast[ENV, "set-0.9", "static-0.9"]
    theirs = stats.ttest_ind(spread(110, 5, 3), spread(80, 5, 3), equal_var=False)
    assert float(one["p_welch"]) == pytest.approx(theirs.pvalue)
    assert float(one["difference"]) == pytest.approx(30)
    assert float(one["p_permutation"]) == 2 / 20
    curve = [each for each in rows(directory, "curves.csv") if (each["group"], each["arm"]) == (ENV, "dense")]
    assert [int(each["step"]) for each in curve] == [*range(100, 1300, 100)]
    assert {float(each["mean"]) for each in curve} == {100}
    aggregate = {(each["arm"], each["endpoint"]): each for each in rows(directory, "aggregates.csv")}
    assert float(aggregate["dense", "auc"]["iqm"]) == pytest.approx(1)
    assert float(aggregate["set-0.9", "auc"]["iqm"]) == pytest.approx(1.1)
    assert aggregate["set-0.9", "auc"]["divided_by"] == "the mean of dense"
    searched = {(each["arm"], each["what"]) for each in rows(directory, "topology.csv")}
    assert ("set-0.9", "explored") in searched
    assert ("static-0.9", "explored") not in searched
    assert ("dense", "dormant_critic") in searched


def test_measures_in_the_files_are_those_of_the_runs(reported: tuple[Path, Findings]) -> None:
    directory, _ = reported
    found = {
        (each["arm"], each["what"], each["step_or_input"]): float(each["value"])
        for each in rows(directory, "topology.csv")
        if each["group"] == ENV
    }
    # Distances are averaged over critics: 0.2 and 0.4 from the start, 0.1 of the one that has any since the last.
    assert found["set-0.9", "distance_from_start_actor", "1200"] == 0.5
    assert found["set-0.9", "distance_from_start_critic", "100"] == pytest.approx(0.3)
    assert found["set-0.9", "distance_from_last_critic", "100"] == pytest.approx(0.1)
    assert not any(what.startswith("distance") for arm, what, _ in found if arm != "set-0.9")
    # Gradient flow is summed over layers, 3 and 1 of the one critic.
    assert found["dense", "gradient_flow_critic", "700"] == 4
    assert found["dense", "gradient_flow.critic.qf0.0", "700"] == 3
    worlds = {
        (each["arm"], each["network"], each["what"]): each["value"] for each in rows(directory, "small-world.csv")
    }
    assert worlds["static-0.9", "actor", "sigma"] == "1.5"
    assert not any(arm == "dense" or network == "critic" for arm, network, _ in worlds)
    assert [found["set-0.9", what, "1000"] for what in ("replaced", "explored")] == pytest.approx([0.3, 0.4])
    assert [found["dense", f"dormant_{network}", "700"] for network in ("actor", "critic")] == [0.25, 0.5]
    assert [found["dense", "input_connections.critic.qf0", str(each)] for each in range(4)] == [4, 3, 2, 1]
    evidence = load(directory)
    axes = draw_search(evidence, ENV, Palette(evidence.study.arms)).axes
    shown = [list(each.lines[0].get_ydata()) for each in axes[:4]]  # explored, replaced, dormant actor and critics
    assert shown[:2] == [pytest.approx([20, 40]), pytest.approx([30, 30])]
    assert [course[0] for course in shown[2:]] == [25, 50]
    degrees = [
        (each["degree"], each["neurons"])
        for each in rows(directory, "degrees.csv")
        if (each["group"], each["arm"], each["layer"], each["side"]) == (ENV, "set-0.9", "actor.mu.0", "fan_in")
    ]
    assert degrees == [("2", "12"), ("3", "12")]  # four of each in three runs
    page = read_page(directory)
    assert "σ, actor" in page.text
    assert (directory / "report" / f"movement-{ENV}.png").is_file()


def test_gradients_that_were_not_finite_are_gaps(tmp_path: Path) -> None:
    write_study(tmp_path, {"set-0.9": [1.0, 2.0]})
    for seed, flows in (
        (0, {"critic.qf0.0": 1.0, "critic.qf1.0": None}),
        (1, {"critic.qf0.0": 2.0, "critic.qf1.0": 4.0}),
    ):
        path = tmp_path / ENV / "set-0.9" / f"seed-{seed}" / "result.json"
        written = json.loads(path.read_text())
        written["gradient_flow"] = [[100, flows], [200, {"critic.qf0.0": 2.0, "critic.qf1.0": 6.0}]]
        write_json(path, written)
    runs = load(tmp_path).of(ENV, "set-0.9")
    found = gradient_flow(runs, "critic")
    assert found is not None
    np.testing.assert_array_equal(found, [[100, 200], [np.nan, 4]])  # two critics: half the sum
    assert gradient_flow(runs, "actor") is None


RECORD = ROOT / "runs/records/adaptive-or-static"


def test_runs_of_an_earlier_version_have_nothing_to_show() -> None:
    """Those of the repository, in which none has distances, gradient flow or small-worldness."""
    evidence = load(RECORD)
    assert evidence.runs
    assert draw_movement(evidence, ENV, Palette(evidence.study.arms)) is None
    assert [*movement_rows(evidence, ENV)] == []
    assert small_world_table(evidence, ENV) == ""


@pytest.mark.slow
@pytest.mark.parametrize("record", sorted(path.parent.name for path in (ROOT / "runs/records").glob("*/study.json")))
def test_a_record_makes_its_page_again(record: str, tmp_path: Path) -> None:
    """With the command at the end of the page; numbers of another machine's libraries may end otherwise."""
    kept, copy = ROOT / "runs/records" / record, tmp_path / record
    shutil.copytree(kept, copy, ignore=shutil.ignore_patterns("report*"))
    (command,) = re.findall(r"sparse-agents report STUDY[^<\n]*", read_page(kept).text)
    assert main("report", copy, *shlex.split(command)[3:]) == 0
    for path in sorted((kept / "report").glob("*.csv")):
        one, other = (list(map(_cells, rows(directory, path.name))) for directory in (kept, copy))
        assert [texts for texts, _ in one] == [texts for texts, _ in other], path.name
        for (_, numbers), (_, again) in zip(one, other, strict=True):
            assert again == pytest.approx(numbers, rel=1e-6, abs=1e-9), path.name


def _cells(row: dict[str, str]) -> tuple[list[str], list[float]]:
    """Texts and numbers of a row."""
    numbers = {name: float(value) for name, value in row.items() if re.fullmatch(r"-?[\d.]+(e-?\d+)?", value)}
    return [value for name, value in row.items() if name not in numbers], [*numbers.values()]


def test_records_of_an_earlier_version_are_reported(tmp_path: Path) -> None:
    record = tmp_path / "record"
    shutil.copytree(RECORD, record, ignore=shutil.ignore_patterns("report*"))
    later = [path.parent for path in record.rglob("result.json") if "topology_distance" in json.loads(path.read_text())]
    for run in later:
        shutil.rmtree(run)
    assert main("report", record, "--resamples", str(FEW)) == 0
    assert not [path.name for path in (record / "report").iterdir() if path.name.startswith("movement")]
    assert rows(record, "small-world.csv") == []
    assert {each["what"] for each in rows(record, "topology.csv")} >= {"explored", "dormant_actor"}


def digest(directory: Path) -> dict[str, str]:
    paths = [directory / "report.html", *(directory / "report").iterdir()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_two_reports_are_the_same_bytes(reported: tuple[Path, Findings], tmp_path: Path) -> None:
    """Whoever makes them, whenever and wherever: in another process, three years ago, in another folder."""
    directory, _ = reported
    before = digest(directory)
    assert len(before) >= 17
    moved = shutil.copytree(directory, tmp_path / "moved", ignore=shutil.ignore_patterns("report*"))
    program = (
        "import sys, time; now, local = time.time, time.localtime; time.time = lambda: now() - 1e8\n"
        "time.localtime = lambda at=None: local(time.time() if at is None else at)\n"
        "from runs.command import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "report", str(moved), "--resamples", str(FEW)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "7"}, check=True, capture_output=True)
    assert digest(moved) == before
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", (moved / "report.html").read_text())


def test_nothing_else_of_a_study_is_touched(reported: tuple[Path, Findings]) -> None:
    directory, _ = reported
    others = {path.name for path in directory.iterdir()} - {"report", "report.html"}
    assert others == {"study.json", ENV, "Ant-v5"}
    assert {path.name for path in directory.rglob("*") if "seed-" in str(path.parent)} == {"result.json"}


@pytest.mark.usefixtures("blank_pictures")
def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, {"static-0.9": [1.0, 2.0], "set-0.9": [1.0, 2.0], "rigl-0.9": [1.0, 2.0]})
    shutil.rmtree(tmp_path / ENV / "set-0.9")
    wanted = ["--contrast", "set-0.9:static-0.9", "--contrast", "rigl-0.9:static-0.9"]
    assert main("report", tmp_path, "--resamples", FEW, *wanted) == 0
    assert f"not compared on {ENV}: set-0.9 and static-0.9: set-0.9 has no finished run" in capsys.readouterr().err
    assert "sparse-agents report STUDY --contrast set-0.9:static-0.9 --contrast rigl-0.9" in read_page(tmp_path).text
    for pair in ("set-0.9:set-0.9", "set-0.9", "a:b"):
        assert main("report", tmp_path, "--contrast", pair) == 2
    assert main("report", tmp_path, "--contrast", "set-0.9:static-0.9", "--contrast", "set-0.9:static-0.9") == 2


@pytest.mark.usefixtures("blank_pictures")
def test_what_is_missing_or_odd_is_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_study(tmp_path / "study", {"static-0.9": spread(80, 5, 6), "set-0.9": spread(110, 5, 6)})
    runs = directory / ENV
    (runs / "set-0.9/seed-0/result.json").write_text('{"format": "sparse-ag')
    (runs / "set-0.9/seed-1/result.json").write_text('{"format": "somebody-elses"}')
    other = json.loads((runs / "set-0.9/seed-3/result.json").read_text())
    (runs / "set-0.9/seed-2/result.json").write_text(json.dumps(other))
    (runs / "static-0.9/seed-5/result.json").unlink()
    (runs / "static-0.9/seed-4/result.json").unlink()
    write_json(runs / "static-0.9/seed-4.failed.json", {"error": "diverged <b>&", "attempts": 1})
    (directory / "holiday").mkdir()
    (directory / "holiday/photo.png").write_text("")
    (runs / "empty").mkdir()
    assert main("report", directory, "--resamples", str(FEW)) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(
        f"damaged: the result of a run {ENV}/set-0.9/seed-0/result.json is damaged (Unterminated string"
    )
    assert lines[1].startswith(f"damaged: {ENV}/set-0.9/seed-1/result.json: it is no result of such a run (`format` is")
    assert lines[2] == f"damaged: {ENV}/set-0.9/seed-2/result.json: it is of seed 3"
    assert lines[3:] == [
        f"failed: {ENV} static-0.9 seed 4: diverged <b>&",
        f"missing: {ENV} static-0.9 seed 5",
        "not of this study, left out: holiday",
        f"not of this study, left out: {ENV}/empty (empty)",
        f"unequal numbers of runs on {ENV}: static-0.9 4, set-0.9 3",
    ]
    page = read_page(directory)
    assert all(" ".join(line.split()) in " ".join(page.text.split()) for line in lines)
    assert "b" not in page.tags  # what came from a file is text
    assert "7 of 12 runs are finished" in page.text
    assert page.text.index("7 of 12 runs are finished") < page.text.index("The answer")
    assert "n = 3 and 4" in page.text


def test_unequal_steps_are_said(tmp_path: Path) -> None:
    write_study(tmp_path, {"static-0.9": [1.0, 2.0], "set-0.9": [1.0, 2.0]})
    arms = [arm("static-0.9", [ENV]), arm("set-0.9", [ENV], steps=2400)]
    Study("agents", [ENV], arms, [0, 1], [["x"]]).write(tmp_path, "")
    for path in (tmp_path / ENV / "set-0.9").rglob("result.json"):
        written = json.loads(path.read_text())
        write_json(path, {**written, "steps": 2400, "curve": [[2 * step, value] for step, value in written["curve"]]})
    assert load(tmp_path).problems == [f"unequal steps on {ENV}: static-0.9 1,200, set-0.9 2,400"]


@pytest.mark.usefixtures("blank_pictures")
def test_arms_that_nobody_timed_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, {"static-0.9": [1.0, 2.0], "set-0.9": [1.0, 2.0]})
    path = tmp_path / ENV / "set-0.9/seed-1/result.json"
    written = json.loads(path.read_text())
    del written["measured"]["curve_seconds"]
    write_json(path, written)
    assert main("report", tmp_path, "--resamples", FEW) == 0
    line = f"not timed on {ENV}: set-0.9 without `curve_seconds`, left out of its curves"
    assert line in capsys.readouterr().err.splitlines()
    assert {row["arm"] for row in rows(tmp_path, "seconds.csv")} == {"static-0.9"}


@pytest.mark.usefixtures("blank_pictures")
def test_a_picture_of_somebody_else_stays(tmp_path: Path) -> None:
    write_study(tmp_path, {"static-0.9": [1.0, 2.0]})
    folder = tmp_path / "report"
    folder.mkdir()
    for name in ("curves-Gone-v5.png", f"real-share-{ENV}.png", "mine.png", "mine.csv"):
        (folder / name).write_text("")
    make_report(Report(tmp_path, resamples=FEW))
    names = {path.name for path in folder.iterdir()}
    assert {"mine.png", "mine.csv", f"curves-{ENV}.png"} <= names
    assert not {"curves-Gone-v5.png", f"real-share-{ENV}.png"} & names


def test_names_of_forty_arms_fit_beside_their_lines() -> None:
    made = figure(9, 4.2)
    axes = made.subplots()
    for number in range(40):
        axes.plot([0, 1], [number, number], label=f"arm {number}")
    name_lines(axes, 4.2)
    png(made)
    box = axes.get_legend().get_window_extent()
    assert 0 <= box.y0 < box.y1 <= made.bbox.y1
    assert 0 <= box.x0 < box.x1 <= made.bbox.x1
    assert axes.get_window_extent().width > 0.3 * made.bbox.width


def test_forty_arms_are_told_apart_by_lines_and_by_points() -> None:
    arms = [arm(f"static-0.{number:02}", [ENV]) for number in range(40)] + [arm("dense", [ENV])]
    palette = Palette(arms)
    for style in (palette.line, palette.marker):
        assert len({(palette.colour(each), style(each)) for each in arms}) == 41
    assert palette.colour(arms[-1]) not in {palette.colour(each) for each in arms[:-1]}


def test_pictures_have_few_colours_and_look_as_drawn() -> None:
    made = figure(4, 3)
    axes = made.subplots()
    for number in range(30):
        axes.plot([0, 1], [0, number], color=(number / 30, 0.3, 1 - number / 30), alpha=0.5)
    found = Image.open(io.BytesIO(png(made)))
    assert len(found.getcolors() or []) <= 256
    drawn = np.asarray(cast(Any, made.canvas).buffer_rgba())[..., :3].astype(float)
    apart = np.abs(np.asarray(found.convert("RGB")) - drawn)
    assert apart.mean() < 0.5
    assert np.quantile(apart, 0.99) < 24


@pytest.mark.parametrize("kind", ["empty", "file", "plan", "nowhere"])
def test_nothing_to_report(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, message = tmp_path / "study", "is no study (it has no study.json)"
    if kind == "nowhere":
        message = "is not a directory"
    elif kind == "file":
        directory.write_text("")
        message = "is not a directory"
    else:
        directory.mkdir()
    if kind == "plan":
        Study("agents", [ENV], [arm("set-0.9", [ENV])], [0], [["x"]]).write(directory, "")
        message = (
            f"has no finished run (missing: {ENV} set-0.9 seed 0); finish the study by its `sparse-agents compare`"
        )
    before = [*tmp_path.rglob("*")]
    assert main("report", directory) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert [*tmp_path.rglob("*")] == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--contrast", "set-0.9:sett"],
            "`contrast` must name two arms as FIRST:SECOND, of dense, static-0.9, set-0.9",
        ),
        (["--margin", "-1"], "`margin` must be a share ≥ 0 such as 0.05, got -1.0"),
        (["--resamples", "3"], "`resamples` must be at least 100, got 3"),
    ],
)
def test_flags_that_cannot_be(
    flags: list[str], message: str, reported: tuple[Path, Findings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("report", reported[0], *flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("blank_pictures")
def test_names_are_text(tmp_path: Path) -> None:
    """Arms are checked when a study is made; a plan may have been edited since."""
    name = "a<b>&-0.9"
    directory = tmp_path / "study"
    write_study(directory, {"static-0.9": [1.0, 2.0], "set-0.9": [3.0, 4.0]})
    plan: dict[str, Any] = json.loads((directory / "study.json").read_text())
    plan["arms"][1]["name"] = name
    (directory / "study.json").write_text(json.dumps(plan))
    (directory / ENV / "set-0.9").rename(directory / ENV / name)
    make_report(Report(directory, resamples=FEW))
    page = read_page(directory)
    assert f"Does {name} do better than static-0.9?" in page.text
    assert "b" not in page.tags


@pytest.mark.usefixtures("blank_pictures")
def test_record_is_small_and_says_the_same(reported: tuple[Path, Findings], tmp_path: Path) -> None:
    directory, _ = reported
    kept = tmp_path / "kept"
    for _ in range(2):  # the second time over the first
        assert main("report", directory, "--resamples", str(FEW), "--record", kept) == 0
    assert digest(directory)["contrasts.csv"] == digest(kept)["contrasts.csv"]
    everything = "".join(path.read_text() for path in kept.rglob("*") if path.is_file())
    assert "/home/me" not in everything
    assert "desk" not in everything
    assert not [*kept.rglob("*.png")]
    assert len([*kept.rglob("result.json")]) == 18
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("")
    assert main("report", directory, "--resamples", str(FEW), "--record", tmp_path / "other") == 2


@pytest.mark.usefixtures("blank_pictures")
def test_a_study_that_goes_on_is_never_recorded_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, other = (
        write_study(tmp_path / name, {"static-0.9": [1.0, 2.0], "set-0.9": [1.0, 2.0]}) for name in ("study", "other")
    )
    (other / ENV / "set-0.9/seed-1/metrics.jsonl").write_text("{}")
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    assert main("report", study, "--resamples", FEW, "--record", other) == 2
    assert f"{other} is no record of a study: it holds {ENV}/set-0.9/seed-1/metrics.jsonl" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
    assert main("report", study, "--resamples", FEW, "--record", study) == 2
    assert "is the study itself" in capsys.readouterr().err


# Continual learners


def test_learners(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    levels = {"spacenet": spread(0.8, 0.01, 3), "spacenet-static": spread(0.6, 0.01, 3), "naive": spread(0.2, 0.01, 3)}
    directory = write_learners(tmp_path / "study", levels)
    assert main("report", directory, "--resamples", str(FEW)) == 0
    said = capsys.readouterr().out
    for control in ("spacenet-static", "naive"):
        assert f"Does spacenet do better than {control}? Yes: accuracy, task not known +" in said
    assert "task not known +20 points (95 % interval +18 … +22 points by Welch, n = 3 and 3" in said
    page = read_page(directory)
    assert "naive (fine-tuning without any protection)" in page.text
    assert "+20.0 points" in page.text  # in the table of contrasts, too
    assert "Not in this study: ncm, slda, joint; add them with --strategies ncm,slda,joint." in page.text
    for name in ("R-split-digits-spacenet.png", "accuracy-split-digits-naive.png", "endpoints-split-digits.png"):
        assert (directory / "report" / name).is_file()
    cells = [row for row in rows(directory, "continual.csv") if row["what"] == "R" and row["arm"] == "naive"]
    assert len(cells) == 3 * 2 * 9
    forgetting = [row for row in rows(directory, "endpoints.csv") if row["endpoint"] == "class_forgetting"]
    assert [float(row["mean"]) for row in forgetting] == pytest.approx([0.1] * 3)


@pytest.mark.usefixtures("blank_pictures")
def test_tables_of_learners_are_of_their_last_task_and_the_right_way_round(tmp_path: Path) -> None:
    directory = write_learners(tmp_path / "study", {"naive": [0.5]})
    (path,) = directory.rglob("result.json")
    written = json.loads(path.read_text())
    written["R"]["class_il"] = [[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]]
    names = ("acc", "bwt", "forgetting", "fwt", "la")
    for number, (kind, name) in enumerate((kind, name) for kind in ("class_il", "task_il") for name in names):
        written[kind] = {**written[kind], name: {"mean": number / 10, "per_seed": [number / 10]}}
    write_json(path, written)
    make_report(Report(directory, resamples=FEW))
    cells = {
        (row["kind"], row["after_task"], row["on_task"]): float(row["value"])
        for row in rows(directory, "continual.csv")
        if row["what"] == "R"
    }
    assert (cells["class_il", "2", "1"], cells["class_il", "1", "2"]) == (0.4, 0.2)
    assert [float(row["mean"]) for row in rows(directory, "scores.csv")] == [number / 10 for number in range(10)]
    (cost,) = rows(directory, "costs.csv")
    assert [float(cost[name]) for name in ("connections", "bytes", "seconds")] == [30, 100, 1]


@pytest.mark.usefixtures("blank_pictures")
def test_returns_over_seconds_are_means_at_the_same_second(tmp_path: Path) -> None:
    write_study(tmp_path, {"set-0.9": [0.0, 0.0]})
    for seed, speed in ((0, 100), (1, 50)):  # steps a second
        path = tmp_path / ENV / "set-0.9" / f"seed-{seed}" / "result.json"
        written = json.loads(path.read_text())
        steps = [step for step, _ in written["curve"]]
        written["curve"] = [[step, step] for step in steps]
        written["measured"] |= {
            "curve_seconds": [[step, step / speed] for step in steps], "processor_seconds": 7.0,
            "curve_processor_seconds": [[step, 2 * step / speed] for step in steps],
        }  # fmt: skip
        write_json(path, written)
    make_report(Report(tmp_path, resamples=FEW))
    found: dict[str, list[tuple[float, float]]] = {"seconds": [], "processor_seconds": []}
    for row in rows(tmp_path, "seconds.csv"):
        found[row["clock"]].append((float(row["seconds"]), float(row["mean_return"])))
    # At second t they have made 100 t and 50 t steps; both have begun at 2 and neither is done before 12.
    assert [found["seconds"][0], found["seconds"][-1]] == [pytest.approx((2, 150)), pytest.approx((12, 900))]
    assert all(value == pytest.approx(75 * at) for at, value in found["seconds"])
    assert all(value == pytest.approx(37.5 * at) for at, value in found["processor_seconds"])
    assert [float(row["processor_seconds"]) for row in rows(tmp_path, "costs.csv")] == [7]
