"""Continual runs that were killed, interrupted or damaged: the same result in the end, or one clear line."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_continual import EPOCHS, TASKS, flags, in_a_fork_before, interrupt, kill, learn, result_of, steps_of
from tiny_runs import main, start, wait_for

import runs.continual.seeds
import runs.continual.whole
from runs.checkpoints import CheckpointStore
from runs.continual.records import Examiner
from runs.continual.seeds import SeedRun
from runs.lock import RunLock

pytestmark = pytest.mark.end_to_end

PLAIN: dict[str, Any] = {"strategy": "naive"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of SpaceNet, which can be stored; only to be read."""
    return learn(tmp_path_factory.mktemp("continual") / "run")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of a baseline of Avalanche's, which cannot be stored."""
    return learn(tmp_path_factory.mktemp("plain") / "run", **PLAIN)


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """A copy in which the last seed has not heard of its end."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "result.json").unlink()
    (copy / "seed-1" / "rows.json").unlink()
    return copy


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("owner", "name", "number", "left"),
    [
        pytest.param(SeedRun, "run", 1, [[], []], id="before the first seed", marks=SLOW),
        pytest.param(os, "rename", 1, [[], []], id="in the first checkpoint", marks=SLOW),
        # Two epochs of a task, then its end, are stored.
        pytest.param(CheckpointStore, "save", 3, [[1, 2], []], id="at the end of a task", marks=SLOW),
        pytest.param(CheckpointStore, "save", 6, [[4, 5], []], id="within a task"),
        pytest.param(CheckpointStore, "save", 8, [[6, 7], []], id="early in a task", marks=SLOW),
        pytest.param(Examiner, "examine", 2, [[4, 5], []], id="in an evaluation", marks=SLOW),
        pytest.param(runs.continual.seeds, "write_record", 5, [[14, 15], []], id="before a seed is done", marks=SLOW),
        pytest.param(SeedRun, "run", 2, [[14, 15], []], id="between two seeds", marks=SLOW),
        pytest.param(CheckpointStore, "save", 20, [[14, 15], [3, 4]], id="in the second seed", marks=SLOW),
        pytest.param(runs.continual.whole, "result", 1, [[14, 15], [14, 15]], id="before the result", marks=SLOW),
        pytest.param(runs.continual.whole, "draw_accuracy", 1, [[14, 15], [14, 15]], id="in a picture", marks=SLOW),
    ],
)
def test_killed(owner: Any, name: str, number: int, left: list[list[int]], finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert in_a_fork_before(owner, name, number, kill, flags(directory)) == -signal.SIGKILL
    assert [steps_of(directory, seed) for seed in range(2)] == left
    assert not (directory / "result.json").exists()
    assert main("resume", directory) == 0
    assert result_of(directory) == result_of(finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        pytest.param(Examiner, "examine", 3, id="in the first seed", marks=SLOW),
        pytest.param(SeedRun, "run", 2, id="between two seeds", marks=SLOW),
        pytest.param(SeedRun, "_epoch_ends", 20, id="within a task of the second seed"),
    ],
)
def test_killed_without_checkpoints(owner: Any, name: str, number: int, plain: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert in_a_fork_before(owner, name, number, kill, flags(directory, **PLAIN)) == -signal.SIGKILL
    assert main("resume", directory) == 0
    assert result_of(directory) == result_of(plain)
    assert steps_of(directory, 0) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"isolation": "strict"}, id="strict"),
        pytest.param({"channels": "20", "norm": "batch"}, id="convolutions", marks=SLOW),
        pytest.param({"optimizer": "adam", "learning_rate": 0.01}, id="Adam", marks=SLOW),
        pytest.param({"strategy": "spacenet-2021"}, id="2021", marks=SLOW),
        pytest.param({"strategy": "spacenet-rehearsal"}, id="rehearsal", marks=SLOW),
        pytest.param({"strategy": "afaf"}, id="afaf", marks=SLOW),
    ],
)
def test_killed_twice(changes: dict[str, Any], tmp_path: Path) -> None:
    changes = {"seeds": 1, **changes}
    undisturbed = learn(tmp_path / "undisturbed", **changes)
    directory = tmp_path / "run"
    first = in_a_fork_before(CheckpointStore, "save", 5, kill, flags(directory, **changes))
    again = in_a_fork_before(CheckpointStore, "save", 6, kill, ["resume", str(directory)])
    assert (first, again) == (-signal.SIGKILL, -signal.SIGKILL)
    assert steps_of(directory, 0) == [8, 9]
    assert main("resume", directory) == 0
    assert result_of(directory) == result_of(undisturbed)


@pytest.mark.parametrize(
    ("number", "stopped", "where"),
    [
        pytest.param(5, 5, "seed 0, task 2, epoch 2", marks=SLOW),  # the fifth epoch's end
        (6, 6, "seed 0, task 3, epoch 0"),  # the task ends with it
    ],
)
def test_ctrl_c(
    number: int, stopped: int, where: str, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    assert in_a_fork_before(SeedRun, "_epoch_ends", number, interrupt, flags(directory, checkpoint_every=1000)) == 130
    errors = capfd.readouterr().err
    assert "stopping after this epoch (again: at once, without saving)" in errors
    assert errors.splitlines()[-1] == f"stopped at {where}; continue with `sparse-agents resume {directory}`"
    assert max(steps_of(directory, 0)) == stopped
    assert main("resume", directory) == 0
    assert f"continuing {directory} from {where}" in capfd.readouterr().err
    assert result_of(directory) == result_of(finished)


@pytest.mark.slow
def test_ctrl_c_at_the_very_end(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    last = 2 * TASKS * EPOCHS
    assert in_a_fork_before(SeedRun, "_epoch_ends", last, interrupt, flags(directory)) == 0  # nothing was left to stop
    assert result_of(directory) == result_of(finished)


@pytest.mark.slow
def test_ctrl_c_after_the_last_task_of_a_seed(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert in_a_fork_before(SeedRun, "_epoch_ends", TASKS * EPOCHS, interrupt, flags(directory)) == 130
    assert not (directory / "seed-1").exists()
    assert main("resume", directory) == 0
    assert result_of(directory) == result_of(finished)


def test_a_second_ctrl_c_ends_at_once(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"

    def twice() -> None:
        interrupt()
        interrupt()

    assert in_a_fork_before(SeedRun, "_epoch_ends", 5, twice, flags(directory)) == 130
    assert steps_of(directory, 0) == [3, 4]
    assert main("resume", directory) == 0
    assert result_of(directory) == result_of(finished)


@pytest.mark.slow
def test_sigterm_without_checkpoints(plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "run"

    def terminate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    assert in_a_fork_before(SeedRun, "_epoch_ends", 20, terminate, flags(directory, **PLAIN)) == 130
    assert capfd.readouterr().err.splitlines()[-1] == (
        "stopped at seed 1, task 2, epoch 2 (this strategy keeps no state: the seed will begin again); "
        f"continue with `sparse-agents resume {directory}`"
    )
    assert main("resume", directory) == 0
    assert result_of(directory) == result_of(plain)


@pytest.mark.slow  # in a fork above
def test_kill_9_in_a_real_process(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with start(*flags(directory)) as process:
        wait_for(lambda: len(steps_of(directory, 0)) == 2, process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (directory / "result.json").exists()
    assert main("resume", directory) == 0
    assert result_of(directory) == result_of(finished)


@pytest.mark.slow
def test_ctrl_c_in_a_real_process(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with start(*flags(directory, epochs=200)) as process:
        wait_for(lambda: len(steps_of(directory, 0)) == 2, process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert errors.splitlines()[-1].startswith("stopped at seed 0, task 1, epoch ")
    assert "Traceback" not in errors


def test_finished_seeds_are_not_done_again(unfinished: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    original = SeedRun.run

    def run(self: SeedRun, *args: Any) -> Any:
        done.append(self.seed)
        return original(self, *args)

    monkeypatch.setattr(SeedRun, "run", run)
    assert main("resume", unfinished) == 0
    assert done == [1]
    assert result_of(unfinished) == result_of(finished)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def lose(path: Path) -> None:
    path.unlink()


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line with which the command ends, exit code 2."""
    capsys.readouterr()
    assert main(*arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("sparse-agents: ")
    assert output.err.count("\n") == 1
    return output.err.removeprefix("sparse-agents: ").removesuffix("\n")


@pytest.mark.parametrize("harm", [cut, lose])
@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint(
    harm: Callable[[Path], None], file: str, unfinished: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished / "seed-1" / "checkpoints" / "step-000000000015" / file
    harm(path)
    line = fails(capsys, "resume", unfinished)
    assert line.startswith(f"{path} is {'missing' if harm is lose else 'damaged'}")
    assert line.endswith("the checkpoint of step 14 is intact: resume from it with `--step 14`")
    assert main("resume", unfinished, "--step", "14") == 0
    assert result_of(unfinished) == result_of(finished)


def test_a_step_that_is_not_there(unfinished: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no checkpoint of step 7 in " in fails(capsys, "resume", unfinished, "--step", "7")
    shutil.copy(finished / "seed-1" / "rows.json", unfinished / "seed-1" / "rows.json")
    assert "has no seed that is not finished; resume without --step" in fails(
        capsys, "resume", unfinished, "--step", "7"
    )


def test_no_step_without_checkpoints(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "run"
    shutil.copytree(plain, directory)
    (directory / "result.json").unlink()
    (directory / "seed-1" / "rows.json").unlink()
    assert "naive has no checkpoints; resume without --step" in fails(capsys, "resume", directory, "--step", "15")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_damaged_record(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = unfinished / "seed-0" / "rows.json"
    edit(path, seed=1)
    assert fails(capsys, "resume", unfinished).startswith(f"{path} is of seed 1, not 0")
    edit(path, seed=0, task_il="none")
    assert fails(capsys, "resume", unfinished).startswith(f"{path} is damaged (task_il of the wrong kind); remove it")
    edit(path, more=1)
    assert f"{path} is damaged (a record holds seed, class_il, " in fails(capsys, "resume", unfinished)
    cut(path)
    assert f"{path} is damaged (" in fails(capsys, "resume", unfinished)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(version=2), "has version 2, this program reads 1; use the program it was made with"),
        (dict(settings=None), "is not the config of a continual run; give the directory of one"),
        (dict(settings={"seeds": [0]}), "has missing or unknown settings ("),
        (dict(strategy="spacent"), "no strategy called 'spacent'"),
        (dict(seeds=["many"]), "has settings of the wrong kind (seeds = ['many']); restore the file"),
        (dict(epochs=1.5), "has settings of the wrong kind (epochs = 1.5); restore the file"),
        (dict(hidden=[50, 50]), "does not fit the run in "),
        (dict(threads=0), "`threads` must be at least 1, got 0"),
        (dict(class_order="x"), "a class order is a whole number from 0"),
    ],
)
def test_a_config_of_something_else(
    changes: dict[str, Any], message: str, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished / "config.json"
    written = json.loads(path.read_text())
    inner = {name: value for name, value in changes.items() if name not in ("version", "settings")}
    path.write_text(json.dumps({**written, "settings": written["settings"] | inner, **{
        name: value for name, value in changes.items() if name not in inner
    }}))  # fmt: skip
    assert message in fails(capsys, "resume", unfinished)


def test_a_damaged_config(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut(unfinished / "config.json")
    assert fails(capsys, "resume", unfinished).startswith(
        f"the config of a run {unfinished / 'config.json'} is damaged ("
    )
    lose(unfinished / "config.json")
    assert fails(capsys, "resume", unfinished) == f"no config of a run at {unfinished / 'config.json'}; check the path"


def test_versions_that_changed(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = unfinished / "config.json"
    edit(path, versions=json.loads(path.read_text())["versions"] | {"avalanche-lib": "0.1"})
    assert main("resume", unfinished) == 0
    assert "versions have changed (avalanche-lib 0.1 → " in capsys.readouterr().err


def test_one_writer(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLock(unfinished):
        assert fails(capsys, "resume", unfinished).startswith(f"another process (process {os.getpid()} on ")


def test_it_is_not_an_agent(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "evaluate", finished, "--episodes", "1")
    assert line.endswith(
        f"{finished} is a run of continual learners, not of an agent; its result.json says what they reached"
    )
