"""`train sac`: runs that are killed and resumed bit for bit, evaluated, exported and compared."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from stable_baselines3 import SAC
from tiny_runs import assert_equal_runs, in_a_fork, main, result_of, state_of, train
from tiny_runs import flags as flags_of

from runs.loading import load_agent
from runs.scoring import Scorer
from runs.settings import Settings
from runs.studies.agents import arms
from runs.studies.options import Compare

KINDS: dict[str, dict[str, Any]] = {"sac": {}, "ds-sac": dict(topology="rigl", period=30)}


@pytest.fixture(scope="module", params=KINDS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    chosen = dict(algo="sac", preset=request.param, **KINDS[request.param])
    return train(tmp_path_factory.mktemp("sac") / "run", **chosen), chosen


@pytest.mark.slow
def test_killed_and_resumed(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    whole, chosen = finished
    directory = tmp_path / "run"
    scored = Scorer.score

    def deadly(self: Scorer, model: Any, step: int = 0) -> Any:
        if step == 800:  # checkpoints at 300 and 600
            os.kill(os.getpid(), signal.SIGKILL)
        return scored(self, model, step)

    def work() -> None:
        Scorer.score = deadly  # type: ignore[method-assign]
        os._exit(main(*flags_of(directory, **chosen)))

    assert in_a_fork(work) == -signal.SIGKILL
    assert main("resume", directory) == 0
    assert_equal_runs(directory, whole)
    learned = chosen["preset"] == "sac"
    assert ("/agent/log_ent_coef" in state_of(directory)["tensors"]) == learned


@pytest.mark.slow
def test_result_evaluation_and_exports(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, _ = finished
    result = result_of(directory)
    assert (result["algo"], result["updates"]) == ("sac", 800)
    assert result["sparsity"] == pytest.approx(0.6, abs=0.005)
    assert set(result["sparsity_by_network"]) == set(result["input_connections"]) == {
        "actor", "critic.qf0", "critic.qf1"
    }  # fmt: skip
    assert {"actor.latent_pi.0", "actor.mu", "actor.log_std", "critic.qf0.4"} <= result["nnz"].keys()
    assert main("evaluate", directory, "--episodes", "1") == 0
    assert "return" in capsys.readouterr().out
    model, _, _ = load_agent(directory)
    x = np.random.default_rng(0).normal(size=(9, 11))
    wanted = model.predict(x, deterministic=True)[0]
    for kind in ("sb3", "onnx", "dense-state-dict"):
        assert main("export", directory, "--to", kind, "--out", tmp_path / kind) == 0
    plain = SAC.load(tmp_path / "sb3")
    np.testing.assert_allclose(plain.predict(x, deterministic=True)[0], wanted, atol=1e-6)
    assert (plain.tau, plain.target_update_interval) == (model.tau, model.target_update_interval)
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"observation": x.astype(np.float32)})[0], wanted, atol=1e-5)


@pytest.mark.slow
def test_compared_and_reported(tmp_path: Path) -> None:
    study = tmp_path / "study"
    command = [
        "compare", "--env", "Pendulum-v1", "--presets", "td3,sac", "--topologies", "set", "--sparsities", "0.5",
        "--seeds", "2", "--steps", "120", "--learning-starts", "40", "--hidden", "8,8", "--batch-size", "8",
        "--buffer-size", "100", "--period", "20", "--eval-every", "60", "--eval-episodes", "1", "--final-episodes", "1",
        "--workers", "1", "--device", "cpu", "--out", study,
    ]  # fmt: skip
    assert main(*command) == 0
    for arm, algo in (("td3-set-0.5", "td3"), ("sac-set-0.5", "sac")):
        assert json.loads((study / "Pendulum-v1" / arm / "seed-1" / "result.json").read_text())["algo"] == algo
    assert main("report", study) == 0
    assert (study / "report.html").stat().st_size > 10_000


def test_preset_of_another_algorithm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(*flags_of(tmp_path / "run", algo="sac", preset="ds-td3-2022")) == 2
    assert "preset 'ds-td3-2022' is for td3, got sac; choose one of sac, ds-sac" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_small_dense_counts_both_outputs_of_the_actor() -> None:
    options = Compare(env="Pendulum-v1", presets="sac", topologies="static", sparsities="0.5", small_dense=True)
    small, static = arms(options)
    (width, other), (full, _) = (each.settings["Pendulum-v1"]["hidden"] for each in (small, static))
    assert (width, full) == (other, 256)

    def dense(hidden: int) -> int:
        # 3 observations, 1 action: two outputs of the actor, two critics.
        return 3 * hidden + hidden**2 + 2 * hidden + 2 * (4 * hidden + hidden**2 + hidden)

    assert abs(dense(width) - dense(256) / 2) <= min(abs(dense(w) - dense(256) / 2) for w in (width - 1, width + 1))
    assert Settings.from_config(
        {"format": "sparse-agents-run", "version": 1, "settings": {**static.settings["Pendulum-v1"], "seed": 0,
                                                                   "topology_from": None}}, "here"
    ).algo == "sac"  # fmt: skip
