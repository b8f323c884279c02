"""Studies with files that somebody edited, cut or swapped: a line for each, and the rest is reported."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_studies import ENV, learner_result, result, spread, write_learners, write_study
from tiny_runs import main

from runs.failure import UserError
from runs.report.command import make_report
from runs.report.loading import load
from runs.report.options import Report
from runs.studies.shapes import RESULTS, Each, Maybe, Some, fault

LEVELS = {"static-0.9": spread(80, 5, 3), "set-0.9": spread(110, 5, 3)}
BAD = f"{ENV}/set-0.9/seed-1/result.json"


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    written = json.loads(path.read_text())
    change(written)
    path.write_text(json.dumps(written))


def test_shapes_by_hand() -> None:
    shape = {"a": float, "b": Maybe([str]), "c": (float, bool), "d": Each(Some(float))}
    good = {"a": 1, "b": None, "c": [0.5, True], "d": {"x": [1], "y": [2, 3]}, "e": "not asked"}
    assert fault(good, shape) is None
    assert fault({**good, "b": ["x"]}, shape) is None
    assert fault({**good, "a": "1"}, shape) == "`a` must be a finite number, got '1'"
    assert fault({**good, "a": True}, shape) == "`a` must be a finite number, got True"
    assert fault({**good, "a": float("nan")}, shape) == "`a` must be a finite number, got nan"
    assert fault({**good, "b": [1]}, shape) == "`b[0]` must be text, got 1"
    assert fault({**good, "c": [1]}, shape) == "`c` must have length 2, got 1"
    assert fault({**good, "d": {"x": []}}, shape) == "`d.x` must not be empty"
    assert fault({"a": 1}, shape) == "it has no `c`"
    assert fault([], shape) == "`` must be an object, got []"


def test_invented_results_are_as_they_should_be() -> None:
    assert fault(result("set", 1.0, 0), RESULTS["agents"]) is None
    assert fault(learner_result(0.5, 0.1, 0), RESULTS["continual"]) is None


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda r: r.update(curve=[]), f"damaged: {BAD}: `curve` must not be empty"),
        (lambda r: r["curve"].__setitem__(3, [400]), f"damaged: {BAD}: `curve[3]` must have length 2, got 1"),
        (lambda r: r["curve"].reverse(), f"damaged: {BAD}: the steps of its curve do not increase"),
        (lambda r: r.update(nnz_total=None), f"damaged: {BAD}: `nnz_total` must be a finite number, got None"),
        (lambda r: r.pop("bytes"), f"damaged: {BAD}: it has no `bytes`"),
        (lambda r: r.update(measured=3), f"damaged: {BAD}: `measured` must be an object, got 3"),
        (lambda r: r.update(steps=600), f"damaged: {BAD}: it is of 600 steps, not 1,200"),
        (lambda r: r.update(env="Ant-v5"), f"damaged: {BAD}: it is of Ant-v5"),
        (lambda r: r.update(seed=2), f"damaged: {BAD}: it is of seed 2"),
        (
            lambda r: r["input_connections"].pop("critic.qf0"),
            f"damaged: {BAD}: `input_connections` must be of actor and critics",
        ),
        (
            lambda r: r.update(real_features=[0, 3]),
            f"damaged: {BAD}: `real_features` must be numbers of the actor's 3 inputs",
        ),
        (lambda r: r["curve"].pop(3), f"left out: {BAD}: other evaluations, inputs or tasks than most runs of its arm"),
        (lambda r: r["curve"].pop(), f"damaged: {BAD}: its curve ends at step 1,100 of 1,200"),
        (
            lambda r: r["input_connections"]["actor"].pop(),
            f"left out: {BAD}: other evaluations, inputs or tasks than most runs of its arm",
        ),
    ],
)
def test_a_run_that_cannot_be_used_is_one_line(change: Callable[[Any], Any], line: str, tmp_path: Path) -> None:
    write_study(tmp_path, LEVELS)
    edit(tmp_path / BAD, change)
    evidence = load(tmp_path)
    assert evidence.problems == [line, f"unequal numbers of runs on {ENV}: static-0.9 3, set-0.9 2"]
    assert [run.seed for run in evidence.of(ENV, "set-0.9")] == [0, 2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r["class_il"].update(acc=None), "`class_il.acc` must be an object, got None"),
        (lambda r: r.update(nnz=[[]]), "`nnz[0]` must not be empty"),
        (lambda r: r["R"]["task_il"][0].pop(), "`R.task_il` is no matrix of 3 × 3"),
        (lambda r: r.update(R={}), "`R` has accuracies neither with the task known nor with it not known"),
        (lambda r: r["final"]["class_il"][0].pop(), "`final.class_il` is not of 3 tasks"),
        (lambda r: r.update(benchmark="split-mnist"), "it is of split-mnist"),
    ],
)
def test_a_learner_that_cannot_be_used_is_one_line(change: Callable[[Any], Any], reason: str, tmp_path: Path) -> None:
    path = "split-digits/naive/seed-0/result.json"
    write_learners(tmp_path / "study", {"spacenet": [0.8, 0.9], "naive": [0.2, 0.3]})
    edit(tmp_path / "study" / path, change)
    assert load(tmp_path / "study").problems[0] == f"damaged: {path}: {reason}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plan: plan.update(kind="games"), "`kind` must be one of agents, continual, got 'games'"),
        (lambda plan: plan.update(groups=3), "`groups` must be a list, got 3"),
        (lambda plan: plan.update(seeds=[]), "`seeds` must not be empty"),
        (lambda plan: plan["arms"][0].update(settings={}), "arm 'static-0.9' has no settings"),
        (lambda plan: plan["arms"][1]["settings"][ENV].pop("norm"), f"it has no `arms[1].settings.{ENV}.norm`"),
    ],
)
def test_a_plan_that_cannot_be_used(change: Callable[[Any], Any], reason: str, tmp_path: Path) -> None:
    write_study(tmp_path, LEVELS)
    edit(tmp_path / "study.json", change)
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert f"study.json is damaged ({reason})" in str(caught.value)


@pytest.mark.usefixtures("blank_pictures")
def test_the_rest_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, LEVELS)
    edit(tmp_path / BAD, lambda r: r.update(curve="gone"))
    assert main("report", tmp_path, "--resamples", "100") == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == f"damaged: {BAD}: `curve` must be a list, got 'gone'"
    assert "n = 2 and 3" in said.out
    assert str(tmp_path) not in (tmp_path / "report.html").read_text()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else [*enumerate(value)][:1] if isinstance(value, list) else ()
    for name, each in inner:
        yield (*path, name)
        yield from places(each, (*path, name))


@pytest.mark.slow
@pytest.mark.timeout(3600)  # some 500 reports
@pytest.mark.parametrize("kind", ["agents", "continual"])
@pytest.mark.usefixtures("blank_pictures")
def test_nothing_that_a_result_may_hold_stops_a_report(kind: str, tmp_path: Path) -> None:
    if kind == "agents":
        target = write_study(tmp_path / "study", LEVELS) / BAD
    else:
        levels = {"spacenet": [0.8, 0.9], "naive": [0.2, 0.3]}
        target = write_learners(tmp_path / "study", levels) / "split-digits/naive/seed-0/result.json"
    good = json.loads(target.read_text())
    for place in places(good):
        for bad in (None, "x", [], {}, -1, [[1]]):
            changed = copy.deepcopy(good)
            inner = changed
            for name in place[:-1]:
                inner = inner[name]
            inner[place[-1]] = bad
            target.write_text(json.dumps(changed))
            make_report(Report(tmp_path / "study", resamples=100))
