"""Checkpoints: bit for bit, in bounded time, and what is said about damaged ones."""

import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_checkpoints import files_of, two_checkpoints, weights
from small_ring import Ring

from runs.checkpoints import CheckpointStore
from runs.failure import UserError

DTYPES = [torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 5)], ids=str)
def test_tensors_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randint(0, 2, shape, generator=generator).to(dtype)
    if dtype.is_floating_point:
        tensor = torch.randn(shape, generator=generator, dtype=dtype)
    # Of odd length, so that what follows it in the file lies askew.
    tensors = {"a": torch.ones(3, dtype=torch.uint8), "b": tensor}
    store = CheckpointStore(tmp_path)
    store.save(5, tensors, {})
    loaded = store.load().tensors
    assert loaded.keys() == tensors.keys()
    for name, wanted in tensors.items():
        got = loaded[name]
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert torch.equal(got.flatten().view(torch.uint8), wanted.flatten().view(torch.uint8))
        assert got.data_ptr() % 64 == 0 or got.numel() == 0


def test_nan_and_minus_zero_are_kept(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    CheckpointStore(tmp_path).save(0, {"odd": odd}, {})
    loaded = CheckpointStore(tmp_path).load().tensors["odd"]
    assert torch.equal(loaded.view(torch.int32), odd.view(torch.int32))


def test_views_and_shared_storage(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(base.clone())
    tensors = {
        "all": base,
        "turned": base.T,
        "row": base[1],
        "one": torch.ones(1).expand(4),
        "grad": parameter,
    }
    store = CheckpointStore(tmp_path)
    store.save(0, tensors, {})
    loaded = store.load().tensors
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert len({tensor.data_ptr() for tensor in loaded.values()}) == len(tensors)


def test_the_state_comes_back(tmp_path: Path) -> None:
    state = {"generator": {"state": 2**127 + 3}, "x": 0.1 + 0.2, "names": ["ü", None], "10": 1, "9": 2}
    store = CheckpointStore(tmp_path)
    path = store.save(50_000, {}, state)
    assert path == tmp_path / "step-000000050000"
    checkpoint = store.load(50_000)
    assert (checkpoint.step, checkpoint.state, checkpoint.tensors) == (50_000, state, {})
    assert checkpoint.path == path
    with pytest.raises(UserError, match="holds no replay buffer"):
        checkpoint.restore_replay(Ring(1))


def test_numbers_as_keys_become_text(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(0, {}, {"counts": {9: 1, 10: 2}})
    assert store.load().state == {"counts": {"9": 1, "10": 2}}


def test_what_cannot_be_stored_is_refused_before_writing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with pytest.raises(ValueError, match="the state of a checkpoint must hold finite numbers, got nan at `loss`"):
        store.save(0, {}, {"loss": float("nan")})
    with pytest.raises(TypeError, match="tensor 'w' must be dense, got"):
        store.save(0, {"w": torch.eye(2).to_sparse()}, {})
    with pytest.raises(ValueError, match="`step` must not be negative, got -1"):
        store.save(-1, {}, {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="`keep` must be at least 1, got 0"):
        CheckpointStore(tmp_path, keep=0)
    with pytest.raises(ValueError, match="`segment_rows` must be at least 1, got 0"):
        CheckpointStore(tmp_path, segment_rows=0)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3, 30, 200):
        store.save(step, weights(step), {})
        assert store.load().step == step
    assert store.steps() == [30, 200]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000000030", "step-000000000200"]
    assert torch.equal(store.load(30).tensors["w"], weights(30)["w"])


def test_the_same_step_again(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for round in range(3):
        store.save(7, weights(round), {"round": round})
        assert store.steps() == [7]
        assert store.load().state == {"round": round}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_process_killed_between_two_of_the_same_step(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    old = store.save(7, {}, {"round": 1})
    shutil.copytree(old, tmp_path / "aside")
    store.save(7, {}, {"round": 2})
    (tmp_path / "aside").rename(old)
    assert store.steps() == [7]
    assert store.load().state == {"round": 2}
    store.save(8, {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000000007-2", "step-000000000008"]


def test_a_process_killed_while_removing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed_halfway(path: Path, **_: Any) -> None:
        (path / "tensors.safetensors").unlink()
        raise KeyboardInterrupt

    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, {}, {})
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed_halfway)
        with pytest.raises(KeyboardInterrupt):
            store.save(2, {}, {})
    assert [store.load(step).step for step in store.steps()] == [2]
    store.save(3, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000003"]


def test_saving_after_going_back_drops_the_later_ones(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(10, {}, {})
    store.save(20, {}, {})
    store.load(10)
    store.save(15, {}, {})
    assert store.steps() == [10, 15]


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    store, ring = CheckpointStore(tmp_path, segment_rows=4), Ring(20)
    ring.add(9)
    store.save(1, {}, {}, ring)
    (tmp_path / ".tmp-step-000000000002").mkdir()
    (tmp_path / ".tmp-step-000000000002" / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / "replay" / ".segment-000000000008.safetensors.123.tmp").write_bytes(b"half")
    (tmp_path / "replay" / "segment-000000000008.safetensors").write_bytes(b"of no checkpoint")
    assert store.steps() == [1]
    store.save(3, {}, {}, ring)
    assert not list(tmp_path.glob(".tmp*"))
    assert sorted(path.name for path in (tmp_path / "replay").iterdir()) == [
        "segment-000000000000.safetensors",
        "segment-000000000004.safetensors",
    ]


def test_segments_are_dropped_with_the_last_checkpoint_that_needs_them(tmp_path: Path) -> None:
    store, ring = CheckpointStore(tmp_path, keep=2, segment_rows=4), Ring(8)
    present = []
    for step in range(4):
        ring.add(8)
        store.save(step, {}, {}, ring)
        present.append([int(path.name[8:20]) for path in sorted((tmp_path / "replay").iterdir())])
    assert present == [[0, 4], [0, 4, 8, 12], [8, 12, 16, 20], [16, 20, 24, 28]]


@given(
    capacity=st.integers(1, 25),
    segment_rows=st.integers(1, 9),
    keep=st.integers(1, 3),
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 40)),
            st.tuples(st.just("save"), st.integers(0, 2)),
            st.tuples(st.just("resume"), st.integers(0, 2)),
        ),
        max_size=14,
    ),
)
def test_law_whatever_was_saved_comes_back(
    capacity: int, segment_rows: int, keep: int, moves: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as name, patch("os.fsync"):
        directory = Path(name)
        store, ring = CheckpointStore(directory, keep, segment_rows=segment_rows), Ring(capacity)
        saved: dict[int, tuple[int, bytes]] = {}
        step = line = 0
        for move, number in moves:
            if move == "add":
                ring.add(number, line)
            elif move == "save":
                step += number  # 0: the same step again
                store.save(step, weights(step), {"step": step}, ring)
                saved[step] = ring.bits()
                kept = sorted(known for known in saved if known <= step)[-keep:]
                saved = {known: saved[known] for known in kept}
            elif store.steps():
                step = store.steps()[-1 - number % len(store.steps())]
                line += 1  # the same rows come out differently from here on
                # A new process, with another segment size every other time.
                store = CheckpointStore(directory, keep, segment_rows=segment_rows + line % 2)
                ring = Ring(capacity)
                store.load(step).restore_replay(ring)
            assert store.steps() == sorted(saved)
            for known in store.steps():
                other = Ring(capacity)
                checkpoint = CheckpointStore(directory).load(known)
                checkpoint.restore_replay(other)
                assert other.bits() == saved[known]
                assert torch.equal(checkpoint.tensors["w"], weights(known)["w"])


@pytest.mark.parametrize("resumed", [False, True])
def test_the_cost_does_not_grow_with_age(resumed: bool, tmp_path: Path) -> None:
    store, ring = CheckpointStore(tmp_path, segment_rows=64), Ring(1000)
    rows, states, read = [], [], []
    for step in range(64):
        ring.add(100)
        before, ring.read = files_of(tmp_path), 0
        path = store.save(step, weights(), {}, ring)
        new = {path: size for path, size in files_of(tmp_path).items() if path not in before}
        states.append(new.pop(path / "state.json"))
        rows.append(sum(new.values()))
        read.append(ring.read)
        if resumed:
            store, ring = CheckpointStore(tmp_path, segment_rows=64), Ring(1000)
            store.load().restore_replay(ring)
    # At most the rows since the last save and one segment begun before it.
    assert max(read) < 100 + 64
    # 100 rows to 64 take the same turns every 16 saves; the ring is full after 10.
    assert rows[16:32] == rows[48:64]
    assert max(rows) == max(rows[:16])
    assert max(states[48:]) < max(states[16:32]) + 100  # the numbers get longer


def test_another_object_with_the_same_rows_is_not_written_again(tmp_path: Path) -> None:
    store, ring, twin = CheckpointStore(tmp_path, segment_rows=4), Ring(100), Ring(100)
    for each in (ring, twin):
        each.add(50)
    store.save(1, {}, {}, ring)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "replay").iterdir()}
    store.save(2, {}, {}, twin)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "replay").iterdir()} == before


