"""Verdicts on studies whose truth is known: endpoints, contrasts, controls, and seeds that count."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from small_studies import ENV, arm, result, spread, write_learners, write_study

from runs.files import write_json
from runs.report.command import make_report, say
from runs.report.contrasts import Contrast, contrasts, pairs, sentence
from runs.report.curves import side_by_side
from runs.report.endpoints import area_under_curve, endpoints, final_return, overall, small_bases, values_of
from runs.report.loading import load
from runs.report.options import Report
from runs.report.statistics import seeds_needed
from runs.studies.plan import Study
from runs.studies.states import write_failure

FEW = 100  # resamples


def judged(directory: Path, margin: float = 0.05) -> dict[str, Contrast]:
    """Every usual contrast of a study by its arms, without a page."""
    evidence = load(directory)
    found = contrasts(evidence, pairs(evidence, ()), endpoints(evidence)[0], margin, FEW)
    return {f"{each.pair.first.name}:{each.pair.second.name}": each for each in found}


# Endpoints


def test_area_under_curve_by_hand() -> None:
    # From 100 to 300: trapezoids (0 + 10) / 2 · 100 and (10 + 40) / 2 · 100, over 200 steps.
    assert area_under_curve({"curve": [[100, 0], [200, 10], [300, 40]]}) == (500 + 2500) / 200
    # Evaluations at other distances count for as long as they last.
    assert area_under_curve({"curve": [[0, 0], [10, 10], [40, 10]]}) == (50 + 300) / 40
    assert area_under_curve({"curve": [[100, 7]]}) == 7
    # From 150 on, where it is 5: (5 + 10) / 2 · 50 and (10 + 40) / 2 · 100, over 150 steps.
    assert area_under_curve({"curve": [[100, 0], [200, 10], [300, 40]]}, 150) == (375 + 2500) / 150


def test_final_return_is_that_of_ten_evaluations() -> None:
    assert final_return({"curve": [[step, step] for step in range(1, 13)]}) == np.mean(range(3, 13))
    assert final_return({"curve": [[1, 4], [2, 6]]}) == 5


def test_each_endpoint_reads_its_own_number(tmp_path: Path) -> None:
    write_study(tmp_path, {"set-0.9": [1.0]})
    (path,) = tmp_path.rglob("result.json")
    written = json.loads(path.read_text())
    written["curve"] = [[100 * number, float(number)] for number in range(1, 13)]
    written["eval"]["mean_return"], written["final"]["mean_return"] = 50.0, 99.0
    write_json(path, written)
    evidence = load(tmp_path)
    assert {each.name: each.values(evidence.runs).tolist() for each in endpoints(evidence)} == {
        "auc": [6.5], "final": [7.5], "fresh": [99.0],
    }  # fmt: skip


def test_each_endpoint_of_a_learner_reads_its_own_number(tmp_path: Path) -> None:
    (path,) = write_learners(tmp_path / "study", {"naive": [0.5]}).rglob("result.json")
    written = json.loads(path.read_text())
    for number, (scenario, name) in enumerate(product(("class_il", "task_il"), ("acc", "forgetting"))):
        written[scenario] = {**written[scenario], name: {"mean": number / 10, "per_seed": [number / 10]}}
    write_json(path, written)
    evidence = load(tmp_path / "study")
    assert {each.name: each.values(evidence.runs).tolist() for each in endpoints(evidence)} == {
        "class_acc": [0.0], "class_forgetting": [0.1], "task_acc": [0.2], "task_forgetting": [0.3],
    }  # fmt: skip


# Verdicts


def test_verdicts_on_known_truths(tmp_path: Path) -> None:
    levels = {
        "dense": spread(100, 1, 5), "static-0.9": spread(100, 1, 5), "set-0.9": spread(150, 1, 5),
        "rigl-0.9": spread(60, 1, 5),
    }  # fmt: skip
    found = judged(write_study(tmp_path, levels))
    words = {name: each.word for name, each in found.items()}
    assert words == {
        "set-0.9:static-0.9": "yes", "set-0.9:dense": "yes", "rigl-0.9:static-0.9": "no", "rigl-0.9:dense": "no",
        "static-0.9:dense": "no",
    }  # fmt: skip
    assert found["rigl-0.9:static-0.9"].why == "it does worse"
    assert found["static-0.9:dense"].why == "no difference of 5 % or more"
    better = found["set-0.9:static-0.9"]
    assert better.difference.value == pytest.approx(50)
    assert better.relative[0] == pytest.approx(0.5)
    assert better.reference == pytest.approx(100)
    assert better.improvement.value == 1


def test_a_rule_that_plans_its_growth_searches_too(tmp_path: Path) -> None:
    found = judged(write_study(tmp_path, {name: [1.0, 2.0] for name in ("static-0.9", "srigl-0.9")}))
    assert [*found] == ["srigl-0.9:static-0.9"]


def test_noise_is_undecided_and_says_how_many_seeds(tmp_path: Path) -> None:
    found = judged(write_study(tmp_path, {"static-0.9": spread(100, 20, 5), "set-0.9": spread(110, 20, 5)}))
    (each,) = found.values()
    primary = endpoints(load(tmp_path))[0]
    assert each.word == "undecided"
    # Half a deviation apart: 64 an arm for 80 % power at 5 %; a margin of 5 against a difference of 10 is no way out.
    assert each.why == "about 64 seeds an arm needed"
    assert sentence(each, primary) == (
        "Does set-0.9 do better than static-0.9? Undecided, about 64 seeds an arm needed: mean return over training "
        "+10 % (95 % interval -19 … +39 % by Welch, n = 5 and 5, p = 0.45 after Holm)"
    )


def test_holm_withholds_what_one_contrast_alone_would_get(tmp_path: Path) -> None:
    pair = {"static-0.9": spread(100, 10, 5), "set-0.9": spread(118, 10, 5)}
    (alone,) = judged(write_study(tmp_path / "one", pair)).values()
    assert alone.word == "yes"
    assert alone.difference.p == pytest.approx(alone.p_holm)
    many = {"dense": spread(117, 10, 5), "small-dense-0.9": spread(117, 10, 5), **pair, "rigl-0.9": spread(117, 10, 5)}
    among = judged(write_study(tmp_path / "many", many))
    assert among["set-0.9:static-0.9"].word == "undecided"
    assert among["set-0.9:static-0.9"].difference.p == alone.difference.p
    assert among["set-0.9:static-0.9"].p_holm == pytest.approx(alone.difference.p * len(among))
    first, second = (np.array(pair[name]) for name in ("set-0.9", "static-0.9"))
    one, all_of_them = (seeds_needed(first, second, 0.05 * second.mean(), tests) for tests in (1, len(among)))
    assert one is not None
    assert all_of_them is not None
    assert one < all_of_them
    assert among["set-0.9:static-0.9"].why == f"about {all_of_them} seeds an arm needed"


def test_a_further_arm_moves_no_interval(tmp_path: Path) -> None:
    two = {"static-0.9": [80.0, 105, 91], "set-0.9": [100.0, 90, 131]}
    more = {"rigl-0.9": [70.0, 99, 120], **two}  # its contrast comes first
    shown = [judged(write_study(tmp_path / str(len(each)), each))["set-0.9:static-0.9"] for each in (two, more)]
    assert shown[0].improvement == shown[1].improvement
    assert shown[0].improvement.low is not None
    assert shown[0].p_permutation == shown[1].p_permutation


def test_the_same_course_evaluated_at_other_steps_is_no_difference(tmp_path: Path) -> None:
    write_study(tmp_path, {"static-0.9": [0.0] * 5, "set-0.9": [0.0] * 5})
    for path in tmp_path.rglob("result.json"):
        written, every = json.loads(path.read_text()), 400 if "set-0.9" in str(path) else 100
        noise = int(path.parent.name[-1])
        write_json(path, {**written, "curve": [[step, step + noise] for step in range(every, 1201, every)]})
    (each,) = judged(tmp_path).values()
    assert each.difference.value == 0
    assert load(tmp_path).problems == [
        f"unequal evaluations on {ENV}: static-0.9 12, set-0.9 3; means over training begin at step 400"
    ]


def test_a_difference_that_does_not_matter_is_a_no_however_sure(tmp_path: Path) -> None:
    found = judged(write_study(tmp_path, {"static-0.9": spread(1000, 0.1, 5), "set-0.9": spread(1002, 0.1, 5)}))
    (each,) = found.values()
    assert (each.word, each.why) == ("no", "no difference of 5 % or more")
    assert "mean return over training +0.2 %" in sentence(each, endpoints(load(tmp_path))[0])


def test_without_spread_nothing_is_decided(tmp_path: Path) -> None:
    (each,) = judged(write_study(tmp_path, {"static-0.9": [100.0] * 3, "set-0.9": [150.0] * 3})).values()
    assert (each.word, each.why) == (
        "undecided",
        "the runs of neither arm differ, so that nothing tells how sure this is",
    )


def test_runs_that_failed_are_said_with_the_verdict(tmp_path: Path) -> None:
    write_study(tmp_path, {"static-0.9": spread(100, 1, 5), "set-0.9": spread(150, 1, 5)})
    cells = [cell for cell in load(tmp_path).study.cells() if cell.arm.name == "set-0.9" and cell.seed > 1]
    for cell in cells:
        shutil.rmtree(tmp_path / cell.path)
        write_failure(tmp_path, cell, f"the loss at {tmp_path.absolute()}/x is not finite", 1)
    (each,) = judged(tmp_path).values()
    evidence = load(tmp_path)
    assert sentence(each, endpoints(evidence)[0]).endswith("3 of set-0.9 failed and are left out)")
    assert f"failed: {cells[0].name}: the loss at x is not finite" in evidence.problems


def test_probability_of_improvement_over_environments_is_that_of_runs(tmp_path: Path) -> None:
    """In each environment 3 of 4 pairs of runs are won; means over environments, paired by seed, would say more."""
    groups = (ENV, "Reacher-v5")
    write_study(tmp_path, {"dense": [100.0, 100.0], "static-0.9": [80.0, 110.0], "set-0.9": [100.0, 120.0]}, groups)
    found = judged(tmp_path)
    assert found["set-0.9:static-0.9"].improvement.value == 0.75


@pytest.mark.parametrize(
    ("runs", "word", "why"),
    [
        (1, "undecided", "one run says nothing about spread; at least three of each are needed"),
        (2, "undecided", "two runs say next to nothing about spread; at least three of each are needed"),
        (3, "yes", ""),
    ],
)
def test_a_verdict_needs_three_runs(runs: int, word: str, why: str, tmp_path: Path) -> None:
    levels = {"static-0.9": [100.0, 101, 102], "set-0.9": [200.0, 201, 202]}
    (each,) = judged(write_study(tmp_path, {name: level[:runs] for name, level in levels.items()})).values()
    assert (each.word, each.why) == (word, why)


def test_of_unequal_arms_the_smaller_decides(tmp_path: Path) -> None:
    levels = {"static-0.9": [100.0, 101], "set-0.9": [200.0, 201, 202, 203, 204]}
    (each,) = judged(write_study(tmp_path, levels)).values()
    assert each.why.startswith("two runs say next to nothing")


def test_controls_of_each_method(tmp_path: Path) -> None:
    names = [
        "dense", "small-dense-0.9", "small-dense-0.5", "static-0.9", "static-0.5", "set-0.9", "reset-in-place-0.9",
        "final-topology-0.9",
    ]  # fmt: skip
    found = judged(write_study(tmp_path, {name: [1.0, 2.0] for name in names}))
    assert [*found] == [
        "set-0.9:static-0.9", "set-0.9:reset-in-place-0.9", "set-0.9:final-topology-0.9", "set-0.9:small-dense-0.9",
        "set-0.9:dense", "static-0.9:small-dense-0.9", "static-0.9:dense", "static-0.5:small-dense-0.5",
        "static-0.5:dense",
    ]  # fmt: skip


def test_other_networks_are_no_controls(tmp_path: Path) -> None:
    write_study(tmp_path, {"static-0.9": [1.0, 2.0], "set-0.9": [1.0, 2.0]})
    arms = [arm("static-0.9", [ENV], norm="layer"), arm("set-0.9", [ENV])]
    Study("agents", [ENV], arms, [0, 1], [["x"]]).write(tmp_path, "")
    assert judged(tmp_path) == {}


def test_swapped_arms_swap_the_verdict(tmp_path: Path) -> None:
    levels = {"static-0.9": spread(100, 3, 4), "set-0.9": spread(120, 3, 4)}
    evidence = load(write_study(tmp_path, levels))
    both = contrasts(
        evidence, pairs(evidence, ["set-0.9:static-0.9", "static-0.9:set-0.9"]), endpoints(evidence)[0], 0.05, FEW
    )
    assert [each.word for each in both] == ["yes", "no"]
    assert both[0].difference.value == -both[1].difference.value
    assert both[0].improvement.value == 1 - both[1].improvement.value


def test_mean_over_environments_takes_the_seeds_that_each_has(tmp_path: Path) -> None:
    """Returns below zero count as much as others, and better is up in both: 1 + (-80 + 100) / 100 = 1.2."""
    groups = (ENV, "Reacher-v5")
    levels = {"dense": [100.0, 100.0], "static-0.9": [80.0, 120.0]}
    write_study(tmp_path, levels, groups)
    for path in (tmp_path / "Reacher-v5").rglob("result.json"):
        written = json.loads(path.read_text())
        write_json(path, {**written, "curve": [[step, -value] for step, value in written["curve"]]})
    evidence = load(tmp_path)
    name, mean = overall(evidence), endpoints(evidence)[0]
    assert name == "mean over 2 environments"
    assert values_of(evidence, mean, name, "dense").tolist() == [1, 1]
    assert values_of(evidence, mean, name, "static-0.9") == pytest.approx([(0.8 + 1.2) / 2, (1.2 + 0.8) / 2])
    assert values_of(evidence, mean, "Reacher-v5", "static-0.9").tolist() == [-80, -120]
    (tmp_path / "Reacher-v5/static-0.9/seed-0/result.json").unlink()
    assert values_of(load(tmp_path), mean, name, "static-0.9") == pytest.approx([(1.2 + 0.8) / 2])


def test_equal_costs_are_drawn_side_by_side() -> None:
    found = side_by_side([100.0, 100.0, 1000.0, 100.5])
    assert found[2] == 1000
    assert found[0] < found[1] < found[3]
    assert all(abs(each / 100 - 1) < 0.1 for each in (found[0], found[1], found[3]))
    assert side_by_side([0.0, 0.0]) == [0, 0]


def test_an_environment_whose_dense_mean_is_nothing_is_said(tmp_path: Path) -> None:
    """Dense at 2 where runs go from 0 to 100: 80 is 40 times it, and outweighs what happens at 100 against 80."""
    groups = (ENV, "Reacher-v5")
    write_study(tmp_path, {"dense": [100.0, 100.0], "static-0.9": [80.0, 120.0]}, groups)
    levels = {"dense": [0.0, 4.0], "static-0.9": [80.0, 100.0]}
    for name, each in levels.items():
        for seed, level in enumerate(each):
            write_json(tmp_path / "Reacher-v5" / name / f"seed-{seed}/result.json", result(name, level, seed))
    evidence = load(tmp_path)
    assert small_bases(evidence, endpoints(evidence)[0]) == [
        "small divisor on Reacher-v5: the mean of dense is 2.0, where runs have 0 to 100; "
        "in means over environments it outweighs the others"
    ]
    alone = load(write_study(tmp_path / "alone", {"dense": [0.0, 4.0], "static-0.9": [80.0, 100.0]}))
    assert small_bases(alone, endpoints(alone)[0]) == []


@pytest.mark.end_to_end
def test_a_look_before_the_plan_is_done_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path, {"static-0.9": [100.0, 101, 102, 103], "set-0.9": [200.0, 201, 202, 203]})
    for looks, expected in ((1, False), (2, True)):
        findings = make_report(Report(study, resamples=FEW))
        say(findings)
        assert ("Runs are still to come: this is a look in between." in capsys.readouterr().out) == expected
        assert ("Runs are still to come: this is" in findings.path.read_text()) == expected
        if looks == 1:
            shutil.rmtree(study / ENV / "set-0.9" / "seed-3")
