"""`demo`: what a newcomer sees first."""

import json
from pathlib import Path

import pytest
from tiny_runs import main

import runs.demo
from runs.curve import draw_curve

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(runs.demo, "STEPS", 100)  # ends before learning begins
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "demo-2"):
        assert main("demo") == 0
        output = capsys.readouterr().out
        directory = tmp_path / "results" / name
        assert f"into results/{name}" in output
        assert "random" in output
        assert "sparse TD3 (set)" in output
        assert (directory / "curve.png").read_bytes().startswith(PNG)
        assert (directory / "result.json").exists()


def test_a_curve(finished: Path, tmp_path: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    path = draw_curve(tmp_path, result, chance=-280.0)
    assert path == tmp_path / "curve.png"
    assert path.read_bytes().startswith(PNG)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "demo"
    assert main("demo", "--out", directory) == 0
    result = json.loads((directory / "result.json").read_text())
    assert result["topology_changes"] >= 10
    assert result["steps"] == 30_000
    assert result["sparsity"] == pytest.approx(0.9, abs=1e-3)
    output = capsys.readouterr().out
    assert "changes" in output
    assert "90.0%" in output
    assert f"curve in {directory}" in output.replace("\n", "")
    assert (directory / "curve.png").read_bytes().startswith(PNG)
