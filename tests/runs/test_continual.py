"""`sparse-agents continual`: what a run leaves behind, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_continual import EPOCHS, TASKS, flags, learn, result_of, steps_of
from tiny_runs import ROOT, main, start

from runs.continual.progress import View
from runs.continual.records import Record
from runs.continual.results import SCORES, Facts, _scores, read_reference
from runs.continual.settings import Settings
from runs.failure import UserError
from runs.options import Continual

pytestmark = pytest.mark.end_to_end

CLASSES = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of SpaceNet; only to be read."""
    return learn(tmp_path_factory.mktemp("continual") / "run")


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learn(tmp_path_factory.mktemp("joint") / "run", strategy="joint")


def test_the_result(finished: Path) -> None:
    result = result_of(finished)
    assert (result["format"], result["version"]) == ("sparse-agents-continual-result", 1)
    assert (result["strategy"], result["benchmark"], result["scenario"]) == ("spacenet", "split-digits", "class-il")
    assert (result["seeds"], result["task_classes"], result["joint"]) == ([0, 1], CLASSES, False)
    assert result["settings"]["hidden"] == [60, 60]
    assert not {"data_root", "joint", "checkpoint_every"} & set(result["settings"])
    for kind in ("class_il", "task_il"):
        for stream in ("R", "R_validation"):
            assert np.shape(result[stream][kind]) == (2, TASKS, TASKS)
        r = np.array(result["R"][kind])
        assert result[kind]["acc"]["per_seed"] == pytest.approx(r[:, -1].mean(1))
        assert result[kind]["acc"]["mean"] == pytest.approx(r[:, -1].mean())
        diagonal = np.diagonal(r, axis1=1, axis2=2)
        assert result[kind]["la"]["per_seed"] == pytest.approx(diagonal.mean(1))
        assert result[kind]["bwt"]["per_seed"] == pytest.approx((r[:, -1] - diagonal)[:, :-1].mean(1))
        assert result[kind]["fwt"]["mean"] is None
        assert result[kind]["intransigence"]["mean"] is None
        assert result["final"][kind] == r[:, -1].tolist()
    assert all(result[name] == result["class_il"][name] for name in SCORES)
    assert set(SCORES) > {"acc", "bwt", "forgetting", "fwt", "la"}
    # A class is only ever said where it has been learned, and knowing the task can only help.
    assert np.all(np.triu(np.array(result["R"]["class_il"]), 1) == 0)
    assert np.all(np.array(result["R"]["task_il"]) >= np.array(result["R"]["class_il"]))


def test_what_it_costs(finished: Path) -> None:
    result = result_of(finished)
    for name in ("nnz", "neurons", "flops", "capacity", "bytes"):
        assert [len(tasks) for tasks in result[name]] == [TASKS, TASKS]
    for seed in range(2):
        assert result["nnz"][seed] == sorted(result["nnz"][seed])
        for task in range(TASKS):
            sizes = result["bytes"][seed][task]
            parts = ("parameters", "indices", "statistics", "memory")
            assert sizes["total"] == sum(sizes[name] for name in parts)
            table = result["capacity"][seed][task]
            assert sum(row["connections"] for row in table) == result["nnz"][seed][task]
            assert all(len(row["by_task"]) == task + 1 for row in table)


def test_the_run_directory(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "config.json", "lock", "result.json", "R.png", "accuracy.png", "seed-0", "seed-1",
    }  # fmt: skip
    config = json.loads((finished / "config.json").read_text())
    assert config["format"] == "sparse-agents-continual"
    assert config["settings"]["seeds"] == [0, 1]
    assert {"avalanche-lib", "torch", "scikit-learn"} <= set(config["versions"])
    assert {"machine", "commit", "command", "started"} <= set(config)
    assert len(json.loads((finished / "result.json").read_text())["measured"]["seconds"]) == 2
    assert steps_of(finished, 0) == [TASKS * EPOCHS - 1, TASKS * EPOCHS]
    assert {path.suffix for path in finished.rglob("*") if path.is_file()} == {"", ".json", ".png", ".safetensors"}
    for picture in ("R.png", "accuracy.png"):
        assert (finished / picture).read_bytes().startswith(b"\x89PNG")


def test_the_same_seeds_give_the_same_result(finished: Path, tmp_path: Path) -> None:
    # However often it is stored, and whatever other seeds come before.
    rare = learn(tmp_path / "rare", checkpoint_every=1000)
    assert result_of(rare) == result_of(finished)
    assert steps_of(rare, 0) == [(TASKS - 1) * EPOCHS, TASKS * EPOCHS]
    alone = result_of(learn(tmp_path / "alone", seeds="1,"))
    assert alone["seeds"] == [1]
    assert alone["R"]["class_il"][0] == result_of(finished)["R"]["class_il"][1]
    assert alone["acc"]["ci95"] is None


def test_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = learn(tmp_path / "run", seeds=1, epochs=1)
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert len(lines) == TASKS
    assert lines[0].startswith("seed 0, task 1 of 5: task not known ")
    assert output.out.startswith("spacenet on split-digits, seed 0\npercent ")
    assert output.out.splitlines()[-1].endswith(f" s a seed: {directory}")
    assert main("resume", directory) == 0
    assert capsys.readouterr().out == f"{directory} is finished: seed 0; see result.json there\n"


