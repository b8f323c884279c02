"""`train`: what is in a run directory, and that a seed says everything."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import STEPS, assert_equal_runs, checkpoint, flags, main, metrics_of, result_of, train

from runs.scoring import Scorer
from sparse_core import PRESETS


def test_a_run_directory(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "checkpoints",
        "config.json",
        "lock",
        "metrics.jsonl",
        "result.json",
        "tensorboard",
    }
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {
        checkpoint(finished, 600).name,
        checkpoint(finished, 900).name,
    }
    assert (finished / "lock").read_text() == ""


def test_the_result(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    expected = {"algo": "td3", "env": "Hopper-v5", "topology": "set", "preset": "td3", "seed": 0, "steps": STEPS}
    assert expected.items() <= result.items()
    assert result["updates"] == 800
    assert result["topology_changes"] == 16
    # Actor 11-16-16-3, critics 14-16-16-1.
    actor, critic = 11 * 16 + 16 * 16 + 16 * 3, 14 * 16 + 16 * 16 + 16
    kept = {"actor": actor - round(0.6 * actor), "critic.qf0": critic - round(0.6 * critic)}
    kept["critic.qf1"] = kept["critic.qf0"]
    for network, count in kept.items():
        assert sum(nnz for name, nnz in result["nnz"].items() if name.startswith(network)) == count
    assert result["nnz"]["actor.mu.4"] == 16 * 3  # kept dense
    assert result["nnz_total"] == sum(kept.values())
    assert result["sparsity_target"] == 0.6
    assert result["sparsity"] == 1 - sum(kept.values()) / (actor + 2 * critic)
    assert result["eval"].keys() == {"mean_return", "std_return", "episodes"}
    assert [step for step, _ in result["curve"]] == [400, 800, STEPS]
    assert result["curve"][-1][1] == result["eval"]["mean_return"]
    actor_flops, critic_flops = 2 * kept["actor"], 2 * kept["critic.qf0"]
    update = actor_flops + 2 * critic_flops + 2 * (3 * critic_flops - 2 * result["nnz"]["critic.qf0.0"])
    policy = 3 * actor_flops - 2 * result["nnz"]["actor.mu.0"] + 2 * critic_flops
    assert result["train_flops"] == 8 * (800 * update + 400 * policy) + 800 * actor_flops
    assert result["bytes"]["gradients"] * 2 == result["bytes"]["parameters"]  # targets have none
    assert result["bytes"]["total"] == sum(size for name, size in result["bytes"].items() if name != "total")


def test_what_may_differ_is_measured(finished: Path) -> None:
    measured = json.loads((finished / "result.json").read_text())["measured"]
    assert measured.keys() >= {"seconds", "steps_per_second", "finished", "machine", "directory"}
    assert measured["seconds"] > 0
    assert measured["steps_per_second"] == pytest.approx(STEPS / measured["seconds"])


def test_the_config(finished: Path) -> None:
    config = json.loads((finished / "config.json").read_text())
    assert (config["format"], config["version"]) == ("sparse-agents-run", 1)
    assert config["settings"]["hidden"] == [16, 16]
    assert config["settings"]["distribution"] == "erk"  # a default is said as well
    assert {"versions", "commit", "machine", "command", "started"} <= config.keys()


def test_tensorboard(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    points = [[event.step, event.value] for event in events.Scalars("eval/mean_return")]
    curve = result_of(finished)["curve"]
    assert [step for step, _ in points] == [step for step, _ in curve]
    assert [value for _, value in points] == pytest.approx([value for _, value in curve])


def test_the_metrics(finished: Path) -> None:
    lines = metrics_of(finished)
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    changes = [line for line in lines if line["kind"] == "topology"]
    assert [line["change"] for line in changes] == list(range(1, 17))
    assert [line["step"] for line in changes] == list(range(150, STEPS + 1, 50))
    assert all(count > 0 for line in changes for count in line["replaced"].values())
    evaluations = [line for line in lines if line["kind"] == "eval"]
    assert [[line["step"], line["mean_return"]] for line in evaluations] == result_of(finished)["curve"]
    assert all(len(line["returns"]) == line["episodes"] == 1 for line in evaluations)


@pytest.mark.end_to_end
def test_two_identical_runs_and_another_seed(finished: Path, tmp_path: Path) -> None:
    again = train(tmp_path / "again")
    assert_equal_runs(finished, again)
    other = train(tmp_path / "other", seed=1, steps=200)
    assert other
    first = [line for line in metrics_of(finished) if line["kind"] == "topology" and line["step"] <= 200]
    assert [line for line in metrics_of(other) if line["kind"] == "topology"] != first
    same = train(tmp_path / "same", seed=0, steps=200)
    assert [line for line in metrics_of(same) if line["kind"] == "topology"] == first
    assert result_of(other)["eval"] != result_of(same)["eval"]


@pytest.mark.end_to_end
def test_evaluation_does_not_touch_training(finished: Path, tmp_path: Path) -> None:
    often = train(tmp_path / "often", eval_every=300, eval_episodes=2)
    kinds = ("topology", "episode")
    assert [line for line in metrics_of(often) if line["kind"] in kinds] == [
        line for line in metrics_of(finished) if line["kind"] in kinds
    ]


@pytest.mark.end_to_end
def test_a_policy_that_stays_scores_the_same_at_every_evaluation(tmp_path: Path) -> None:
    run = train(tmp_path / "run", steps=60, learning_starts=1000, eval_every=20, eval_episodes=3)
    scores = [line["returns"] for line in metrics_of(run) if line["kind"] == "eval"]
    assert len(scores) == 3
    assert scores[0] == scores[1] == scores[2]
    assert len(set(scores[0])) == 3


# One of each kind; the others take the same paths and are slow ones. tests/agents/test_methods.py has them all.
KINDS = {"dense", "static", "final-topology", "set", "rigl", "granet", "deepr", "dsr"}
EACH = [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in sorted(PRESETS)]


@pytest.mark.end_to_end
@pytest.mark.parametrize("topology", EACH)
def test_every_topology(topology: str, finished: Path, tmp_path: Path) -> None:
    sparsity = None if topology == "dense" else PRESETS[topology].own_sparsity or 0.6
    source = finished if PRESETS[topology].given else None
    run = train(tmp_path / "run", topology=topology, sparsity=sparsity, steps=400, stop=1.0, topology_from=source)
    result = result_of(run)
    preset = PRESETS[topology]
    due = 6 if preset.changes else 0
    # A drop fraction that decays is zero at its end, where nothing moves any more.
    expected = due if preset.schedule == "constant" else due - 1
    assert result["topology_changes"] == expected or (not preset.keeps_count and 0 < result["topology_changes"] <= 300)
    if preset.exact and preset.own_sparsity is None:
        assert math.isclose(result["sparsity"], sparsity or 0.0, abs_tol=1e-3)
    assert result["sparsity_target"] == (sparsity or 0.0)


def test_steps_that_end_before_learning_begins(tmp_path: Path) -> None:
    run = train(tmp_path / "run", steps=30)
    result = result_of(run)
    assert (result["updates"], result["topology_changes"], result["train_flops"]) == (0, 0, 0)
    assert [step for step, _ in result["curve"]] == [30]


def test_the_default_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = flags(Path(), steps=5)
    assert main(*arguments[:2], *arguments[4:]) == 0
    assert (tmp_path / "results" / "Hopper-v5" / "set-0.6-seed0" / "result.json").exists()


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "run", steps=30, eval_every=20)
    output = capsys.readouterr()
    note, *lines = output.err.splitlines()
    assert note.startswith(
        "note: with 30 steps, of which the first 100 are random, nothing is learned; lower --learning-"
    )
    assert [line.split(":")[0].split() for line in lines] == [["step", "20"], ["step", "30"]]
    assert output.out.startswith("30 steps, 588 connections (sparsity 0.6005), return ")
    assert output.out.count("\n") == 1


@pytest.mark.parametrize("algo", ["td3", "sac"])
@pytest.mark.parametrize("topology", ["dense", "set"])
def test_training_that_diverges(algo: str, topology: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sparsity = None if topology == "dense" else 0.6
    settings = {"learning_rate": 1e30, "topology": topology, "sparsity": sparsity}
    assert main(*flags(tmp_path / "run", algo, **settings)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("sparse-agents: ")
    assert "training has diverged" in error


@pytest.mark.end_to_end
def test_evaluations_are_not_in_the_seconds_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = Scorer.score

    def slow(self: Scorer, model: Any, step: int = 0) -> Any:
        until = time.process_time() + 1  # busy, for both clocks
        while time.process_time() < until:
            pass
        return scored(self, model, step)

    monkeypatch.setattr(Scorer, "score", slow)
    directory = train(tmp_path / "run", steps=30, eval_every=10)  # of random actions: some hundredths of a second
    measured = json.loads((directory / "result.json").read_text())["measured"]
    assert measured["evaluation_seconds"] > 3
    assert max(measured["seconds"], measured["processor_seconds"]) < 1
    assert max(measured["curve_seconds"][-1][1], measured["curve_processor_seconds"][-1][1]) < 1