@pytest.mark.parametrize(("same_object", "count"), [(True, 49), (False, 49), (False, 60)])
def test_rows_that_came_out_differently_are_not_taken_for_the_old_ones(
    same_object: bool, count: int, tmp_path: Path
) -> None:
    store, ring = CheckpointStore(tmp_path, segment_rows=4), Ring(100)
    ring.add(50)
    store.save(1, {}, {}, ring)
    ring = ring if same_object else Ring(100)
    ring.arrays, ring.added = Ring(100).arrays, 0
    ring.add(count, line=1)
    store.save(2, {}, {}, ring)
    for step, line in ((1, 0), (2, 1)):
        restored, wanted = Ring(100), Ring(100)
        store.load(step).restore_replay(restored)
        wanted.add(restored.added, line)
        assert restored.bits() == wanted.bits()


def test_a_source_that_gives_too_few_rows(tmp_path: Path) -> None:
    class Short(Ring):
        def rows(self, start: int, stop: int) -> dict[str, Any]:
            return {name: array[1:] for name, array in super().rows(start, stop).items()}

    ring = Short(100)
    ring.add(3)
    with pytest.raises(ValueError, match="replay 'observation' must give 3 rows, got 2"):
        CheckpointStore(tmp_path).save(1, {}, {}, ring)
    assert not list(tmp_path.iterdir())


def test_a_buffer_of_another_size(tmp_path: Path) -> None:
    store = two_checkpoints(tmp_path)
    with pytest.raises(UserError, match="of 100 rows, the run has one of 50; resume with the settings the run"):
        store.load().restore_replay(Ring(50))


def test_a_checkpoint_without_replay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {}, {})
    with pytest.raises(UserError, match="holds no replay buffer; resume from a checkpoint that does"):
        store.load().restore_replay(Ring(50))


def test_without_replay_its_files_are_not_read(tmp_path: Path) -> None:
    store = two_checkpoints(tmp_path)
    shutil.rmtree(store.directory / "replay")
    assert store.load(replay=False).state == {"step": 20}


def test_nothing_there(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none")
    assert store.steps() == []
    with pytest.raises(UserError, match=f"no checkpoint in {tmp_path / 'none'}; start the run again, or check"):
        store.load()


def test_a_step_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint of step 15 in .*; there are: 10, 20"):
        two_checkpoints(tmp_path).load(15)
