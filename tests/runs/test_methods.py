"""`sparse-agents methods`: every method on scikit-learn's digits, one file a run, and a table."""

import csv
import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from runs.command import main
from runs.methods.table import as_markdown, rows_of
from runs.methods.training import Task, Training, train

SMALL = ["methods", "--sparsities", "0.8", "--hidden", "24,24", "--seeds", "1", "--epochs", "1", "--topologies"]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["methods", *arguments]) == 2
    return capsys.readouterr().err


def test_table_by_hand() -> None:
    def run(accuracy: float, seconds: float, reached: float | None) -> dict:
        measured = {"seconds": seconds, "seconds_to_target": reached}
        return {"accuracy": accuracy, "measured": measured, "nnz": 1200, "bytes": 2_500_000, "flops": 3e12}

    runs = [("rigl", 0.9, run(0.96, 10, 4.0)), ("rigl", 0.9, run(0.98, 12, None)), ("gmp", 0.9, run(0.5, 1, None))]
    rigl, gmp = rows_of(runs)
    assert (rigl.accuracy, rigl.seeds, rigl.reached, rigl.seconds_to_target, rigl.seconds) == (0.97, 2, 1, 4.0, 11)
    assert (gmp.accuracy_std, gmp.seconds_to_target) == (None, None)
    assert (rigl.explored, rigl.distance, rigl.sigma) == (None, None, None)  # recorded by earlier versions
    topology = {"explored": [0.1, 0.3], "topology_distance": [[0, 0], [0.5, 0.2]], "small_world": {"sigma": 1.5}}
    (row,) = rows_of([("set", 0.9, {**run(0.9, 1, None), "measures": topology})])
    assert (row.explored, row.distance, row.sigma) == (0.3, 0.5, 1.5)
    table = as_markdown([rigl, gmp])
    assert "| rigl | 90 % | 97.00 ± 1.41 | 4.0 (1 of 2) | 11.0 | 1,200 | 2.50 MB | 3 T |" in table
    assert "| gmp * | 90 % | 50.00 | never | 1.0 |" in table
    assert "dense by nature: gmp begins with every connection" in table


def test_finished_runs_are_kept_and_the_same_seed_gives_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    assert main([*SMALL, "set,rigl:grow_mix=0.5", "--out", str(first)]) == 0
    names = {"dense-0", "small-dense-0.8", "static-0.8", "set-0.8", "rigl-grow_mix=0.5-0.8"}
    assert {path.stem.removesuffix("-seed0") for path in first.glob("*.json")} == names
    with (first / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["topology"] for row in rows] == ["dense", "small-dense", "static", "set", "rigl:grow_mix=0.5"]
    counts = {row["topology"]: int(row["nnz"]) for row in rows}
    cells = 64 * 24 + 24 * 24 + 24 * 10
    assert counts["static"] == counts["set"] == cells - round(0.8 * cells)
    assert abs(counts["small-dense"] - counts["set"]) < 60
    assert "| set | 80 % |" in capsys.readouterr().out
    assert [row["explored"] != "" for row in rows] == [False, False, False, True, True]
    results = {name: json.loads((first / f"{name}-0.8-seed0.json").read_text()) for name in ("set", "static")}
    small = json.loads((first / "small-dense-0.8-seed0.json").read_text())
    asked = [(each["topology"], each["sparsity"]) for each in (results["set"], results["static"], small)]
    assert asked == [("set", 0.8), ("static", 0.8), ("small-dense", 0.8)]
    assert small["sparsity_reached"] == 0 < results["set"]["sparsity_reached"] == pytest.approx(0.8, abs=1e-3)
    assert results["static"]["measures"]["topology_distance"] == results["static"]["measures"]["explored"] == []
    found = results["set"]["measures"]
    # One change, at the end of the epoch.
    assert found["topology_distance"][:3] == [[0, 0]] * 3
    assert 0 < found["topology_distance"][3][0] == found["topology_distance"][3][1] < 1
    assert found["explored"] == sorted(found["explored"])
    assert found["explored"][0] == pytest.approx(0.2, abs=1e-3)
    assert 0.21 < found["explored"][-1] < 0.4
    for result in results.values():
        assert len(result["measures"]["gradient_flow"]) == len(result["validation"])
        assert all(flow > 0 for flow in result["measures"]["gradient_flow"][-1].values())
        assert result["measures"]["small_world"]["sigma"] == pytest.approx(1, abs=0.3)
    for path in first.glob("*-seed0.json"):  # digits have 355 test and 140 validation images
        written = json.loads(path.read_text())
        for images, shares in ((355, [written["accuracy"]]), (140, written["validation"])):
            right = images * np.array(shares)
            assert right == pytest.approx(right.round(), abs=1e-4), path.name
    # A run that is there is not trained again; one that is not, is, and comes out the same.
    kept, again = first / "static-0.8-seed0.json", first / "set-0.8-seed0.json"
    stamp, before = kept.stat().st_mtime_ns, json.loads(again.read_text())
    again.unlink()
    assert main([*SMALL, "set,rigl:grow_mix=0.5", "--out", str(first)]) == 0
    assert kept.stat().st_mtime_ns == stamp
    after = json.loads(again.read_text())
    assert {key: each for key, each in after.items() if key != "measured"} == {
        key: each for key, each in before.items() if key != "measured"
    }


