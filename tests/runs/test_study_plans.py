"""From the flags of `compare` to arms and runs, without doing any."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import main

from runs.failure import UserError
from runs.flags import AgentFlags
from runs.options import Compare
from runs.seeds import parse_seeds
from runs.small_dense import agent_weights, small_hidden
from runs.studies import speed
from runs.studies.agents import arms, settle
from runs.studies.jobs import job
from runs.studies.plan import Arm, Cell, Study, read_study
from runs.studies.speed import Speed
from runs.studies.states import attempts, error_of, progress_of, state_of, write_failure

ENV = "HalfCheetah-v5"


def made(**flags: Any) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms(Compare(**flags))}


def arm(name: str = "static-0.9", method: str = "static", **settings: Any) -> Arm:
    return Arm(name, method, {ENV: {"steps": 100, "hidden": [8], **settings}})


def study(*given: Arm, seeds: list[int] | None = None, groups: list[str] | None = None) -> Study:
    return Study("agents", groups or [ENV], list(given) or [arm()], seeds or [0, 1], [["sparse-agents", "compare"]])


# Arms


def test_grid_has_dense_once_and_every_method_at_every_sparsity() -> None:
    found = made(topologies="dense,static,set", sparsities="0.5,0.9", small_dense=True)
    assert [*found] == [
        "dense", "small-dense-0.5", "static-0.5", "set-0.5", "small-dense-0.9", "static-0.9", "set-0.9",
    ]  # fmt: skip
    assert {name: each.method for name, each in found.items()} == {
        "dense": "dense", "static-0.5": "static", "set-0.5": "set", "static-0.9": "static", "set-0.9": "set",
        "small-dense-0.5": "small-dense", "small-dense-0.9": "small-dense",
    }  # fmt: skip
    assert found["set-0.9"].settings[ENV]["sparsity"] == 0.9
    assert found["dense"].settings[ENV]["sparsity"] == 0
    assert all(each.settings[ENV]["final_episodes"] == 100 for each in found.values())
    assert "seed" not in found["dense"].settings[ENV]


def test_flags_of_train_hold_for_every_arm_and_an_arms_own_beat_them() -> None:
    found = made(
        topologies="dense", learning_rate=0.5, hidden="32,32",
        arm=("wide --hidden 512,512 --topology static --sparsity 0.97", "quick --learning-rate 0.1 --topology dense"),
    )  # fmt: skip
    shown = {name: (each.settings[ENV]["hidden"], each.settings[ENV]["learning_rate"]) for name, each in found.items()}
    assert shown == {"dense": ([32, 32], 0.5), "wide": ([512, 512], 0.5), "quick": ([32, 32], 0.1)}
    assert found["wide"].settings[ENV]["sparsity"] == 0.97


def test_every_environment_has_its_own_settings() -> None:
    found = made(
        env="HalfCheetah-v5,Ant-v5", presets="ds-td3-2022", sparsities="0.9", topologies="set", small_dense=True
    )
    assert found["set-0.9"].settings["Ant-v5"]["distribution"] == "er:40,64"
    assert found["set-0.9"].settings[ENV]["distribution"] == "er:7,64"
    widths = {env: found["small-dense-0.9"].settings[env]["hidden"] for env in (ENV, "Ant-v5")}
    assert widths == {ENV: [74, 74], "Ant-v5": [56, 56]}


def test_several_presets_name_the_arms() -> None:
    assert [*made(presets="td3,ds-td3-2022", topologies="dense,set")] == [
        "td3-dense", "td3-set-0.9", "ds-td3-2022-dense", "ds-td3-2022-set-0.5",  # each as sparse as it says
    ]  # fmt: skip


def test_final_topology_names_the_arm_it_comes_from() -> None:
    assert made(topologies="srigl,final-topology")["final-topology-0.9"].of == "srigl-0.9"
    found = made(topologies="static,set,rigl,final-topology,final-topology:rigl")
    assert {name: each.of for name, each in found.items() if each.of} == {
        "final-topology-0.9": "set-0.9", "final-topology-of-rigl-0.9": "rigl-0.9",
    }  # fmt: skip
    whole = study(*found.values())
    cell = Cell(ENV, found["final-topology-of-rigl-0.9"], 3)
    told = job(whole, cell, Path("S"))  # workers of a cluster may stand elsewhere
    assert told["topology_from"] == str(Path("S/HalfCheetah-v5/rigl-0.9/seed-3").absolute())
    assert told["directory"] == str(Path("S/HalfCheetah-v5/final-topology-of-rigl-0.9/seed-3").absolute())
    assert cell.path == Path("HalfCheetah-v5/final-topology-of-rigl-0.9/seed-3")


def test_what_is_said_of_sparse_arms_does_not_reach_dense_ones() -> None:
    found = made(topologies="dense,set", actor_sparsity=0.5, critic_sparsity=0.8)
    shown = {
        name: (each.settings[ENV]["actor_sparsity"], each.settings[ENV]["critic_sparsity"])
        for name, each in found.items()
    }
    assert shown == {"dense": (0, 0), "set": (0.5, 0.8)}
    assert [*made(topologies="dense,static", input_sparsity=0.7)] == ["dense", "static"]
    assert made(topologies="dense,set", presets="anf")["set"].settings[ENV]["input_sparsity"] == 0.8
    found = made(topologies="dense,set", distribution="epsilon:epsilon=20")
    assert found["dense"].settings[ENV]["sparsity"] == 0 < found["set"].settings[ENV]["sparsity"]


def test_a_topology_with_options_is_an_arm() -> None:
    found = made(topologies="set,set:ages=false", sparsities="0.8")
    assert {name: each.method for name, each in found.items()} == {
        "set-0.8": "set",
        "set-ages-false-0.8": "set:ages=false",
    }


def test_seconds_become_steps() -> None:
    # 1,000 random steps of 1 ms take a second; 10 ms each from there on.
    speed, settings = Speed(0.001, 0.01, 0.1, 1, 1), {"learning_starts": 1_000, "eval_every": 5_000}
    assert [speed.steps_in(seconds, settings) for seconds in (2, 31, 61)] == [1_100, 4_000, 7_000]
    with pytest.raises(ValueError, match="`seconds` 1 end before learning begins: 1,000 steps of random actions take"):
        speed.steps_in(1, settings)


def test_small_dense_by_hand() -> None:
    # 3 observations, 1 action, hidden h-h: actor 3h + h² + h, critic 4h + h² + h each: 3h² + 14h in all.
    assert agent_weights([2, 2], 3, 1) == (12, 14)
    assert small_hidden([256, 256], 40, 3, 1) == [2, 2]  # 3·4 + 28
    assert small_hidden([256, 256], 53, 3, 1) == [2, 2]  # as far from 40 as from 69 is 54.5
    assert small_hidden([256, 256], 56, 3, 1) == [3, 3]
    assert small_hidden([400, 200], 10**6, 3, 1)[0] == pytest.approx(
        2 * small_hidden([400, 200], 10**6, 3, 1)[1], abs=1
    )


def test_backends_are_settled_for_arms_that_wait_for_their_topology() -> None:
    found = made(topologies="set,final-topology", sparsities="0.6", hidden="16,16", batch_size=8)
    backends = settle(found["final-topology-0.6"], ENV, 0)
    assert set(backends) == {f"{net}.{layer}" for net in ("actor.mu", "critic.qf0", "critic.qf1") for layer in (0, 2)}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env", "HalfCheeta-v5"], "no environment called 'HalfCheeta-v5'; did you mean"),
        (["--env", "Hopper-v5,,"], "`env` must be a comma list of different names, got 'Hopper-v5,,'"),
        (["--topologies", "sett"], "no topology called 'sett'; did you mean 'set'?"),
        (["--topologies", "static,final-topology"], "takes the last topology of a method that searches, which must be"),
        (["--topologies", "static,set:rigl"], "takes its topology from nobody; leave 'rigl' out"),
        (["--sparsities", "0.9,x"], "`sparsities` must be a comma list of different numbers in [0, 1), got '0.9,x'"),
        (["--sparsities", "1.5"], "sparsity"),
        (["--seeds", "3,3"], "`seeds` must be different whole numbers below 4294966296, got '3,3'; name each once"),
        (["--seeds", "4294966296,"], "`seeds` must be different whole numbers below"),
        (
            ["--small-dense", "--input-sparsity", "0.5"],
            "`small_dense` is as large as a network of one of the `sparsities`",
        ),
        (["--arm", "x --topology final-topology"], "takes its topology from another arm; name it in --topologies"),
        (
            ["--arm", "it's --topology set"],
            '`arm` must be a name and flags, got "it\'s --topology set": no closing quo',
        ),
        (["--seeds", "-1"], "`seeds` must be a number of seeds such as 5"),
        (["--presets", "ds"], "no preset called 'ds'"),
        (["--arm", "dense --topology static"], "arms must differ"),
        (["--arm", "../x --topology static"], "arm '../x' must be made of letters, digits and -_.+"),
        (["--workers", "0"], "`workers` must be at least 1, got 0"),
        (["--seconds", "-3"], "`seconds` must be a positive number, got -3.0"),
        (["--threads-per-worker", "0"], "`threads` must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    assert main("compare", "--out", out, *flags) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_every_flag_of_training_is_one_of_comparing() -> None:
    assert {*AgentFlags.__dataclass_fields__} <= {*Compare.__dataclass_fields__}


# Plans


def test_all_arms_get_five_seeds_before_any_gets_a_sixth() -> None:
    whole = study(arm("a"), arm("b"), seeds=[*range(7)])
    order = [(cell.arm.name, cell.seed) for cell in whole.cells()]
    assert order == [(name, seed) for seed in range(7) for name in "ab"]
    assert [cell.name for cell in study(arm("a")).cells()] == [f"{ENV} a seed 0", f"{ENV} a seed 1"]


def test_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    settings = {"steps": 7, "sparsity": 0.0, "hidden": [8], "norm": "none", "preset": "td3"}
    whole = study(Arm("b", "small-dense", {ENV: settings}, {ENV: {"actor.mu.0": "csr"}}, None, 0.9))
    whole.write(tmp_path, "")
    assert read_study(tmp_path) == whole
    replace(whole, seeds=[3, 0, 3]).write(tmp_path, "")
    assert read_study(tmp_path).seeds == [3, 0]  # one run is not two
    study(Arm("b", "static", {ENV: {**settings, "hidden": 8}})).write(tmp_path, "")
    with pytest.raises(
        UserError, match=r"is damaged \(`arms\[0\].settings.HalfCheetah-v5.hidden` must be a list, got 8"
    ):
        read_study(tmp_path)


def test_study_grows_by_seeds_arms_and_environments() -> None:
    old = study(arm("a"), seeds=[0, 1])
    new = Study("agents", [ENV, "Ant-v5"], [arm("a"), arm("b")], [1, 2], [["sparse-agents", "compare", "--more"]])
    grown = old.extended(new, Path("S"))
    assert (grown.seeds, grown.groups) == ([0, 1, 2], [ENV, "Ant-v5"])
    assert [each.name for each in grown.arms] == ["a", "b"]
    assert len(grown.commands) == 2
    assert grown.extended(new, Path("S")).commands == grown.commands
    part = grown.narrowed(study(arm("b"), seeds=[2]))
    assert [cell.path for cell in part.cells()] == [Path(f"{ENV}/b/seed-2")]


def test_where_data_lie_and_how_often_is_saved_may_change() -> None:
    old, new = study(arm(checkpoint_every=5)), study(arm(checkpoint_every=7), seeds=[2])
    grown = old.extended(new, Path("S"))
    assert (grown.arms[0].settings[ENV]["checkpoint_every"], grown.seeds) == (7, [0, 1, 2])
    with pytest.raises(
        UserError, match="device = 'cuda', now it is 'cpu'; give the command it was begun with and --dev"
    ):
        study(arm(device="cuda")).extended(study(arm(device="cpu")), Path("S"))


def test_study_that_contradicts_its_beginning() -> None:
    with pytest.raises(
        UserError, match=r"arm 'static-0\.9' of S was begun with steps = 100, now it is 200; give the comm"
    ):
        study(arm()).extended(study(arm(steps=200)), Path("S"))
    then, now = (replace(arm("last", "final-topology"), of=of) for of in ("set-0.9", "srigl-0.9"))
    with pytest.raises(UserError, match=r"begun with the last topology of = 'set-0\.9', now it is 'srigl-0\.9'; give"):
        study(then).extended(study(now), Path("S"))
    with pytest.raises(UserError, match="S is a study of agents, not of continual; choose another --out"):
        study().extended(Study("continual", ["digits"], [], [0], [[]]), Path("S"))


def test_seeds() -> None:
    assert parse_seeds("3") == [0, 1, 2]
    assert parse_seeds("3,7") == [3, 7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no study"),
        ("{", "is damaged"),
        ("{}", "is not a plan of this program's version"),
        ('{"format": "sparse-agents-study", "version": 1}', "is damaged"),
    ],
)
def test_directory_that_is_no_study(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "study.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_study(tmp_path)


# States


def test_state_is_told_by_the_files(tmp_path: Path) -> None:
    cell = next(study().cells())
    assert state_of(tmp_path, cell) == "new"
    assert progress_of(tmp_path, cell).done == 0
    run = tmp_path / cell.path
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    assert state_of(tmp_path, cell) == "half-done"
    (run / "metrics.jsonl").write_text(
        '{"kind": "eval", "step": 40, "mean_return": 2.5}\n{"kind": "episode", "step": 60}\n{"ki'
    )
    progress = progress_of(tmp_path, cell)
    assert (progress.done, progress.total, progress.score) == (60, 100, 2.5)
    write_failure(tmp_path, cell, "diverged", 1)
    write_failure(tmp_path, cell, "diverged again", 2)
    assert state_of(tmp_path, cell) == "failed"
    assert (error_of(tmp_path, cell), attempts(tmp_path, cell)) == ("diverged again", 2)
    (run / "result.json").write_text("{}")
    assert state_of(tmp_path, cell) == "finished"


RECORDS = Path(__file__).parents[2] / "runs" / "records"


@pytest.mark.parametrize("record", [path.parent.name for path in sorted(RECORDS.glob("*/study.json"))])
def test_a_recorded_study_goes_on_by_its_own_command(
    record: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was begun before some of today's settings were there."""
    shutil.copytree(RECORDS / record, tmp_path / "study")
    plan = read_study(tmp_path / "study")
    monkeypatch.setattr(speed, "measure", lambda *_: Speed(0.001, 0.001, 0.1, 1, 1))
    words = plan.commands[-1][1:]
    words[words.index("--out") + 1] = str(tmp_path / "study")
    assert main(*words, "--dry-run") == 0
    said = capsys.readouterr().out
    finished = len([*(tmp_path / "study").rglob("result.json")])
    assert f"{len([*plan.cells()])} runs: " in said
    assert f", {finished} of them finished" in said