def test_strict_isolation_forgets_nothing_where_the_task_is_known(tmp_path: Path) -> None:
    result = result_of(learn(tmp_path / "run", isolation="strict", seeds=1))
    assert result["scenario"] == "task-il"
    assert result["acc"] == result["task_il"]["acc"]
    assert result["bwt"]["per_seed"] == [0.0]
    assert result["forgetting"]["per_seed"] == [0.0]


def test_a_learner_that_must_know_the_task(tmp_path: Path) -> None:
    result = result_of(learn(tmp_path / "run", strategy="packnet", seeds=1))
    assert result["scenario"] == "task-il"
    assert result["R"]["class_il"] is result["R_validation"]["class_il"] is result["final"]["class_il"] is None
    assert result["class_il"]["acc"] == {"mean": None, "ci95": None, "per_seed": None}
    assert result["acc"]["mean"] > 0.5


def test_a_learner_of_all_tasks_together(joint: Path) -> None:
    result = result_of(joint)
    assert result["joint"]
    assert result["R"] == {"class_il": None, "task_il": None}
    assert result["acc"]["mean"] == pytest.approx(np.mean(result["final"]["class_il"]))
    assert result["bwt"]["mean"] is result["la"]["mean"] is None
    assert not (joint / "accuracy.png").exists()


def test_how_much_less_well_than_together(joint: Path, tmp_path: Path) -> None:
    result = result_of(learn(tmp_path / "run", joint=joint, seeds=1))
    together = np.mean(result_of(joint)["final"]["task_il"])
    assert result["task_il"]["intransigence"]["mean"] == pytest.approx(together - result["task_il"]["la"]["mean"])


def test_statistics_have_no_epochs_to_speak_of(tmp_path: Path) -> None:
    directory = learn(tmp_path / "run", strategy="ncm", seeds=1, epochs=None, learning_rate=None)
    result = result_of(directory)
    assert result["acc"]["mean"] > 0.5
    assert result["bytes"][0][-1]["statistics"] > 0


def resolve(**changes: Any) -> Settings:
    return Settings.resolve(Continual(**changes))


@pytest.mark.parametrize(
    ("text", "seeds"), [("1", [0]), ("3", [0, 1, 2]), ("3,7", [3, 7]), ("7,", [7]), (" 4 , 2", [4, 2])]
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert resolve(seeds=text).seeds == seeds


def test_settings_come_back_from_json() -> None:
    settings = resolve(data_root=Path("data"), tasks=2, learning_rate=0.5)
    written = json.loads(
        json.dumps({"format": "sparse-agents-continual", "version": 1, "settings": settings.as_dict()})
    )
    assert Settings.from_config(written, "here") == settings
    assert settings.data_root == str(Path("data").absolute())
    assert (settings.backend, settings.hidden) == ("csr", [400, 400])


BAD: list[tuple[dict[str, Any], str]] = [
    (dict(strategy="spacent"), "no strategy called 'spacent'; did you mean 'spacenet"),
    (dict(benchmark="split-mnits"), "no benchmark called 'split-mnits'; did you mean 'split-mnist'?"),
    (dict(tasks=3), "10 classes do not divide into 3 equal tasks; these numbers fit: 1, 2, 5, 10"),
    (dict(tasks=0), "`tasks` must be at least 1, got 0"),
    (dict(class_order="1,2"), "a class order lists each label from 0 to 9 once, got 2 labels: 1, 2"),
    (dict(class_order="-1"), "a class order is a whole number from 0"),
    (dict(class_order="up"), "or labels as in 3,1,4,…; got 'up'"),
    (dict(isolation="strickt"), "strickt"),
    (dict(head="ful"), "no head called 'ful'; did you mean 'full'?"),
    (dict(policy="shrnk"), "`policy` must be one of error, shrink, reclaim, got 'shrnk'"),
    (dict(optimizer="rmsprop"), "`optimizer` must be one of sgd, momentum, adam, adamw, got 'rmsprop'"),
    (dict(strategy="naive", memory=5), "memory"),
    (dict(seeds=0), "`seeds` must be from 1 to 10000 runs"),
    (dict(seeds="3,3"), "`seeds` must be different whole numbers"),
    (dict(seeds="one"), "`seeds` must be a number of seeds such as 5, or seeds such as 3,7 or 3, — got 'one'"),
    (dict(seeds="1,,2"), "got '1,,2'"),
    (dict(hidden="60,0"), "`hidden` must be a comma list of positive widths such as 400,400, got '60,0'"),
    (dict(hidden="wide"), "got 'wide'"),
    (dict(hidden="none"), "got 'none'"),
    (dict(channels="32,-1"), "`channels` must be a comma list of positive widths such as 32,64, got '32,-1'"),
    (dict(strategy="naive", channels="4"), "channels"),
    (dict(epochs=0), "`epochs` must be at least 1, got 0"),
    (dict(batch_size=-1), "`batch_size` must be at least 1, got -1"),
    (dict(learning_rate="nan"), "`learning_rate` must be a finite number ≥ 0, got nan"),
    (dict(memory=-1), "`memory` must be at least 0, got -1"),
    (dict(checkpoint_every=-1), "`checkpoint_every` must be a finite number of seconds ≥ 0, got -1"),
    (dict(threads=0), "`threads` must be at least 1, got 0"),
    (dict(device="gpu"), "`device` must be cpu, cuda or auto, got 'gpu'"),
    (dict(backend="auto"), "`backend` auto is not for continual runs; choose one of gemm"),
    (dict(backend="csrr"), "no backend called 'csrr'; did you mean 'csr'?"),
    (dict(joint="nowhere"), "no result of a joint run at "),
]


@pytest.mark.parametrize(
    ("changes", "message"), BAD, ids=[" ".join(f"{name}={value}" for name, value in case.items()) for case, _ in BAD]
)
def test_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(*flags(tmp_path / "run", **changes)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    if output.err.startswith("sparse-agents: "):
        assert output.err.count("\n") == 1
    else:
        assert "For full helptext" in output.err  # the parser's own, in a box
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-labels-idx1-ubyte").write_bytes(b"")
    assert main(*flags(tmp_path / "run", benchmark="split-mnist", data_root=tmp_path / "data")) == 2
    line = capsys.readouterr().err
    assert line.startswith("sparse-agents: wanted train-images-idx3-ubyte, t10k-images-idx3-ubyte")
    assert line.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_directory_that_is_not_empty(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(*flags(finished)) == 2
    assert f"continue the run there with `sparse-agents resume {finished}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not the result of a strategy that learns all tasks together"),
        ({"joint": False}, "is not the result of a strategy that learns all tasks together"),
        ({"task_classes": [[0, 1]]}, "is of other tasks than this run"),
        ({"benchmark": "split-mnist"}, "is of other tasks than this run"),
        ({"benchmark_scenario": "domain-il", "settings": {"class_order": "5"}}, "is of other tasks than this run"),
        ({"final": None}, "is damaged (no final accuracies)"),
        ({"final": {"class_il": [[1.0]], "task_il": None}}, "is damaged (no final accuracies)"),
        ({"final": {"class_il": [], "task_il": None}}, "is damaged (no final accuracies)"),
        ({"final": {"class_il": [[7.0] * 5], "task_il": None}}, "is damaged (no final accuracies)"),
    ],
)
def test_a_joint_run_of_something_else(change: dict[str, Any], message: str, joint: Path, tmp_path: Path) -> None:
    written = json.loads((joint / "result.json").read_text()) | change
    (tmp_path / "result.json").write_text(json.dumps(written))
    with pytest.raises(UserError) as caught:
        read_reference(resolve(joint=tmp_path), CLASSES)
    assert message in str(caught.value)


