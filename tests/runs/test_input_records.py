"""Which inputs of noisy observations keep connections: by pencil, in results, in the report; and what an evaluation
sees where features change places."""  # noqa: D205, D209

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_studies import ENV, spread, write_study

import envs
from runs.input_records import real_features, shares_of
from runs.report.drawing import Palette
from runs.report.inputs import draw_kept, draw_real_share, kept, real_share
from runs.report.loading import load
from runs.report.sections import topology_csv
from runs.scoring import hold_places, shown_at
from runs.studies.agents import arms
from runs.studies.options import Compare


def test_shares_by_pencil() -> None:
    # Four features, of which the first and the last are real; critics read one action more.
    inputs = {"actor": [4, 0, 2, 2], "critic.qf0": [1, 1, 1, 1, 9], "critic.qf1": [3, 0, 1, 2, 9]}
    found = shares_of(inputs, [0, 3])
    assert found["actor"] == [6 / 8, 3, 1]
    # On average 2, ½, 1, 1½ connections.
    assert found["critic"] == [3.5 / 5, 1.75, 0.75]
    assert shares_of({"actor": [0, 0], "critic.qf0": [0, 0, 1]}, [1])["actor"] == [0, 0, 0]


@pytest.fixture
def noisy() -> Any:
    env = envs.make("Pendulum-v1", seed=0, noise=envs.Noise(0.5, seed=0, permute_every=100))
    yield env.env
    env.close()


def test_an_evaluation_shows_the_places_that_training_saw_last(noisy: Any) -> None:
    assert (shown_at(0), shown_at(1), shown_at(200)) == (0, 0, 199)
    orders = [noisy.places(steps).tolist() for steps in (0, 100, 200)]
    assert len({tuple(order) for order in orders}) == 3
    # Training takes its 200th step in the order of steps 100 … 199; after it the next one holds.
    for step, order in ((100, orders[0]), (101, orders[1]), (199, orders[1]), (200, orders[1]), (201, orders[2])):
        hold_places(noisy, step)
        assert noisy.places().tolist() == order, step


def test_real_features_are_those_of_the_same_moment(noisy: Any) -> None:
    model: Any = SimpleNamespace(get_env=lambda: SimpleNamespace(envs=[noisy]))
    for step, seen in ((100, 0), (200, 100), (201, 200)):
        assert real_features(model, step) == np.flatnonzero(noisy.places(seen) < 3).tolist()
    plain: Any = SimpleNamespace(get_env=lambda: SimpleNamespace(envs=[noisy.env]))
    assert real_features(plain, 100) is None


def test_small_dense_sees_the_noise() -> None:
    flags: dict[str, Any] = dict(env="Pendulum-v1", topologies="static", sparsities="0.5", small_dense=True)
    for share, observations in ((0.0, 3), (0.9, 30)):
        small, _ = arms(Compare(noise_features=share, **flags))
        width = small.settings["Pendulum-v1"]["hidden"][0]

        def weights(wide: int, read: int = observations) -> int:
            return read * wide + wide**2 + wide + 2 * ((read + 1) * wide + wide**2 + wide)

        wanted = weights(256) / 2
        assert all(abs(weights(width) - wanted) <= abs(weights(other) - wanted) for other in (width - 1, width + 1))


def noisy_study(directory: Path) -> Path:
    """Two arms of two runs in noise: `set` finds the one real feature of three, `static` does not."""
    write_study(directory, {"static-0.9": spread(80, 5, 2), "set-0.9": spread(110, 5, 2)})
    for arm, course in (("static-0.9", (0.25, 0.25)), ("set-0.9", (0.25, 0.75))):
        for seed in (0, 1):
            path = directory / ENV / arm / f"seed-{seed}" / "result.json"
            written = json.loads(path.read_text())
            written["real_features"] = [seed]  # places differ from run to run
            written["input_connections"] = {"actor": [3, 2, 1], "critic.qf0": [4, 3, 2, 1]}
            written["input_course"] = [
                [step, {"actor": [share + seed / 10, 1.0, 0.5], "critic": [share, 1.0, 0.5]}]
                for step, share in zip((600, 1200), course, strict=True)
            ]
            path.write_text(json.dumps(written))
    return directory


def test_report_draws_shares_and_bars(tmp_path: Path) -> None:
    directory = noisy_study(tmp_path / "study")
    evidence = load(directory)
    assert evidence.problems == []
    runs = evidence.of(ENV, "set-0.9")
    steps, shares = real_share(runs, "actor") or ([], [])
    assert list(steps) == [600, 1200]
    assert list(shares) == pytest.approx([0.3, 0.8])
    real, noise = kept(runs, "actor") or ([], [])
    assert list(real) == [2.5]  # 3 in one run, 2 in the other
    assert list(noise) == [2.5, 1]
    assert [list(each) for each in kept(runs, "critic") or ()] == [[3.5], [3.5, 2]]  # the action is not looked at
    curves, bars = draw_real_share(evidence, ENV, Palette(evidence.study.arms)), draw_kept(evidence, ENV)
    assert curves is not None
    assert bars is not None
    chance, *lines = curves.axes[0].lines
    assert chance.get_ydata() == pytest.approx([100 / 3] * 2)
    assert [list(line.get_ydata()) for line in lines] == [pytest.approx([30, 30]), pytest.approx([30, 80])]
    assert [patch.get_height() for patch in bars.axes[2].patches] == [2.5, 2.5, 1]  # set, actor
    table = topology_csv(evidence).decode().splitlines()
    found = [line for line in csv.DictReader(table) if line["what"] == "real_share_actor"]
    assert [(line["arm"], line["step_or_input"]) for line in found] == [
        ("static-0.9", "600"), ("static-0.9", "1200"), ("set-0.9", "600"), ("set-0.9", "1200")
    ]  # fmt: skip


def test_without_noise_nothing_is_drawn(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "study", {"static-0.9": spread(80, 5, 2), "set-0.9": spread(110, 5, 2)})
    runs = load(directory).of(ENV, "set-0.9")
    evidence = load(directory)
    assert draw_real_share(evidence, ENV, Palette(evidence.study.arms)) is None
    assert draw_kept(evidence, ENV) is None
    assert real_share(runs, "actor") is None
    assert kept(runs, "actor") is None