def test_images_say_where_connections_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for name in ("correlated", "brf:r=0.1", None):
        out = tmp_path / str(name)
        assert main([*SMALL, "static", "--out", str(out), *(["--initial-topology", name] if name else [])]) == 0
        found[name] = json.loads((out / "static-0.8-seed0.json").read_text())
        assert found[name]["training"].get("initial_topology") == name  # runs of before had no such setting
        assert found[name]["nnz"] == found["correlated"]["nnz"]
    assert len({each["accuracy"] for each in found.values()}) == 3
    wrong = fails(capsys, *SMALL[1:], "static", "--out", str(tmp_path / "correlated"))
    assert "was trained otherwise" in wrong
    out = ["--out", str(tmp_path / "never")]
    assert "option 'r' of initial topology 'brf' must be in" in fails(capsys, "--initial-topology", "brf:r=9", *out)
    assert not (tmp_path / "never").exists()


def test_masked_methods_are_in_the_table_with_what_they_execute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["top-kast", "sr-ste", "trainable-threshold"]
    assert main([*SMALL, ",".join(names), "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    with (tmp_path / "table.csv").open() as file:
        rows = {row["topology"]: row for row in csv.DictReader(file)}
    cells = 64 * 24 + 24 * 24 + 24 * 10
    assert int(rows["top-kast"]["nnz"]) == int(rows["static"]["nnz"]) == cells - round(0.8 * cells)
    assert (int(rows["sr-ste"]["nnz"]), rows["sr-ste"]["sparsity"]) == (cells // 2, "0.5")  # its own, whatever is asked
    assert all(rows[name]["flops"] == rows["dense"]["flops"] for name in names)
    assert all(int(rows[name]["bytes"]) > int(rows["dense"]["bytes"]) for name in names)
    assert "| top-kast * |" in table


def test_mistakes_are_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "never")]
    assert "no topology called 'sett'; did you mean 'set'?" in fails(capsys, "--topologies", "sett", *out)
    assert "`sparsities` must be a comma list of numbers in [0, 1), got '1.5'" in fails(
        capsys, "--sparsities", "1.5", *out
    )
    assert "`hidden` must be a comma list of positive widths such as 400,400, got '4x4'" in fails(
        capsys, "--hidden", "4x4", *out
    )
    assert "takes its connections from another run" in fails(capsys, "--topologies", "final-topology", *out)
    assert not (tmp_path / "never").exists()
    (tmp_path / "dense-0-seed0.json").write_text('{"format": "something else"}')
    assert "is no run of this program's `methods`" in fails(capsys, "--out", str(tmp_path))


def test_the_target_is_reached_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks, looks = count(), iter([0.1, 0.97, 0.5, 0.99, 0.9])
    # A second passes between two looks at the clock, so that each quarter of an epoch takes one.
    monkeypatch.setattr("runs.methods.training.time.process_time", lambda: float(next(ticks)))
    monkeypatch.setattr("runs.methods.training.accuracy", lambda *_: next(looks))
    images = torch.rand(40, 4), torch.arange(40) % 2
    training = Training((4,), epochs=1, batch_size=10, learning_rate=1e-3, target=0.97)
    found = train(Task(images, images, images, 2), training, "dense", 0.0, 0, lambda: None)
    assert found["measured"] == {"seconds": 4, "seconds_to_target": 2}
    assert found["accuracy"] == 0.9  # the last, of test images
