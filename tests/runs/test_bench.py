"""The bench: turns are taken, arithmetic is right, peers are what they are called, and the JSON holds it all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch
from tiny_runs import ROOT, main

from runs.bench import rivals
from runs.bench.cases import kernel
from runs.bench.report import table
from runs.bench.rows import PEERS, Row
from runs.bench.session import Session
from runs.bench.timing import Contestant, Effort, measure
from sparse_core import SparseLinear

TINY = Effort(sample_seconds=1e-4, seconds=1e-3, least=2, most=3, longest=0.01)
TICK = 2**-10  # seconds that floats can add up without rounding
CASES = sorted(path.stem for path in (ROOT / "runs" / "bench" / "cases").glob("[!_]*.py"))


class FakeTime:
    """A clock that only work moves, and a diary of who worked how often."""

    def __init__(self) -> None:
        self.now = 0.0
        self.diary: list[tuple[str, int]] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, each: float, first: float = 0.0) -> Callable[[int], None]:
        """Work that takes `each` seconds, and `first` seconds more the first time (a compiler, say)."""

        def run(count: int) -> None:
            began = any(entry == name for entry, _ in self.diary)
            self.diary.append((name, count))
            self.now += each * count + (0.0 if began else first)

        return run


def test_contestants_take_turns() -> None:
    clock = FakeTime()
    contestants = [Contestant(name, clock.work(name, each)) for name, each in (("a", TICK), ("b", 2 * TICK))]
    effort = Effort(sample_seconds=10 * TICK, seconds=40 * TICK, least=2, most=9)
    found = measure(contestants, effort, clock=clock)
    assert clock.diary[-8:] == [("a", 10), ("b", 5)] * 4
    assert found["a"].rates == (1024,) * 4
    assert found["b"].rates == (512,) * 4


def test_slow_ones_get_fewer_samples_spread_over_the_rounds() -> None:
    clock = FakeTime()
    contestants = [Contestant("fast", clock.work("fast", TICK)), Contestant("slow", clock.work("slow", 1.0))]
    effort = Effort(sample_seconds=TICK, seconds=4 * TICK, least=2, most=4)
    found = measure(contestants, effort, clock=clock)
    assert [name for name, _ in clock.diary[-6:]] == ["fast", "fast", "slow", "fast", "fast", "slow"]
    assert (len(found["fast"].rates), len(found["slow"].rates)) == (4, 2)


def test_compilation_and_settling_are_not_timed() -> None:
    clock = FakeTime()
    contestant = Contestant("a", clock.work("a", TICK, first=60), unit=2, warm_up=5, settle=1)
    effort = Effort(sample_seconds=10 * TICK, seconds=20 * TICK, least=1, most=9)
    found = measure([contestant], effort, clock=clock)
    assert clock.diary[0] == ("a", 6)  # three whole units
    assert clock.diary[-4:] == [("a", 1), ("a", 10)] * 2
    assert found["a"].rates == (1024, 1024)


def test_a_sample_is_whole_unless_that_takes_too_long() -> None:
    for longest, count in ((2.0, 1000), (0.5, 300)):
        clock = FakeTime()
        contestant = Contestant("a", clock.work("a", TICK), unit=10, whole=1000)
        effort = Effort(sample_seconds=300 * TICK, seconds=1, least=2, most=2, longest=longest)
        found = measure([contestant], effort, clock=clock)["a"]
        assert (found.count, found.whole) == (count, count == 1000)


def test_a_busy_moment_costs_no_whole_sample() -> None:
    clock = FakeTime()
    quick, slow = clock.work("a", TICK), clock.work("a", 10 * TICK)

    def run(count: int) -> None:
        (slow if 2 <= len(clock.diary) < 4 else quick)(count)

    contestant = Contestant("a", run, unit=10, whole=1000)
    found = measure([contestant], Effort(300 * TICK, seconds=1, least=2, most=2, longest=2), clock=clock)["a"]
    assert (found.count, found.whole) == (1000, True)


def test_progress_adds_up() -> None:
    clock, shares = FakeTime(), []
    contestants = [Contestant(name, clock.work(name, 0.1)) for name in "abc"]
    measure(contestants, Effort(1, 3, 2, 5), clock=clock, advance=shares.append)
    assert sum(shares) == pytest.approx(3)


def test_two_of_one_name_are_refused() -> None:
    clock = FakeTime()
    with pytest.raises(ValueError, match="names of their own"):
        measure([Contestant("a", clock.work("a", 1))] * 2, Effort(1, 1, 1, 1), clock=clock)


def test_medians_quartiles_and_ratio() -> None:
    made = Row("step", 0.9, 256, "dense", raw_ours=[1.0, 30.0, 20.0, 10.0, 40.0], raw_peer=[4.0, 6.0])
    assert (made.ours, made.peer, made.ratio) == (20, 5, 4)
    assert made.as_json(threads=2)["spread"] == {"ours": [10, 30], "peer": [4.5, 5.5]}


def test_small_width_by_hand() -> None:
    # 17-h-h-6 and twice 23-h-h-1: h = 3 has (51 + 9 + 18) + 2 (69 + 9 + 3) = 240 weights, h = 4 has 332.
    assert [rivals.small_width(wanted) for wanted in (0, 240, 285, 287, 332)] == [1, 3, 3, 4, 4]
    small = rivals.ours(rivals.HalfCheetahSpaces(), 0.0, 4, batch_size=2)
    assert rivals.weights(small) == 332


def test_the_small_rival_has_as_many_weights() -> None:
    sparse = rivals.ours(rivals.HalfCheetahSpaces(), 0.9, 64, batch_size=2, backend="csr")
    width = rivals.small_width(rivals.weights(sparse))
    small = rivals.ours(rivals.HalfCheetahSpaces(), 0.0, width, batch_size=2)
    assert rivals.weights(small) == pytest.approx(rivals.weights(sparse), rel=0.1)


def test_rivals_are_unmodified_and_set_alike() -> None:
    env = rivals.HalfCheetahSpaces()
    peer, mine = rivals.stable_baselines(env, 16, 8), rivals.ours(env, 0.5, 16, 8, backend="csr")
    assert type(peer) is stable_baselines3.TD3
    assert type(peer).train.__module__ == "stable_baselines3.td3.td3"
    assert "train" not in vars(peer)
    assert type(peer.actor.optimizer) is torch.optim.Adam
    for name in ("learning_rate", "gamma", "tau", "policy_delay", "batch_size", "buffer_size", "target_policy_noise"):
        assert getattr(peer, name) == getattr(mine, name), name
    for agent in (peer, mine):
        rivals.fill(agent, rows=20)
    assert peer.replay_buffer is not None
    assert mine.replay_buffer is not None
    for name in ("observations", "actions", "rewards"):
        first, second = (getattr(agent.replay_buffer, name)[:20].astype(np.float32) for agent in (peer, mine))
        np.testing.assert_array_equal(first, second)


def test_wrong_products_are_not_timed() -> None:
    layer = SparseLinear(8, 6, bias=False, sparsity=0.5, backend="csr")
    x, dy = torch.randn(8, 5), torch.randn(6, 5)
    kernel.check(kernel.ours(layer, x, dy), layer, x, dy)
    kernel.check(kernel.torch_csr(layer, x, dy), layer, x, dy)
    with pytest.raises(RuntimeError, match="is off by"):
        kernel.check(kernel.ours(layer, x, 2 * dy), layer, x, dy)


def test_torch_without_sparse_products_gives_no_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("Calling addmm on a sparse CPU tensor requires Linux platform\nand more")

    monkeypatch.setattr(kernel, "torch_csr", fail)
    with Session(1) as session:
        rows = kernel.measure(session, TINY, widths=[16], batches=[8], sparsities=[0.5])
    assert [row.peer_name for row in rows] == ["torch-dense"]
    assert "torch cannot do it here (Calling addmm on a sparse CPU tensor requires Linux platform)" in (
        capsys.readouterr().err
    )


SMALL: dict[str, tuple[dict[str, Any], set[str]]] = {
    "kernel": (dict(widths=[16], batches=[8], sparsities=[0.5, 0.9]), {"torch-dense", "torch-csr"}),
    "layer": (dict(widths=[16], batches=[8], sparsities=[0.5]), {"torch-dense"}),
    "update": (dict(width=16, batches=[8], sparsities=[0.0, 0.5]), {"stable-baselines3", "dense", "small-dense"}),
    "width": (dict(widths=[8, 16], sparsities=[0.0, 0.5], batch=8, peer_width=16), {"dense"}),
    "train": (dict(sparsities=[0.5], batch=8, width=16, whole=50), {"stable-baselines3"}),
    "memory": (dict(widths=[32], sparsities=[0.9], agent_sparsities=[0.9]), {"dense"}),
}


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", CASES)
def test_every_bench(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "TRANSITIONS", 100)
    monkeypatch.setattr(rivals, "sbx_is_there", lambda: False)  # its compiler takes ten seconds
    rivals.transitions.cache_clear()
    case = import_module(f"runs.bench.cases.{name}")
    assert case.QUICK.seconds <= case.FULL.seconds
    sizes, peers = SMALL[name]
    with Session(1) as session:
        rows = case.measure(session, TINY, **sizes)
    rivals.transitions.cache_clear()
    assert {row.peer_name for row in rows} == peers <= set(PEERS)
    cases = {(row.what, row.width, row.batch_size, row.sparsity) for row in rows}
    assert table(rows).row_count == len(cases)
    for found in json.loads(json.dumps([row.as_json(threads=1) for row in rows])):
        assert found.keys() >= {
            "what", "sparsity", "batch_size", "width", "threads", "ours", "peer", "peer_name", "ratio", "spread", "raw",
            "backend", "unit",
        }  # fmt: skip
        assert found["ratio"] == found["ours"] / found["peer"] > 0
        assert found["ours"] == np.median(found["raw"]["ours"])
        assert found["peer"] == np.median(found["raw"]["peer"])


def test_bytes_include_ages_and_moments() -> None:
    memory = import_module("runs.bench.cases.memory")
    dense, sparse = memory.dense_network(32), memory.sparse_network(32, 0.5)
    cells = 23 * 32 + 32 * 32 + 32
    assert dense.gradients == dense.parameters == 4 * (cells + 65)  # 65 biases
    assert dense.optimizer == 2 * dense.parameters + 4 * 6  # and torch counts steps for each of six tensors
    assert sparse.optimizer > 3 * 4 * (cells // 2 - 32)  # both moments and an age of each connection that can move
    assert sparse.indices > 0


@pytest.mark.end_to_end
def test_results_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    path.write_text("of last time")
    threads = torch.get_num_threads()
    assert main("bench", "memory", "--json", path, "--threads", "1") == 0
    assert torch.get_num_threads() == threads
    found = json.loads(path.read_text())
    assert found["bench"] == "memory"
    assert found.keys() >= {"machine", "command", "commit", "date", "quick", "rows"}
    assert found["machine"].keys() >= {
        "processor", "cores", "usable_cores", "memory_bytes", "threads", "load_average_before", "versions",
    }  # fmt: skip
    assert found["rows"][0]["ratio"] < 1
    output = capsys.readouterr().out
    assert "network with Adam" in output
    assert f"written to {path}" in output
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["kernel", "--json", "none/bench.json"],
            "cannot write none/bench.json: No such file or directory; create its",
        ),
        (["kernel", "--json", "."], "cannot write .: it is a directory; give --json the name of a file"),
        (["kernel", "--json", "/proc/bench.json"], "cannot write /proc/bench.json"),
        (["kernel", "--threads", "0"], "`threads` must be from 1 to"),
        (["kernel", "--threads", "100000"], "got 100000"),
        (["kernal"], "invalid choice 'kernal'"),
        ([], "required"),
    ],
)
def test_refused_before_anything_runs(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measured(*args: Any) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr(kernel, "measure", measured)
    monkeypatch.chdir(tmp_path)
    assert main("bench", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    if error.startswith("sparse-agents: "):
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("load", "warned"), [(0.4, False), (0.6, True)])
def test_a_busy_machine_is_warned_of(
    load: float, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "getloadavg", lambda: (load * cores, 0, 0))
    row = Row("product", 0.5, 16, "torch-dense", [2.0], [1.0], details={"note": "more to say"})
    monkeypatch.setattr(kernel, "measure", lambda session, effort: [row])
    assert main("bench", "kernel", "--quick") == 0
    output = capsys.readouterr()
    assert ("this machine is busy" in output.err) == warned
    assert "2.00× of 1.00" in output.out
    assert "product, 16 wide, 50 %: more to say" in output.out


@pytest.mark.slow
def test_kernel_bench_as_people_run_it(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    assert main("bench", "kernel", "--quick", "--json", path) == 0
    rows = json.loads(path.read_text())["rows"]
    cases = {(row["width"], row["batch_size"], row["sparsity"], row["peer_name"]) for row in rows}
    assert len(cases) == len(rows) >= 3 * 2 * 5
    dense = [row for row in rows if row["peer_name"] == "torch-dense"]
    ratios = {row["sparsity"]: row["ratio"] for row in dense if (row["width"], row["batch_size"]) == (1024, 256)}
    assert ratios[0.99] > ratios[0.5]
