"""`evaluate`: the same episodes give the same figures, and they are those of other tools."""

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from stable_baselines3 import TD3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_runs import main, result_of, train

from runs.loading import load_agent
from runs.scoring import Score, Scorer


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main("evaluate", *arguments) == 0
    return capsys.readouterr().out


@pytest.mark.end_to_end
def test_the_same_figures_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    first = evaluate(capsys, finished, "--episodes", "2")
    assert evaluate(capsys, finished, "--episodes", "2") == first
    assert evaluate(capsys, finished, "--episodes", "2", "--seed", "1") != first
    assert evaluate(capsys, finished, "--episodes", "2", "--step", "600") != first
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_what_is_said(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = evaluate(capsys, finished, "--episodes", "1", "--seed", "100").splitlines()
    actor = sum(count for name, count in result_of(finished)["nnz"].items() if name.startswith("actor"))
    assert lines[0] == f"Hopper-v5, step 900, actor with {actor} connections (sparsity 0.6000):"
    # The seed of the evaluations during training: the last one over again.
    score = result_of(finished)["eval"]["mean_return"]
    wanted = f"return {score:,.1f} ± 0.0 over 1 episodes (from {score:,.1f} to {score:,.1f}), seed 100"
    assert " ".join(lines[1:]) == wanted


@pytest.mark.end_to_end
@pytest.mark.usefixtures("no_mujoco_log")
@pytest.mark.parametrize("episodes", [1, 3])
def test_equals_sb3s_evaluation_of_the_exported_agent(episodes: int, finished: Path, tmp_path: Path) -> None:
    assert main("export", finished, "--to", "sb3", "--out", tmp_path / "td3.zip") == 0
    model, settings, _ = load_agent(finished)
    score = score_of(model, settings.env, episodes, seed=7)
    environments = DummyVecEnv([lambda: Monitor(gymnasium.make(settings.env)) for _ in range(episodes)])
    environments.seed(7)
    returns, lengths = evaluate_policy(
        TD3.load(tmp_path / "td3.zip"), environments, episodes, return_episode_rewards=True
    )
    assert sorted(score.lengths) == sorted(lengths)
    np.testing.assert_allclose(sorted(score.returns), sorted(returns), rtol=1e-4)


def score_of(model: Any, env: str, episodes: int, seed: int) -> Score:
    scorer = Scorer(env, episodes, seed)
    try:
        return scorer.score(model)
    finally:
        scorer.close()


class Countdown(gymnasium.Env[Any, Any]):
    """Episodes of 1 to 9 steps, as the seed falls; each step is worth one."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 10))
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return np.zeros(1, np.float32), 1.0, self.left == 0, False, {}


@pytest.mark.parametrize("episodes", [1, 9, 10, 11, 25])
def test_every_environment_plays_its_share(episodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.make", lambda _, noise: Countdown())
    scorer = Scorer("any", episodes, seed=3)
    score = scorer.score(None)
    assert len(score.returns) == len(score.lengths) == episodes
    assert score.returns == score.lengths
    assert scorer.score(None) == score  # seeded anew
    # Environment i begins with seed + i and goes on by itself; the shares differ by one at most,
    # however short the episodes are.
    count = min(episodes, 10)
    played = []
    for index in range(count):
        env = Countdown()
        share = episodes // count + (index < episodes % count)
        for number in range(share):
            env.reset(seed=3 + index if number == 0 else None)
            played.append(env.left)
    assert list(score.lengths) == played
    assert (score.mean, score.std) == (np.mean(score.returns), np.std(score.returns))


def test_no_episodes() -> None:
    with pytest.raises(ValueError, match="`episodes` must be at least 1, got 0"):
        Scorer("HalfCheetah-v5", 0, seed=0)


@pytest.fixture(scope="module")
def pole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent whose episodes are short to film, because the pole falls."""
    return train(tmp_path_factory.mktemp("pole") / "run", env="InvertedPendulum-v5", steps=120, sparsity=0.5)


@pytest.mark.end_to_end
def test_a_video(pole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import imageio_ffmpeg

    video = tmp_path / "film.mp4"
    code = main("evaluate", pole, "--episodes", "1", "--seed", "5", "--video", video)
    output = capsys.readouterr()
    if code == 2 and "off-screen rendering failed" in output.err:
        assert not any(tmp_path.iterdir())
        pytest.skip(f"no OpenGL to render with: {output.err.strip()}")
    assert code == 0
    said = re.search(r"(\d+) frames in", output.out)
    assert said
    model, settings, _ = load_agent(pole)
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(video))
    assert frames == int(said[1]) == score_of(model, settings.env, 1, seed=5).lengths[0]
    reader = imageio_ffmpeg.read_frames(str(video))
    size = next(reader)["size"]
    pictures = [np.frombuffer(frame, np.uint8) for frame in reader]
    assert size == (480, 480)
    assert pictures[0].std() > 10  # something is to be seen
    assert not np.array_equal(pictures[0], pictures[-1])
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
