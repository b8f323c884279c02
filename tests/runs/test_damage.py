"""Full disks, damaged and foreign files, a second writer: one clear line, and no harm done."""

import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    FORK,
    assert_equal_runs,
    checkpoint,
    flags,
    in_a_fork,
    main,
    start,
    train,
    wait_for,
)

from runs.checkpoints import CheckpointStore
from runs.lock import RunLock
from runs.results import result


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line with which the command ends, exit code 2."""
    capsys.readouterr()
    assert main(*arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("sparse-agents: ")
    assert output.err.count("\n") == 1
    return output.err.removeprefix("sparse-agents: ").removesuffix("\n")


def with_files_up_to(size: int, arguments: list[str]) -> list[str]:
    """The lines of errors of the command in another process whose files cannot grow beyond `size` bytes."""
    receiver, sender = FORK.Pipe(duplex=False)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python itself does at its start
        sys.stderr = io.StringIO()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        code = main(*arguments)
        sender.send(sys.stderr.getvalue())
        os._exit(code)

    assert in_a_fork(work) == 2
    lines: list[str] = receiver.recv().splitlines()
    *before, last = lines
    assert last.startswith("sparse-agents: cannot write ")
    assert all(line.startswith(("step ", "continuing ")) for line in before)
    return lines


@pytest.mark.end_to_end
def test_a_disk_that_fills_up(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    # There is room for the tensors of step 300, not for those of 600: positions ever connected become more.
    assert with_files_up_to(90_000, flags(directory))[-1] == (
        f"sparse-agents: cannot write {checkpoint(directory, 600)}: File too large; raise the limit on file sizes "
        f"(`ulimit -f`), then `sparse-agents resume {directory}`"
    )
    assert CheckpointStore(directory / "checkpoints").steps() == [300]
    assert main("resume", directory) == 0
    assert_equal_runs(directory, finished)


@pytest.mark.parametrize(("size", "what"), [(0, "/lock: "), (1_000, r"/config\.json: "), (2_800, r"/metrics\.jsonl: ")])
def test_a_disk_that_is_full_from_the_beginning(size: int, what: str, tmp_path: Path) -> None:
    assert re.search(what, with_files_up_to(size, flags(tmp_path / "run", checkpoint_every=5_000))[-1])


def test_no_room_for_the_result(unfinished: Path, finished: Path) -> None:
    lines = with_files_up_to(1_000, ["resume", str(unfinished)])
    assert f"cannot write {unfinished / 'result.json'}: File too large; raise" in lines[-1]
    assert not (unfinished / "result.json").exists()
    assert main("resume", unfinished) == 0
    assert_equal_runs(unfinished, finished)


@pytest.mark.slow
def test_no_room_in_a_real_process(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    directory = tmp_path / "run"
    with start(*flags(directory), preexec_fn=limit) as process:
        output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (2, "")
    assert errors.splitlines()[-1].startswith(f"sparse-agents: cannot write {checkpoint(directory, 300)}: File too")
    assert "Traceback" not in errors


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_bytes(pickle.dumps({"not": "ours"}))


def lose(path: Path) -> None:
    path.unlink()


LAST = "checkpoints/step-000000000900"
HARMS = [cut, empty, foreign, lose]


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "replay-tail.safetensors"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_checkpoint(
    file: str, harm: Callable[[Path], None], unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(unfinished / LAST / file)
    line = fails(capsys, "resume", unfinished)
    assert line.startswith(f"{unfinished / LAST / file} is {'missing' if harm is lose else 'damaged'}")
    assert line.endswith("the checkpoint of step 600 is intact: resume from it with `--step 600`")


@pytest.mark.slow
def test_and_the_way_out_of_it_leads_to_the_same_result(unfinished: Path, finished: Path) -> None:
    cut(unfinished / LAST / "tensors.safetensors")
    assert main("evaluate", unfinished, "--episodes", "1") == 2
    assert main("evaluate", unfinished, "--episodes", "1", "--step", "600") == 0
    assert main("resume", unfinished, "--step", "600") == 0
    assert_equal_runs(unfinished, finished)


@pytest.mark.end_to_end
@pytest.mark.parametrize("harm", [cut, pytest.param(lose, marks=pytest.mark.slow)])
def test_a_damaged_replay_segment(
    harm: Callable[[Path], None],
    finished: Path,
    unfinished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Segments are for long runs; here they are short ones.
    monkeypatch.setattr(CheckpointStore.__init__, "__kwdefaults__", {"segment_rows": 150, "run": None})
    assert main("resume", unfinished, "--step", "600") == 0
    (unfinished / "result.json").unlink()
    segments = sorted((unfinished / "checkpoints" / "replay").iterdir())
    assert len(segments) >= 5
    harm(segments[-1])
    line = fails(capsys, "resume", unfinished)
    assert line.startswith(f"{segments[-1]} is {'missing' if harm is lose else 'damaged'}")
    assert line.endswith("the checkpoint of step 600 is intact: resume from it with `--step 600`")
    assert main("evaluate", unfinished, "--episodes", "1") == 0  # acting takes no replay rows
    assert main("resume", unfinished, "--step", "600") == 0
    assert_equal_runs(unfinished, finished)


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_config(harm: Callable[[Path], None], unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harm(unfinished / "config.json")
    for arguments in (["resume"], ["evaluate", "--episodes", "1"], ["export", "--to", "sb3"]):
        line = fails(capsys, *arguments[:1], unfinished, *arguments[1:])
        if harm is lose:
            assert line == f"no config of a run at {unfinished / 'config.json'}; check the path"
        else:
            assert line.startswith(f"the config of a run {unfinished / 'config.json'} is damaged (")
    assert not (unfinished / "export").exists()


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(version=2), "has version 2, this program reads 1"),
        (lambda config: config.update(format="other"), "is not the config of a sparse-agents run"),
        (lambda config: config["settings"].update(steps="many"), "has settings of the wrong kind (steps = 'many')"),
        (lambda config: config["settings"].update(hidden=[8, 8]), "does not fit the run in"),
        (lambda config: config["settings"].update(batch_size=9999), "`batch_size` must not exceed `buffer_size`"),
        (lambda config: config["settings"].update(buffer_size=500), "holds a replay buffer of 700 rows"),
        (lambda config: config["settings"].update(env="HalfCheetah-v5"), "does not fit the run in"),
        (lambda config: config["settings"].update(topology="rigel"), "did you mean 'rigl'?"),
        (lambda config: config["settings"].update(device="cuda:99"), "`device` 'cuda:99'"),
        (lambda config: config["settings"].update(algo="ppo"), "no algorithm called 'ppo'; known: sac, td3"),
    ],
)
def test_a_config_of_something_else(
    change: Callable[[dict[str, Any]], Any], message: str, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(unfinished / "config.json", change)
    assert message in fails(capsys, "resume", unfinished)


def test_metrics_cut_short(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = unfinished / "metrics.jsonl"
    whole = metrics.read_bytes()
    cut(metrics)
    stump = metrics.read_bytes()
    line = fails(capsys, "resume", unfinished)
    assert line.startswith(f"{metrics} has {len(stump)} bytes where the checkpoint has seen {len(whole)}: it was cut")
    assert metrics.read_bytes() == stump
    # An earlier checkpoint may have seen less than is left: the way out that the line names.
    assert "resume from an earlier checkpoint with `--step`" in line


def test_versions_that_changed(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(unfinished / "config.json", lambda config: config["versions"].update(torch="1.0"))
    assert main("resume", unfinished) == 0
    assert "versions have changed (torch 1.0 → " in capsys.readouterr().err


def test_versions_that_are_none(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(unfinished / "config.json", lambda config: config.update(versions=[1]))
    assert main("resume", unfinished) == 0
    assert "versions have changed (" in capsys.readouterr().err


def test_one_writer(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLock(unfinished):
        line = fails(capsys, "resume", unfinished)
        assert line.startswith(f"another process (process {os.getpid()} on ")
        assert main("evaluate", unfinished, "--episodes", "1") == 0  # reading is free


@pytest.mark.slow
def test_one_writer_while_another_process_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "run"
    with start(*flags(directory, steps=100_000)) as process:
        wait_for(checkpoint(directory, 300).exists, process)
        assert f"(process {process.pid} on " in fails(capsys, "resume", directory)
        assert "is not empty; choose another --out, or continue a run" in fails(capsys, *flags(directory))
        process.kill()


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("unpickled")


@pytest.mark.end_to_end
def test_nothing_is_unpickled(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")]:
        monkeypatch.setattr(module, name, refuse)
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.load(io.BytesIO())
    directory = train(tmp_path / "run")
    (directory / "result.json").unlink()
    assert main("resume", directory) == 0
    assert_equal_runs(directory, finished)
    assert main("evaluate", directory, "--episodes", "1") == 0
    for to in ("dense-state-dict", "onnx"):
        assert main("export", directory, "--to", to) == 0


def test_no_file_of_a_run_is_a_pickle(finished: Path) -> None:
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert {path.suffix for path in files if "tfevents" not in path.name} == {"", ".json", ".jsonl", ".safetensors"}


def test_a_result_that_cannot_be_made_leaves_the_run_to_be_resumed(
    unfinished: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_nan(*args: Any) -> dict[str, Any]:
        return {**result(*args), "eval": float("nan")}

    with monkeypatch.context() as patch:
        patch.setattr("runs.training.result", with_nan)
        assert "must hold finite numbers" in fails_after_a_line(capsys, "resume", unfinished)
    shutil.rmtree(unfinished / "tensorboard")
    assert main("resume", unfinished) == 0
    assert_equal_runs(unfinished, finished)


def fails_after_a_line(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(*arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]
