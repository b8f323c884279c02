"""The command line: what it refuses and how, what it lists, and what it does not import."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tiny_runs import ROOT, flags, main, start

import envs
import runs.command
from agents import AGENT_PRESETS
from continual.benchmarks import BENCHMARKS, summary_of
from continual.catalogue import strategy_names
from runs.failure import UserError
from runs.listing import TABLES
from runs.options import Command
from sparse_core import (
    BACKENDS,
    BIRTHS,
    COURSES,
    DISTRIBUTIONS,
    DROP_RULES,
    GROW_RULES,
    INITIAL_TOPOLOGIES,
    MASKINGS,
    PRESETS,
    REDISTRIBUTIONS,
    SCHEDULES,
)

BAD: list[tuple[dict[str, Any], str]] = [
    (dict(sparsity=1.0), "`sparsity` must be a number in [0, 1)"),
    (dict(sparsity=-0.1), "got -0.1"),
    (dict(sparsity="nan"), "got nan"),
    (dict(actor_sparsity=2), "got 2.0"),
    (dict(sparsity=0.95), "`sparsity` 0.95 cannot be met: of 480 connections 48 are in layers kept dense"),
    (dict(topology="rigel"), "no topology called 'rigel'; did you mean 'rigl'?"),
    (dict(topology="dense", sparsity=0.5), "topology 'dense' keeps every connection, got sparsity 0.5"),
    (dict(env="halfcheetah-v5"), "no environment called 'halfcheetah-v5'; did you mean 'HalfCheetah-v5'?"),
    (dict(env="HalfCheetah"), "did you mean 'HalfCheetah-v"),
    (dict(env="nowhere:Thing-v0"), "asks for the module 'nowhere', which cannot be imported"),
    (dict(env="CartPole-v1"), "the actions of 'CartPole-v1' must be a Box of real numbers, got Discrete(2)"),
    (dict(preset="ds-td3"), "no preset called 'ds-td3'; did you mean 'ds-td3-2022'?"),
    (dict(distribution="ekr"), "no distribution called 'ekr'; did you mean 'er"),
    (dict(distribution="er:1,2,3"), "must give one positive factor for each of the 2 sparse layers"),
    (dict(schedule="cosin"), "no schedule called 'cosin'; did you mean 'cosine'?"),
    (dict(init="fanin"), "no initialisation called 'fanin'; did you mean 'fan-in'?"),
    (dict(backend="gem"), "no backend called 'gem'; did you mean 'gemm'?"),
    (dict(steps=-5), "`steps` must be at least 1, got -5"),
    (dict(steps=0), "`steps` must be at least 1, got 0"),
    (dict(steps="many"), "Error parsing --steps"),
    (dict(seed=-1), "`seed` must be"),
    (dict(seed=2**32), "`seed` must be below"),
    (dict(batch_size=701), "`batch_size` must not exceed `buffer_size`, got 701 > 700"),
    (dict(batch_size=0), "`batch_size` must be at least 1, got 0"),
    (dict(buffer_size=10**15), "not enough memory: Unable to allocate"),
    (dict(hidden="10000000,10000000"), "not enough memory: the networks do not fit"),
    (dict(hidden="16,0"), "`hidden` must be a comma list of positive widths such as 256,256, got '16,0'"),
    (dict(hidden="16,-16"), "got '16,-16'"),
    (dict(hidden="16,,16"), "`hidden` must be a comma list without gaps, got '16,,16'"),
    (dict(hidden="wide"), "got 'wide'"),
    (dict(hidden="16.5"), "got '16.5'"),
    (dict(hidden=""), "got ''"),
    (dict(dense="middle"), "`dense` names no layer with 'middle'"),
    (dict(learning_rate="nan"), "`learning_rate` must be a finite number ≥ 0, got nan"),
    (dict(learning_rate=-1), "`learning_rate` must be a finite number ≥ 0, got -1.0"),
    (dict(learning_starts=-1), "`learning_starts` must be"),
    (dict(drop_fraction=1.5), "`drop_fraction` must be in [0, 1], got 1.5"),
    (dict(stop=2), "`stop` must be a share"),
    (dict(period=0), "`period` must be a whole number of at least 1, got 0"),
    (dict(capture_batches=0), "`capture_batches` must be a whole number of at least 1, got 0"),
    (dict(eval_every=0), "`eval_every` must be at least 1, got 0"),
    (dict(eval_episodes=0), "`eval_episodes` must be at least 1, got 0"),
    (dict(checkpoint_every=0), "`checkpoint_every` must be at least 1, got 0"),
    (dict(threads=0), "`threads` must be at least 1, got 0"),
    (dict(threads=10**6), "`threads` must be at most 1024, got 1000000"),
    (dict(device="gpu"), "`device` must be cpu, cuda or auto, got 'gpu'"),
    (dict(device="cuda:99"), "`device` 'cuda:99'"),
    (dict(spasity=0.5), "nrecognized"),
]


@pytest.mark.parametrize(
    ("changes", "message"), BAD, ids=[" ".join(f"{name}={value}" for name, value in case.items()) for case, _ in BAD]
)
def test_refused(
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(*flags(tmp_path / "run", **changes)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    if output.err.startswith("sparse-agents: "):
        assert output.err.count("\n") == 1
    else:
        assert "For full helptext" in output.err  # the parser's own, in a box
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(*flags(tmp_path / "run", device="cuda")) == 2
    assert "'cuda' wants a CUDA GPU, and torch sees none here; take --device cpu" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_directories_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    for out, message in [
        (tmp_path / "full", "full is not empty; choose another --out\n"),  # nothing there could be resumed
        (tmp_path / "run", f"or continue the run there with `sparse-agents resume {tmp_path / 'run'}`"),
        (tmp_path / "full" / "letter", "is a file; choose another --out"),
        (tmp_path / "full" / "letter" / "run", "Not a directory; choose another directory"),
        (Path("/proc/run"), "cannot write /proc/run: "),  # read-only, for root too
        (Path("/sys/run"), "cannot write /sys/run: "),
    ]:
        assert main(*flags(out)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_directory_will_do(tmp_path: Path) -> None:
    assert main(*flags(tmp_path, steps=3)) == 0
    assert (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume", "none"], "none is not a directory; give the directory of a run"),
        (["resume", "."], "no config of a run at config.json; check the path"),
        (["evaluate", "none"], "none is not a directory"),
        (["export", ".", "--to", "onnx"], "no config of a run at config.json"),
        (["export", ".", "--to", "tflite"], "invalid choice 'tflite'"),
        (["list", "everything"], "invalid choice 'everything'"),
        (["evaluate", ".", "--episodes", "0"], "`episodes` must be at least 1, got 0"),
        (["evaluate", ".", "--seed", "-1"], "`seed` must be at least 0, got -1"),
        (["evaluate", ".", "--video", "none/film.mp4"], "cannot write none/film.mp4: its directory does not exist"),
        (["evaluate", ".", "--video", "film.gif"], "`video` must end in .mp4, got 'film.gif'"),
        (["trian"], "rian"),
        ([], "subcommand"),
    ],
)
def test_refused_by_the_others(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(*arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_is_not_there(finished: Path, unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["resume", unfinished], ["evaluate", finished, "--episodes", "1"]):
        assert main(*arguments, "--step", "7") == 2
        assert "no checkpoint of step 7 in " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("algos", ["sac", "td3"]),
        ("topologies", PRESETS),
        ("drop", DROP_RULES),
        ("grow", GROW_RULES),
        ("distributions", DISTRIBUTIONS),
        ("initial-topologies", INITIAL_TOPOLOGIES),
        ("schedules", SCHEDULES),
        ("courses", COURSES),
        ("births", BIRTHS),
        ("redistributions", REDISTRIBUTIONS),
        ("maskings", MASKINGS),
        ("backends", BACKENDS),
        ("envs", envs.names()),
        ("presets", AGENT_PRESETS),
        ("strategies", strategy_names()),
        ("benchmarks", BENCHMARKS),
    ],
)
def test_lists(what: str, names: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main("list", what) == 0
    assert capsys.readouterr().out.splitlines() == list(names)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main("list", what) == 0
    table = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert all(re.search(rf"^  {name}  +\S", table, re.MULTILINE) for name in names)


def test_lists_say_the_options_of_a_part() -> None:
    assert TABLES["births"]()["normal"] == "From N(0, std²), as SET's reference code. [std=0.1]"
    assert TABLES["births"]()["zero"].endswith("(RigL, arXiv:1911.11134).")


def test_benchmarks_are_read_from_the_source_as_they_are() -> None:
    assert TABLES["benchmarks"]() == {name: summary_of(name) for name in BENCHMARKS}


def test_the_example_in_the_help_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--help") == 0
    assert "sparse-agents train td3 --sparsity 0.9" in capsys.readouterr().out


@pytest.mark.parametrize("command", [each.__metadata__[0].name for each in get_args(Command)])
def test_every_option_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command, "--help") == 0
    text = capsys.readouterr().out
    assert "None" not in text
    # An option without help is followed at once by the next one.
    lines = [line.strip("│| ") for line in text.splitlines()]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("--"):
            assert len(line.split()) > 2 or not following.startswith("--"), line


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("what to\n do"), 2, "what to do"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "file"), 2, "Permission denied: file"),
        (MemoryError(), 2, "not enough memory: no more to be had; take a smaller buffer or network"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> int:
        raise error

    monkeypatch.setattr(runs.command, "_run", fail)
    assert main("list", "algos") == code
    assert capsys.readouterr().err == f"sparse-agents: {message}\n"


def test_a_mistake_of_ours_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.command, "_run", lambda _: {}["missing"])
    with pytest.raises(KeyError):
        main("list", "algos")


IMPORTED = """
import sys
from runs.command import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
HEAVY = {"torch", "numba", "stable_baselines3", "gymnasium", "mujoco", "avalanche", "tensorboard", "matplotlib"}


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--help"], set()),
        (["train", "--help"], set()),
        (["bench", "--help"], set()),
        (["continual", "--help"], set()),
        (["list", "strategies"], set()),
        (["list", "benchmarks"], set()),
        (["list", "envs"], {"gymnasium"}),
        (["list", "topologies"], {"torch", "numba"}),
    ],
    ids=[
        "help",
        "train help",
        "bench help",
        "continual help",
        "list strategies",
        "list benchmarks",
        "list envs",
        "list topologies",
    ],
)
def test_imports_no_more_than_it_needs(arguments: list[str], allowed: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert set(done.stderr.split()) & HEAVY <= allowed


@pytest.mark.end_to_end
def test_training_imports_no_avalanche_and_not_torchs_compiler(tmp_path: Path) -> None:
    script = f"""
import sys
from runs.command import main
assert main({flags(tmp_path / "run", steps=120)!r}) == 0
print(*({{"avalanche", "continual", "torch._dynamo"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.end_to_end
def test_in_a_real_process(tmp_path: Path) -> None:
    with start(*flags(tmp_path / "run", sparsity=1.0)) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, "")
    assert errors == (
        "sparse-agents: `sparsity` must be a number in [0, 1), the share of connections left out, got 1.0\n"
    )
    assert list(tmp_path.iterdir()) == []
