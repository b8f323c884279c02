"""Whole studies by real worker processes: kept, continued, listed when they fail, and the same after any kill."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import main, start, train, wait_for
from tiny_studies import compare, flags, plan_of, results

from runs.lock import RunLock

RUN = "Hopper-v5/set-0.6/seed-1"


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of five arms and two seeds; only to be read."""
    out = tmp_path_factory.mktemp("study") / "study"
    assert compare(out, "--small-dense", topologies="dense,set,final-topology", final_episodes=2) == 0
    return out


@pytest.mark.end_to_end
def test_study_is_ordinary_runs(study: Path, tmp_path: Path) -> None:
    assert {*results(study)} == {
        f"Hopper-v5/{arm}/seed-{seed}"
        for arm in ("dense", "small-dense-0.6", "set-0.6", "final-topology-0.6")
        for seed in (0, 1)
    }
    plan = plan_of(study)
    assert plan["arms"][2]["name"] == "set-0.6"
    # A run of a study is the run that `train` makes with the same settings, but for the replay rows.
    alone = train(tmp_path / "alone", seed=1, final_episodes=2, backend=_backends(study / RUN))
    assert results(study)[RUN] == results(tmp_path)["alone"]
    assert not [*(study / RUN).rglob("replay*.safetensors")]
    assert [*alone.rglob("replay*.safetensors")]


@pytest.mark.end_to_end
def test_the_plan_keeps_the_command_as_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = flags(tmp_path / "study", topologies="static", seeds="1", steps=3, workers=1)
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/sparse-agents", *typed])
    assert main(*typed) == 0
    assert plan_of(tmp_path / "study")["commands"] == [["sparse-agents", *typed]]


def _backends(run: Path) -> str:
    (name,) = {*json.loads((run / "config.json").read_text())["backends"].values()}
    return str(name)


@pytest.mark.end_to_end
def test_final_topology_is_the_one_that_the_search_of_its_seed_ended_with(study: Path) -> None:
    found = results(study)
    for seed in (0, 1):
        searched, given = (found[f"Hopper-v5/{arm}-0.6/seed-{seed}"] for arm in ("set", "final-topology"))
        assert given["degrees"] == searched["degrees"]
        assert given["input_connections"] == searched["input_connections"]
        assert searched["topology_changes"]
        assert not given["topology_changes"]
        assert given["curve"] != searched["curve"]
    assert found["Hopper-v5/set-0.6/seed-0"]["degrees"] != found["Hopper-v5/set-0.6/seed-1"]["degrees"]


@pytest.mark.end_to_end
def test_finished_study_is_kept_as_it_is(study: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.name != "lock"}
    assert compare(study, "--small-dense", topologies="dense,set,final-topology", final_episodes=2) == 0
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.name != "lock"} == before
    assert "8 finished of 8 runs" in capfd.readouterr().err