def test_forward_transfer_where_tasks_share_their_classes() -> None:
    facts = Facts(scenario="class-il", joint=False)
    scores = _scores([[[0.9, 0.5], [0.8, 0.9]]], facts, [[0.1, 0.1]], None)
    assert scores["fwt"]["per_seed"] == [pytest.approx(0.4)]


@pytest.mark.parametrize(("width", "tasks", "both"), [(100, 5, True), (60, 10, True), (60, 25, False)])
def test_the_matrix_fits_the_terminal(width: int, tasks: int, both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[0.5] * tasks] * 3
    with View("spacenet", [(0, 1)] * tasks, 1) as view:
        view.console.width, view.console.height = width, 24
        view.begin(Record(0, rows, rows), tasks)
        view.at(3)
        with view.console.capture() as captured:
            view.console.print(view._shown())
    lines = captured.get().splitlines()
    assert ("task known" in lines[0]) == both
    assert all(len(line) <= width for line in lines)
    assert any("seed 0, task 4 of " in line for line in lines)


def test_many_tasks_can_be_drawn(tmp_path: Path) -> None:
    from runs.continual.pictures import draw_accuracy, draw_matrices

    r = np.tril(np.full((2, 30, 30), 0.5)).tolist()
    result = {
        "strategy": "spacenet", "benchmark": "many", "seeds": [0, 1], "joint": False, "benchmark_scenario": "class-il",
        "task_classes": [[task] for task in range(30)],
        "R": {"class_il": None, "task_il": r}, "final": {"class_il": None, "task_il": [each[-1] for each in r]},
    }  # fmt: skip
    assert draw_matrices(tmp_path, result).stat().st_size > 10_000
    path = draw_accuracy(tmp_path, result)
    assert path is not None
    assert path.stat().st_size > 10_000


@pytest.mark.slow
def test_imports_nothing_of_the_agents(tmp_path: Path) -> None:
    script = f"""
import sys
from runs.command import main
assert main({flags(tmp_path / "run", seeds=1, epochs=1)!r}) == 0
print(*{{"stable_baselines3", "mujoco", "agents", "envs"}} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.slow
def test_in_a_real_process(tmp_path: Path) -> None:
    with start(*flags(tmp_path / "run", head="ful")) as process:
        output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (2, "")
    assert errors.startswith("sparse-agents: no head called 'ful'")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
