"""Full disks and killed processes: what was there before still loads."""

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from small_ring import Ring

from runs.checkpoints import CheckpointStore
from runs.failure import UserError

pytestmark = pytest.mark.end_to_end

# The child starts where the test stands; a fresh interpreter would take seconds for torch.
FORK = multiprocessing.get_context("fork")


def save_much(directory: Path) -> str:
    """What is said when 4 MB do not fit."""
    try:
        CheckpointStore(directory).save(20, {"w": torch.zeros(1_000_000)}, {})
    except UserError as error:
        return str(error)
    return "saved"


def save_many_rows(directory: Path) -> str:
    """What is said when the segments do not fit."""
    ring = Ring(200_000)
    ring.added = 200_000
    try:
        CheckpointStore(directory, segment_rows=100_000).save(20, {}, {}, ring)
    except UserError as error:
        return str(error)
    return "saved"


def with_little_room(directory: Path, sender: Connection) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
    sender.send([save_much(directory), save_many_rows(directory)])


def assert_as_before(directory: Path) -> None:
    """The checkpoint of step 10 and nothing else, and a new one can be saved."""
    store = CheckpointStore(directory)
    assert store.steps() == [10]
    assert store.load().state == {"is": "there"}
    assert [path.name for path in directory.iterdir() if path.name != "replay"] == ["step-000000000010"]
    assert not list(directory.rglob("*.tmp"))
    ring = Ring(10)
    ring.add(15)
    store.save(30, {}, {}, ring)
    assert store.steps() == [10, 30]


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "checkpoints"
    CheckpointStore(directory).save(10, {}, {"is": "there"})
    receiver, sender = FORK.Pipe(duplex=False)
    child = FORK.Process(target=with_little_room, args=(directory, sender))
    child.start()
    much, rows = receiver.recv()
    child.join()
    assert child.exitcode == 0
    assert much == (
        f"cannot write {directory / 'step-000000000020'}: File too large; raise the limit on file sizes "
        f"(`ulimit -f`), then `sparse-agents resume {tmp_path / 'run'}`"
    )
    assert rows.startswith(f"cannot write {directory / 'replay' / 'segment-000000000000.safetensors'}: File too")
    assert_as_before(directory)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount` to make a small disk with")
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    directory = small_disk / "run" / "checkpoints"
    CheckpointStore(directory).save(10, {}, {"is": "there"})
    for message in (save_much(directory), save_many_rows(directory)):
        assert "No space left on device; free some space, then `sparse-agents resume" in message
        assert "\n" not in message
    assert_as_before(directory)


def test_a_directory_nobody_may_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="Not a directory; choose another directory, then `sparse-agents resume"):
        CheckpointStore(tmp_path / "file" / "checkpoints").save(1, {}, {})


def save_forever(directory: Path, sender: Connection) -> None:
    store, ring = CheckpointStore(directory, segment_rows=16), Ring(100)
    step = 0
    if store.steps():
        checkpoint = store.load()
        checkpoint.restore_replay(ring)
        step = checkpoint.step
    while True:
        store.save(step, {"w": torch.full((1000,), float(step))}, {"added": ring.added}, ring)
        sender.send(step)
        ring.add(37)
        step += step % 3 != 2 or ring.added % 2  # some steps twice


def test_killed_at_any_moment(tmp_path: Path) -> None:
    moments = random.Random(4)
    last = -1
    for _ in range(15):
        receiver, sender = FORK.Pipe(duplex=False)
        child = FORK.Process(target=save_forever, args=(tmp_path, sender))
        child.start()
        sender.close()
        for _ in range(3):  # at least one of them is of a new step
            receiver.recv()
        time.sleep(moments.uniform(0, 0.15))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        told = last
        try:
            while receiver.poll():
                told = receiver.recv()
        except EOFError:
            pass

        store = CheckpointStore(tmp_path, segment_rows=16)
        for step in store.steps():
            checkpoint = store.load(step)
            assert torch.equal(checkpoint.tensors["w"], torch.full((1000,), float(step)))
            ring, wanted = Ring(100), Ring(100)
            checkpoint.restore_replay(ring)
            wanted.add(checkpoint.state["added"])
            assert ring.bits() == wanted.bits()
        last = store.steps()[-1]
        assert last >= told  # what was reported as saved is there
    assert last >= 15
