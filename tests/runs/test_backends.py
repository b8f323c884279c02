"""What multiplies is settled when a run starts, stands in its config, and never changes: else sums would."""

import json
import os
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import assert_equal_runs, checkpoint, flags, in_a_fork, main, result_of, start, train, wait_for

from runs.scoring import Scorer
from sparse_core import SparseLinear, crossover

pytestmark = pytest.mark.end_to_end

LAYERS = ["actor.mu.0", "actor.mu.2", "critic.qf0.0", "critic.qf0.2", "critic.qf1.0", "critic.qf1.2"]
MIXED = dict(zip(LAYERS, ["csr", "gemm"] * 3, strict=True))


def mixed(layer: SparseLinear, batch_size: int, names: Sequence[str]) -> dict[str, float]:
    """A stopwatch that has `gemm` win in square layers and `csr` in others."""
    return {"gemm": 0.5 if layer.in_features == layer.out_features else 2.0, "csr": 1.0}


def never(*_: Any) -> Any:
    raise AssertionError("measured")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSE_AGENTS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose layers have settled on two backends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossover, "measure", mixed)
        patch.setenv("SPARSE_AGENTS_CACHE", str(tmp_path_factory.mktemp("cache")))
        return train(tmp_path_factory.mktemp("settled") / "run")


def killed(directory: Path, **changes: Any) -> None:
    """A run that was killed in its first evaluation, with one checkpoint."""

    def work() -> None:
        setattr(Scorer, "score", lambda *_: os.kill(os.getpid(), signal.SIGKILL))  # noqa: B010
        os._exit(main(*flags(directory, **changes)))

    assert in_a_fork(work) == -signal.SIGKILL
    assert checkpoint(directory, 300).exists()


def backends_of(directory: Path) -> Any:
    return json.loads((directory / "config.json").read_text())["backends"]


@pytest.mark.parametrize("backend", ["csr", "gemm", pytest.param("rows", marks=pytest.mark.slow)])
def test_exact_resume(backend: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossover, "measure", never)
    whole, part = train(tmp_path / "whole", backend=backend, steps=500), tmp_path / "part"
    killed(part, backend=backend, steps=500)
    assert main("resume", part) == 0
    assert_equal_runs(part, whole)
    assert backends_of(part) == result_of(part)["backends"] == dict.fromkeys(LAYERS, backend)
    assert not cache.exists()


def poison(cache: Path) -> None:
    """Let the cache say the opposite of what was found."""
    (file,) = cache.iterdir()
    found = json.loads(file.read_text())
    for seconds in found["seconds"].values():
        seconds["gemm"], seconds["csr"] = seconds["csr"], seconds["gemm"]
    file.write_text(json.dumps(found))


def remove(cache: Path) -> None:
    (file,) = cache.iterdir()
    file.unlink()


@pytest.mark.parametrize("harm", [poison, pytest.param(remove, marks=pytest.mark.slow)])
def test_exact_resume_of_what_was_settled(
    harm: Callable[[Path], None], settled: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossover, "measure", mixed)
    directory = tmp_path / "run"
    killed(directory, backend="auto")
    harm(cache)
    monkeypatch.setattr(crossover, "measure", never)
    assert main("resume", directory) == 0
    assert_equal_runs(directory, settled)
    assert backends_of(directory) == result_of(directory)["backends"] == MIXED


@pytest.mark.slow
def test_exact_resume_of_another_process(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured for real, and killed for real."""
    directory = tmp_path / "run"
    with start(*flags(directory, steps=700)) as process:
        wait_for(checkpoint(directory, 300).exists, process)
        process.kill()
    monkeypatch.setattr(crossover, "measure", never)
    whole = train(tmp_path / "whole", steps=700)  # the cache knows
    remove(cache)
    assert main("resume", directory) == 0
    assert_equal_runs(directory, whole)
    assert set(backends_of(directory).values()) <= {"gemm", "csr"}


def test_evaluate_and_export_measure_nothing(
    settled: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossover, "measure", never)
    assert main("evaluate", settled, "--episodes", "1") == 0
    for to in ("dense-state-dict", "sb3", "onnx"):
        assert main("export", settled, "--to", to, "--out", tmp_path / to) == 0
    assert not cache.exists()


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("backends"), "does not say what multiplies in each layer (`backends`); restore"),
        (lambda config: config.update(backends="csr"), "does not say what multiplies in each layer"),
        (
            lambda config: config["backends"].update({"actor.mu.0": "gem"}),
            "has unknown backends (actor.mu.0 = 'gem'; known: gemm, csr, rows); restore the file as the run wrote it",
        ),
        (lambda config: config["backends"].update({"actor.mu.0": "auto"}), "(actor.mu.0 = 'auto'; known: "),
        (lambda config: config["backends"].update({"actor.mu.0": ["csr"]}), "(actor.mu.0 = ['csr']; known: "),
        (lambda config: config["backends"].update({"actor.mu.1": "csr"}), "and nothing else (unknown: actor.mu.1)"),
        (lambda config: config["backends"].pop("actor.mu.0"), "and nothing else (missing: actor.mu.0)"),
    ],
)
@pytest.mark.parametrize("command", [["resume"], ["evaluate"], ["export", "--to", "sb3"]], ids=lambda words: words[0])
def test_a_config_with_wrong_backends(
    change: Callable[[dict[str, Any]], Any], message: str, command: list[str], unfinished: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    edit(unfinished / "config.json", change)
    capsys.readouterr()
    assert main(command[0], unfinished, *command[1:]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith(f"sparse-agents: {unfinished / 'config.json'} ")
    assert message in line


def test_a_backend_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(*flags(tmp_path / "run", backend="autp")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"sparse-agents: no backend called 'autp'; did you mean 'auto'\? known: .*", line)
    assert not (tmp_path / "run").exists()


def test_the_list_of_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("list", "backends") == 0
    assert capsys.readouterr().out.split() == ["gemm", "csr", "rows", "auto"]


def test_a_run_from_before_layers_were_settled_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = train(tmp_path / "run", backend="gemm")
    edit(directory / "config.json", lambda config: config.pop("backends"))
    (directory / "result.json").rename(tmp_path / "result.json")
    assert main("resume", directory) == 0
    assert main("evaluate", directory, "--episodes", "1") == 0
    expected = json.loads((tmp_path / "result.json").read_text())
    assert result_of(directory)["curve"] == expected["curve"]
