"""Preset `rlx2`: thresholds that scale with the steps, and runs that are killed and resumed bit for bit."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import assert_equal_runs, in_a_fork, main, state_of, train
from tiny_runs import flags as flags_of

from runs.options import Train
from runs.scoring import Scorer
from runs.settings import Settings


def settings(**flags: Any) -> Settings:
    return Settings.resolve(Train(**{"algo": "td3", "preset": "rlx2", "device": "cpu", **flags}))


def test_thresholds_are_the_papers_at_its_length_and_scale() -> None:
    whole, tenth = settings(steps=3_000_000), settings(steps=300_000)
    assert (whole.topology, whole.sparsity, whole.drop_fraction, whole.schedule) == ("rigl", 0.9, 0.5, "cosine")
    assert (whole.n_steps, whole.n_step_onset, whole.buffer_min, whole.buffer_every) == (3, 300_000, 100_000, 10_000)
    assert (whole.period, whole.stop, whole.buffer_distance) == (10_000, 1.0, 0.2)
    assert (tenth.n_steps, tenth.n_step_onset, tenth.buffer_min, tenth.buffer_every) == (3, 30_000, 10_000, 1_000)
    assert tenth.period == 1_000


def test_flags_beat_the_preset() -> None:
    mine = settings(n_steps=5, n_step_onset=7, buffer_min=0, period=11, topology="set", sparsity=0.5, steps=9_000)
    assert (mine.n_steps, mine.n_step_onset, mine.buffer_min, mine.period) == (5, 7, None, 11)
    assert (mine.topology, mine.sparsity) == ("set", 0.5)
    plain = settings(preset="td3", n_steps=2)
    assert (plain.topology, plain.n_steps, plain.n_step_onset, plain.buffer_min) == ("set", 2, 0, None)
    with pytest.raises(ValueError, match="`n_steps` must be at least 1, got 0"):
        settings(n_steps=0)
    with pytest.raises(ValueError, match="`buffer_min` must be a whole number of at least 1, got -3"):
        settings(buffer_min=-3)


@pytest.mark.slow
def test_long_returns_alone_can_be_stored(tmp_path: Path) -> None:
    directory = train(tmp_path / "run", n_steps=3, steps=400)
    assert state_of(directory)["state"]["agent"]["first_row"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["td3", "sac"])
def test_killed_and_resumed(algo: str, tmp_path: Path) -> None:
    preset: dict[str, Any] = dict(preset="rlx2") if algo == "td3" else dict(
        preset="sac", topology="rigl", n_steps=3, n_step_onset=90, buffer_min=30
    )  # fmt: skip
    chosen = dict(algo=algo, buffer_distance=0.05, **preset) | ({"topology": None} if algo == "td3" else {})
    whole, directory = train(tmp_path / "whole", **chosen), tmp_path / "run"
    scored = Scorer.score

    def deadly(self: Scorer, model: Any, step: int = 0) -> Any:
        if step == 800:  # checkpoints at 300 and 600; returns are long from update 91 on
            os.kill(os.getpid(), signal.SIGKILL)
        return scored(self, model, step)

    def work() -> None:
        Scorer.score = deadly  # type: ignore[method-assign]
        os._exit(main(*flags_of(directory, **chosen)))

    assert in_a_fork(work) == -signal.SIGKILL
    before = state_of(directory)["state"]["agent"]["first_row"]
    assert before > 0  # rows were forgotten before the kill
    assert main("resume", directory) == 0
    assert_equal_runs(directory, whole)
    assert state_of(whole)["state"]["agent"]["first_row"] >= before