@pytest.mark.end_to_end
def test_study_with_other_settings_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(study, "--small-dense", topologies="dense,set,final-topology", final_episodes=2, batch_size=9) == 2
    assert "was begun with batch_size = 8, now it is 9; give the command it was begun with" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_resume_of_a_study_names_its_command(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("resume", study) == 2
    assert "is a study; the command that began it continues it:" in capsys.readouterr().err


@pytest.mark.end_to_end
def test_one_writer_a_study(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLock(study):
        assert compare(study, "--small-dense", topologies="dense,set,final-topology", final_episodes=2) == 2
    assert "another process" in capsys.readouterr().err


def test_directory_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("")
    assert compare(tmp_path) == 2
    assert "is no study and not empty (thesis.tex); choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.end_to_end
def test_a_plan_that_a_kill_left_half_written_is_in_nobodys_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    out.mkdir()
    (out / ".study.json.4242.tmp").write_text("{")
    assert compare(out, "--dry-run", topologies="static", seeds="1") == 0
    assert "1 runs" in capsys.readouterr().out


@pytest.mark.end_to_end
def test_a_finished_run_with_a_damaged_checkpoint_stops_nobody(
    study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "study"
    shutil.copytree(study, copy)
    (state,) = (copy / RUN / "checkpoints").glob("step-*/state.json")
    state.write_text("{")
    assert compare(copy, "--small-dense", topologies="dense,set,final-topology", final_episodes=2) == 0
    assert "8 finished of 8 runs" in capfd.readouterr().err


@pytest.mark.end_to_end
def test_a_damaged_result_is_no_finished_run(study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "study"
    shutil.copytree(study, copy)
    (copy / RUN / "result.json").write_text("{")
    assert compare(copy, "--small-dense", topologies="dense,set,final-topology", final_episodes=2) == 2
    assert f"Hopper-v5 set-0.6 seed 1: its result.json is damaged: put back a copy, or remove {copy / RUN}" in (
        capfd.readouterr().err
    )


@pytest.mark.slow
def test_a_run_that_somebody_else_stops_goes_on_and_its_topology_is_waited_for(
    undisturbed: Path, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    out = tmp_path / "study"
    parent = start(*flags(out, topologies="set,final-topology", seeds="1", workers=1))
    processes.append(parent)
    run = out / "Hopper-v5/set-0.6/seed-0"
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0, parent)
    (worker,) = workers_of(parent.pid)
    os.kill(worker, signal.SIGTERM)
    _, said = parent.communicate(timeout=120)
    assert (parent.returncode, "2 finished of 2 runs" in said) == (0, True), said
    given = results(undisturbed)
    assert results(out) == {name: given[name] for name in results(out)}


@pytest.mark.slow
def test_a_run_that_another_process_still_saves_is_waited_for(tmp_path: Path) -> None:
    out = tmp_path / "study"
    run = out / "Hopper-v5/static-0.6/seed-0"
    run.mkdir(parents=True)
    lock = RunLock(run)
    lock.__enter__()
    timer = threading.Timer(8, lambda: lock.__exit__(None, None, None))
    timer.start()
    assert compare(out, topologies="static", seeds="1", workers=1) == 0
    timer.join()
    assert len(results(out)) == 1


@pytest.mark.slow
def test_failed_runs_are_listed_and_tried_again_on_request(
    study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy, options = tmp_path / "study", dict(topologies="dense,set,final-topology", final_episodes=2)
    shutil.copytree(study, copy)
    whole = results(copy)
    shutil.rmtree(copy / RUN)
    (copy / RUN).write_text("in the way")
    shutil.rmtree(copy / "Hopper-v5/final-topology-0.6/seed-1")
    for _ in range(2):  # the second time it is only listed
        assert compare(copy, "--small-dense", **options) == 2
        said = capfd.readouterr().err
        assert f"failed (1×): Hopper-v5 set-0.6 seed 1: {copy / RUN} is a file; choose another --out" in said
        assert "it takes the last topology of Hopper-v5 set-0.6 seed 1, which is not there" in said
        assert "2 of 8 runs failed; mend it and try them again with --retry-failed" in said
    (copy / RUN).unlink()
    assert compare(copy, "--small-dense", "--retry-failed", **options) == 0
    assert results(copy) == whole
    assert not [*copy.rglob("*.failed.json")]


@pytest.mark.end_to_end
def test_dry_run_shows_the_grid_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path / "study", "--dry-run", topologies="dense,static") == 0
    said = capsys.readouterr().out
    assert "4 runs: 1 × 2 arms × 2 seeds" in said
    assert "about 1 minute with 2 workers" in said
    assert "MB of disk" in said
    assert [line.split()[:2] for line in said.splitlines()[1:3]] == [
        ["Hopper-v5", "dense"], ["Hopper-v5", "static-0.6"],
    ]  # fmt: skip
    assert not [*tmp_path.iterdir()]


@pytest.mark.end_to_end
def test_dry_run_of_learners_tells_time_and_disk_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    given = ["--strategies", "spacenet,ncm", "--benchmark", "split-digits", "--seeds", "3", "--hidden", "40,40"]
    assert main("compare", *given, "--workers", "2", "--dry-run", "--out", out) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:5] for line in lines[1:3]] == [
        ["split-digits", "spacenet", "spacenet", "5", "20"], ["split-digits", "ncm", "ncm", "5", "1"],
    ]  # fmt: skip
    assert all(float(line[6]) > 0.5 for line in lines[1:3])
    assert " ".join(lines[-1]).startswith("about 1 minute with 2 workers")
    assert lines[-1][-4:] == ["4", "MB", "of", "disk"]
    assert not out.exists()


# Kills. Twelve runs of real gradient steps, two workers.

TWELVE = {"topologies": "dense,static,set,rigl,reset-in-place,final-topology"}
FOUR = {"topologies": "set,final-topology"}


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "study"
    assert compare(out, **TWELVE) == 0
    assert len(results(out)) == 12
    return out


def workers_of(parent: int) -> list[int]:
    """Processes whose parent is `parent`."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def is_there(process: int) -> bool:
    """Whether a process lives; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    made: list[subprocess.Popen[str]] = []
    yield made
    for process in made:
        process.kill()
        process.communicate()


@pytest.mark.end_to_end
def test_killed_workers_and_a_killed_parent_change_no_result_of_four(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    assert compare(tmp_path / "undisturbed", **FOUR) == 0
    kill_and_continue(random.Random(0), tmp_path / "undisturbed", tmp_path / "study", FOUR, processes)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_workers_and_a_killed_parent_change_no_result(
    seed: int, undisturbed: Path, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    kill_and_continue(random.Random(seed), undisturbed, tmp_path / "study", TWELVE, processes)


def kill_and_continue(
    draws: random.Random, undisturbed: Path, out: Path, grid: dict[str, str], processes: list[subprocess.Popen[str]]
) -> None:
    parent = start(*flags(out, **grid))
    processes.append(parent)
    wait_for(lambda: any(out.rglob("metrics.jsonl")), parent)
    time.sleep(draws.uniform(0, 2))
    os.kill(draws.choice(workers_of(parent.pid)), signal.SIGKILL)
    time.sleep(draws.uniform(0.5, len(results(undisturbed)) / 2))
    orphans = workers_of(parent.pid)
    assert parent.poll() is None
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while any(is_there(orphan) for orphan in orphans):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.02)
    assert len(results(out)) < len(results(undisturbed))
    assert compare(out, **grid) == 0
    assert results(out) == results(undisturbed)
    for run in results(out):
        one, other = (json.loads((study / run / "result.json").read_text()) for study in (out, undisturbed))
        assert {name for name in one if one[name] != other[name]} <= {"measured"}


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_continues(
    undisturbed: Path, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    out = tmp_path / "study"
    parent = start(*flags(out, **TWELVE))
    processes.append(parent)
    wait_for(lambda: any(out.rglob("metrics.jsonl")), parent)
    time.sleep(1)
    parent.send_signal(signal.SIGINT)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert f"stopped; the same command continues the study in {out}" in said
    assert 0 < sum(1 for _ in out.rglob("config.json")) < 12
    assert compare(out, **TWELVE) == 0
    assert results(out) == results(undisturbed)


@pytest.mark.slow
def test_worker_that_dies_again_and_again_is_a_failed_run(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    out = tmp_path / "study"
    parent = start(*flags(out, topologies="static", seeds="1", steps=200_000, workers=1))
    processes.append(parent)
    run = out / "Hopper-v5/static-0.6/seed-0"
    killed: set[int] = set()
    for _ in range(2):
        wait_for(lambda: bool({*workers_of(parent.pid)} - killed) and (run / "metrics.jsonl").exists(), parent)
        (worker,) = {*workers_of(parent.pid)} - killed
        time.sleep(4)
        os.kill(worker, signal.SIGKILL)
        killed.add(worker)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == 2
    assert "it goes on from its last checkpoint" in said
    assert "its process was killed (SIGKILL, perhaps for want of memory), 2 times" in said


@pytest.mark.slow
def test_cluster_does_the_same(undisturbed: Path, tmp_path: Path) -> None:
    from distributed import LocalCluster

    out = tmp_path / "study"
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert compare(out, scheduler=cluster.scheduler_address, workers=None, **TWELVE) == 0
    assert results(out) == results(undisturbed)


@pytest.mark.slow
def test_tasks_of_a_cluster_end_with_who_wants_them(
    undisturbed: Path, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    from distributed import LocalCluster

    out = tmp_path / "study"
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        parent = start(*flags(out, scheduler=address, workers=None, **TWELVE))
        processes.append(parent)
        wait_for(lambda: any(out.rglob("metrics.jsonl")), parent)
        time.sleep(1)
        parent.kill()
        parent.communicate()
        assert compare(out, scheduler=address, workers=None, **TWELVE) == 0
    assert results(out) == results(undisturbed)


@pytest.mark.slow
def test_a_scheduler_that_goes_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from distributed import LocalCluster

    out = tmp_path / "study"
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None)

    def close_soon() -> None:
        while not [*out.rglob("metrics.jsonl")]:
            time.sleep(0.1)
        cluster.close()

    closing = threading.Thread(target=close_soon)
    closing.start()
    code = compare(
        out, scheduler=cluster.scheduler_address, workers=None, topologies="static", seeds="1", steps=200_000
    )
    closing.join()
    assert code == 2
    assert "the Dask scheduler has gone" in capsys.readouterr().err


@pytest.mark.slow
def test_no_scheduler_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path / "study", scheduler="tcp://127.0.0.1:9", workers=None, topologies="dense") == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.slow
def test_equal_seconds_give_a_wider_network_fewer_steps(tmp_path: Path) -> None:
    out, arm = tmp_path / "study", "wide --topology dense --hidden 256,256"
    given = dict(topologies="dense", seeds="1", seconds=4, steps=None, learning_starts=200, buffer_size=20_000)
    assert compare(out, "--arm", arm, **given) == 0
    steps = {each["name"]: each["settings"]["Hopper-v5"]["steps"] for each in plan_of(out)["arms"]}
    assert steps["wide"] < steps["dense"]
    found = results(out)
    assert {name: found[f"Hopper-v5/{name}/seed-0"]["steps"] for name in steps} == steps
    assert compare(out, "--arm", arm, **given) == 0  # measured once: the same steps again
    assert results(out) == found


@pytest.mark.slow
def test_study_of_learners(tmp_path: Path) -> None:
    given = [
        "compare",
        "--strategies",
        "spacenet,naive",
        "--benchmark",
        "split-digits",
        "--seeds",
        "2",
        "--epochs",
        "1",
    ]
    given += ["--hidden", "40,40", "--workers", "2", "--out", str(tmp_path / "study")]
    assert main(*given) == 0
    found = results(tmp_path / "study")
    assert {*found} == {f"split-digits/{arm}/seed-{seed}" for arm in ("spacenet", "naive") for seed in (0, 1)}
    assert found["split-digits/spacenet/seed-1"]["seeds"] == [1]
    alone = ["continual", "--strategy", "spacenet", "--seeds", "0,1", "--epochs", "1", "--hidden", "40,40"]
    assert main(*alone, "--out", str(tmp_path / "alone")) == 0
    both = results(tmp_path)["alone"]["R"]["class_il"]
    assert both == [found[f"split-digits/spacenet/seed-{seed}"]["R"]["class_il"][0] for seed in (0, 1)]
