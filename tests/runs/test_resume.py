"""Killed or interrupted at any moment and resumed: the same run, bit for bit."""

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import (
    assert_equal_runs,
    checkpoint,
    flags,
    in_a_fork,
    main,
    metrics_of,
    result_of,
    start,
    state_of,
    train,
    wait_for,
)

import runs.training
from runs.building import agent_state, restore_agent, start_learning
from runs.checkpoints import CheckpointStore
from runs.loading import read_config, rebuild
from runs.scoring import Scorer
from runs.snapshot import unpack
from sparse_core import PRESETS

pytestmark = pytest.mark.end_to_end

# 2,059 updates, a change every 260. The checkpoint of step 1240 comes after update 1039: three
# changes and 1,039 updates lie before it, four and 1,020 behind, and the first of the two
# batches that the next change looks at has been captured.
LONG: dict[str, Any] = dict(
    topology="rigl", capture_batches=2, stop=1.0, steps=2260, learning_starts=201, period=260, eval_every=1000,
    checkpoint_every=1240, buffer_size=2000,
)  # fmt: skip
MIDDLE = 1240


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run."""
    return train(tmp_path_factory.mktemp("long") / "run", **LONG)


@pytest.mark.parametrize(
    "flags",
    [
        dict(algo="sac", preset="sac"),
        dict(preset="rlx2", topology=None, buffer_distance=0.05),  # forgets rows, and has returns of three steps
        dict(topology="top-kast"),
    ],
    ids=["sac", "rlx2", "masks"],
)
def test_from_an_earlier_checkpoint_whatever_learns(flags: dict[str, Any], tmp_path: Path) -> None:
    whole, part = train(tmp_path / "whole", **flags), tmp_path / "part"
    shutil.copytree(whole, part)
    (part / "result.json").unlink()
    assert main("resume", part, "--step", "600") == 0
    assert_equal_runs(part, whole)


def test_tensorboard_forgets_what_is_done_again(unfinished: Path) -> None:
    assert main("resume", unfinished, "--step", "600") == 0
    events = EventAccumulator(str(unfinished / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("eval/mean_return")] == [400, 800, 900]


def kill_9(directory: Path, step: int, **changes: Any) -> None:
    """Train in another process, and kill it once the checkpoint of `step` is there."""
    with start(*flags(directory, **changes)) as process:
        wait_for(checkpoint(directory, step).exists, process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (directory / "result.json").exists()


def assert_enough_on_both_sides(directory: Path, step: int, enough: int = 3) -> None:
    changes = [line["step"] for line in metrics_of(directory) if line["kind"] == "topology"]
    assert min(sum(at <= step for at in changes), sum(at > step for at in changes)) >= enough


def test_kill_9_inside_the_capture_window(long: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    kill_9(directory, MIDDLE, **LONG)
    assert CheckpointStore(directory / "checkpoints").steps() == [MIDDLE]
    assert any("captures" in name for name in CheckpointStore(directory / "checkpoints").load().tensors)
    assert main("resume", directory) == 0
    assert_equal_runs(directory, long)
    assert_enough_on_both_sides(long, MIDDLE)


def test_ctrl_c(long: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with start(*flags(directory, **LONG)) as process:
        wait_for(checkpoint(directory, MIDDLE).exists, process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    stopped = max(CheckpointStore(directory / "checkpoints").steps())
    assert MIDDLE <= stopped < LONG["steps"]
    assert errors.splitlines()[-1] == f"stopped at step {stopped}; continue with `sparse-agents resume {directory}`"
    assert "Traceback" not in errors
    assert main("resume", directory) == 0
    assert_equal_runs(directory, long)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, then: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but at its call of that number `then` comes first."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            then()
        return function(*args, **kwargs)

    return wrapped


def killed_at(owner: Any, name: str, number: int, arguments: list[str]) -> int:
    """The exit code of the command in another process that dies as it calls this for the n-th time."""

    def work() -> None:
        setattr(owner, name, at_call(number, kill, getattr(owner, name)))
        os._exit(main(*arguments))

    return in_a_fork(work)


@pytest.mark.parametrize(
    ("owner", "name", "number", "left"),
    [
        pytest.param(Scorer, "__init__", 1, [], id="before the first step", marks=pytest.mark.slow),
        pytest.param(os, "rename", 1, [], id="in the first checkpoint", marks=pytest.mark.slow),
        pytest.param(Scorer, "score", 1, [300], id="in an evaluation"),
        pytest.param(os, "rename", 2, [300], id="before the second checkpoint", marks=pytest.mark.slow),
        pytest.param(os, "rename", 4, [300, 600, 900], id="while the oldest is removed", marks=pytest.mark.slow),
        pytest.param(Scorer, "score", 3, [300, 600], id="in the last evaluation", marks=pytest.mark.slow),
        pytest.param(runs.training, "result", 1, [600, 900], id="before the result"),
    ],
)
def test_killed(owner: Any, name: str, number: int, left: list[int], finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert killed_at(owner, name, number, flags(directory)) == -signal.SIGKILL
    assert CheckpointStore(directory / "checkpoints").steps() == left
    assert main("resume", directory) == 0
    assert_equal_runs(directory, finished)
    # And what the killed process was writing is gone.
    assert not list((directory / "checkpoints").glob(".tmp-*"))


@pytest.mark.slow
def test_killed_twice(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert killed_at(Scorer, "score", 1, flags(directory)) == -signal.SIGKILL
    assert killed_at(Scorer, "score", 2, ["resume", str(directory)]) == -signal.SIGKILL
    assert CheckpointStore(directory / "checkpoints").steps() == [300, 600]
    assert main("resume", directory) == 0
    assert_equal_runs(directory, finished)


def interrupted_at(number: int, arguments: list[str], signal_number: int = signal.SIGINT, times: int = 1) -> int:
    """The exit code of the command in another process that gets signals in its n-th evaluation."""

    def send() -> None:
        for _ in range(times):
            os.kill(os.getpid(), signal_number)

    def work() -> None:
        setattr(Scorer, "score", at_call(number, send, Scorer.score))  # noqa: B010
        os._exit(main(*arguments))

    return in_a_fork(work)


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_an_evaluation(signal_number: int, finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert interrupted_at(2, flags(directory), signal_number) == 130
    # The evaluation is finished first, and is in the checkpoint.
    assert CheckpointStore(directory / "checkpoints").steps() == [600, 800]
    assert main("resume", directory) == 0
    assert_equal_runs(directory, finished)


@pytest.mark.slow
def test_stopped_in_the_last_evaluation(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert interrupted_at(3, flags(directory)) == 0  # there was nothing left to stop
    assert_equal_runs(directory, finished)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert interrupted_at(2, flags(directory), times=2) == 130
    assert CheckpointStore(directory / "checkpoints").steps() == [300, 600]
    assert main("resume", directory) == 0
    assert_equal_runs(directory, finished)


@pytest.mark.slow  # test_damage does it too
def test_from_an_earlier_checkpoint(unfinished: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("resume", unfinished, "--step", "600") == 0
    assert f"continuing {unfinished} from step 600" in capsys.readouterr().err
    assert_equal_runs(unfinished, finished)


def test_successes_of_the_last_episodes_come_back(unfinished: Path) -> None:
    # No environment of ours tells; in those that do, SB3 logs the share of the last episodes.
    settings, written = read_config(unfinished)
    kept = CheckpointStore(unfinished / "checkpoints").load()
    model = rebuild(unfinished, settings, written)
    start_learning(model, Logger(None, []))
    state = unpack(kept.state, kept.tensors)["agent"] | {"episode_successes": [1.0, 0.0, 1.0]}
    restore_agent(model, state)
    assert agent_state(model)["episode_successes"] == [1.0, 0.0, 1.0]


def test_killed_while_later_checkpoints_are_forgotten(unfinished: Path, finished: Path) -> None:
    earlier = ["resume", str(unfinished), "--step", "600"]
    assert killed_at(CheckpointStore, "rewind", 1, earlier) == -signal.SIGKILL
    assert main("resume", unfinished) == 0
    assert_equal_runs(unfinished, finished)


def test_a_run_killed_before_it_had_a_config(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "lock").touch()
    (directory / ".config.json.123.tmp").write_text("{")
    train(directory)
    assert_equal_runs(directory, finished)


def test_a_finished_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert main("resume", finished) == 0
    assert capsys.readouterr().out == f"{finished} is finished: 900 steps; see `sparse-agents evaluate {finished}`\n"
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_result_that_was_lost_is_made_again(unfinished: Path, finished: Path) -> None:
    assert main("resume", unfinished) == 0
    assert_equal_runs(unfinished, finished)


def test_a_run_whose_last_step_is_resumed(finished: Path, tmp_path: Path) -> None:
    """One update without a policy update: what the result counts must not hang on it."""
    whole = train(tmp_path / "whole", steps=401, checkpoint_every=400)
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    (part / "result.json").unlink()
    assert main("resume", part, "--step", "400") == 0
    assert result_of(part) == result_of(whole)
    assert state_of(part) == state_of(whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("topology", sorted(PRESETS))
def test_kill_9_with_every_topology(topology: str, finished: Path, tmp_path: Path) -> None:
    sparsity = None if topology == "dense" else PRESETS[topology].own_sparsity or 0.6
    source = finished if PRESETS[topology].given else None
    changes = {**LONG, "topology": topology, "sparsity": sparsity, "topology_from": source}
    whole = train(tmp_path / "whole", **changes)
    directory = tmp_path / "run"
    kill_9(directory, MIDDLE, **changes)
    assert main("resume", directory) == 0
    assert_equal_runs(directory, whole)
    if PRESETS[topology].changes and PRESETS[topology].course not in ("at-once", "phases"):  # those change seldom
        # What lies below dsr's threshold goes, and at first nothing does.
        assert_enough_on_both_sides(whole, MIDDLE, enough=2 if topology == "dsr" else 3)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("env", ["Ant-v5", "Humanoid-v5", "Hopper-v5", "Walker2d-v5"])
def test_kill_9_in_every_environment(env: str, tmp_path: Path) -> None:
    changes = {**LONG, "env": env, "hidden": "32,32"}
    whole = train(tmp_path / "whole", **changes)
    directory = tmp_path / "run"
    kill_9(directory, MIDDLE, **changes)
    assert main("resume", directory) == 0
    assert_equal_runs(directory, whole)
    assert_enough_on_both_sides(whole, MIDDLE)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_kill_9_many_times_anywhere(seed: int, tmp_path: Path) -> None:
    """Killed after times that nobody chose, until it comes through."""
    changes = {**LONG, "seed": seed, "checkpoint_every": 200}
    whole = train(tmp_path / "whole", **changes)
    directory = tmp_path / "run"
    times = random.Random(seed)
    arguments: list[Any] = flags(directory, **changes)
    for _ in range(6):
        with start(*arguments) as process:
            if arguments[0] == "train":
                wait_for((directory / "config.json").exists, process)
            try:
                process.wait(times.uniform(3, 8))
            except subprocess.TimeoutExpired:
                process.kill()
        if (directory / "result.json").exists():
            break
        arguments = ["resume", directory]
    assert main("resume", directory) == 0
    assert_equal_runs(directory, whole)
