"""`demo`: what a newcomer sees first."""

from pathlib import Path

import pytest
from tiny_runs import main

import runs.demo


@pytest.mark.slow
def test_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(runs.demo, "STEPS", 100)  # ends before learning begins
    monkeypatch.setattr(runs.demo, "SEEDS", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "demo").mkdir(parents=True)
    assert main("demo") == 0
    output = capsys.readouterr().out
    assert "into results/demo-2" in output
    assert "Does set-0.9 do better than static-0.9? Undecided, one run says nothing about spread" in output
    assert "results/demo-2/report.html" in output
    assert (tmp_path / "results" / "demo-2" / "report.html").is_file()


def test_one_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    wanted = tmp_path / "demo"
    assert runs.demo._free(wanted) == wanted
    wanted.mkdir()
    (wanted / "study.json").write_text("{}")
    assert runs.demo._free(wanted) == wanted
    (wanted / "report.html").write_text("")
    assert runs.demo._free(wanted) == tmp_path / "demo-2"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "demo"
    assert main("demo", "--out", directory) == 0
    said = capsys.readouterr()
    assert "12 finished of 12 runs" in said.err
    for control in ("static-0.9", "small-dense-0.9", "dense"):
        assert f"Does set-0.9 do better than {control}?" in said.out
    assert str(directory / "report.html") in said.out.replace("\n", "")
