"""Runs in observations full of noise: stored, resumed bit for bit, evaluated where the features are."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import assert_equal_runs, in_a_fork, main, result_of, train
from tiny_runs import flags as flags_of

import envs
from runs.input_records import shares_of
from runs.scoring import Scorer

NOISY: dict[str, Any] = dict(
    preset="anf", sparsity=None, noise_features=0.5, permute_features_every=250, steps=700, eval_every=300
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("noisy") / "run", **NOISY)


@pytest.mark.end_to_end
def test_result_says_what_the_agent_saw(finished: Path) -> None:
    result = result_of(finished)
    # 11 real features of 22, 3 actions; hidden layers of 16: the first layers alone are sparse.
    assert result["nnz"]["actor.mu.0"] == 22 * 16 - round(0.8 * 22 * 16)
    assert result["sparsity_by_network"]["actor"] == pytest.approx(round(0.8 * 22 * 16) / (22 * 16 + 256 + 48))
    assert len(result["input_connections"]["actor"]) == 22
    env = envs.make("Hopper-v5", noise=envs.Noise(0.5, seed=0, permute_every=250))
    places = env.env.places(699)
    env.close()
    assert result["real_features"] == np.flatnonzero(places < 11).tolist() != list(range(11))
    course = result["input_course"]
    assert [step for step, _ in course] == [step for step, _ in result["curve"]] == [300, 600, 700]
    assert course[-1][1] == shares_of(result["input_connections"], result["real_features"])
    assert course[-1][1]["actor"][0] == pytest.approx(0.5, abs=0.15)  # half are real, and nothing was learned yet
    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("inputs_real_share/critic")] == [300, 600, 700]
    assert events.Scalars("inputs_per_noise/actor")[-1].value == pytest.approx(course[-1][1]["actor"][2])
    config = json.loads((finished / "config.json").read_text())["settings"]
    assert (config["noise_features"], config["input_sparsity"], config["dense"]) == (0.5, 0.8, ["output"])


@pytest.mark.end_to_end
def test_killed_and_resumed(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    scored = Scorer.score

    def deadly(self: Scorer, model: Any, step: int = 0) -> Any:
        if step == 600:  # checkpoints at 300 and 600, places changed at 250 and 500
            os.kill(os.getpid(), signal.SIGKILL)
        return scored(self, model, step)

    def work() -> None:
        Scorer.score = deadly  # type: ignore[method-assign]
        os._exit(main(*flags_of(directory, **NOISY)))

    assert in_a_fork(work) == -signal.SIGKILL
    assert main("resume", directory) == 0
    assert_equal_runs(directory, finished)


def test_evaluates_in_the_same_noise(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("evaluate", finished, "--episodes", "1") == 0
    assert "return" in capsys.readouterr().out


def test_permuting_needs_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(*flags_of(tmp_path / "run", permute_features_every=100)) == 2
    assert "`permute_features_every` needs noise; give --noise-features, too" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
