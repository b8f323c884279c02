"""What is said about damaged checkpoints, and that an intact one is found."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import two_checkpoints, weights
from small_ring import Ring

from runs.checkpoint_files import Content, pack_manifest, unpack_manifest
from runs.checkpoints import CheckpointStore
from runs.failure import UserError


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def lose(path: Path) -> None:
    path.unlink()


def swap(path: Path) -> None:
    path.write_bytes(pickle.dumps({"not": "ours"}))


FILES = [
    "step-000000000020/tensors.safetensors",
    "step-000000000020/replay-tail.safetensors",
    "step-000000000020/state.json",
    "replay/segment-000000000012.safetensors",
]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [cut, empty, flip, lose, swap])
def test_a_damaged_file(file: str, harm: Callable[[Path], None], tmp_path: Path) -> None:
    store = two_checkpoints(tmp_path)
    harm(store.directory / file)
    with pytest.raises(UserError) as caught:
        store.load()
    message = str(caught.value)
    assert message.startswith(f"{store.directory / file} is {'missing' if harm is lose else 'damaged'}")
    assert message.endswith("; the checkpoint of step 10 is intact: resume from it with `--step 10`")
    assert "\n" not in message
    ring = Ring(100)
    checkpoint = store.load(10)
    checkpoint.restore_replay(ring)
    assert ring.added == 9
    # And the run goes on from there.
    ring.add(9)
    store.save(20, weights(), {}, ring)
    again = Ring(100)
    CheckpointStore(store.directory).load(20).restore_replay(again)
    assert again.bits() == ring.bits()


def test_every_single_flipped_byte_of_the_state_is_seen(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(1, {}, {"a": 1.25}) / "state.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert store.load().state == {"a": 1.25}  # white space for white space
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
    path.write_bytes(whole)
    assert store.load().step == 1


def test_nothing_intact(tmp_path: Path) -> None:
    store = two_checkpoints(tmp_path)
    for path in store.directory.rglob("tensors.safetensors"):
        cut(path)
    with pytest.raises(UserError, match=r"no other checkpoint in .* is intact: start the run again in a new dir"):
        store.load()


def test_a_later_one_may_be_the_intact_one(tmp_path: Path) -> None:
    store = two_checkpoints(tmp_path)
    cut(store.directory / "step-000000000010" / "tensors.safetensors")
    with pytest.raises(UserError, match="the checkpoint of step 20 is intact: resume from it with `--step 20`"):
        store.load(10)


def reseal(path: Path, **changes: Any) -> None:
    """Change fields and make the checksum right again."""
    fields, files = unpack_manifest(path)
    path.write_bytes(pack_manifest({**fields, **changes}, files))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "has the format version 2, this program reads 1 (install the sparse-agents that"),
        ({"format": "other"}, "does not belong to a checkpoint of sparse-agents"),
        ({"step": 30}, "is of step 30, not 20"),
        ({"state": None}, "is damaged (it does not describe a checkpoint)"),
        ({"replay": {"added": 18}}, "is damaged (it does not describe a checkpoint)"),
        ({"replay": {"added": 3, "capacity": 5, "parts": []}}, "is damaged (it does not describe"),
        (
            {
                "replay": {
                    "added": 18,
                    "capacity": 100,
                    "parts": [{"file": "../../x", "start": 0, "stop": 18}],
                }
            },
            "is damaged (it does not describe",
        ),
    ],
)
def test_a_state_that_is_not_ours(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    store = two_checkpoints(tmp_path)
    path = store.directory / "step-000000000020" / "state.json"
    reseal(path, **changes)
    with pytest.raises(UserError) as caught:
        store.load()
    assert str(caught.value).startswith(f"{path} {message}")
    assert "the checkpoint of step 10 is intact" in str(caught.value)


def test_a_state_without_files(tmp_path: Path) -> None:
    store = two_checkpoints(tmp_path)
    path = store.directory / "step-000000000020" / "state.json"
    fields, _ = unpack_manifest(path)
    path.write_bytes(pack_manifest(fields, {}))
    with pytest.raises(UserError, match="it does not describe a checkpoint"):
        store.load()


def test_nothing_unpickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    store = two_checkpoints(tmp_path)
    folder = store.directory / "step-000000000020"
    torch.save(weights(), folder / "tensors.safetensors")
    swap(folder / "replay-tail.safetensors")
    fields, files = unpack_manifest(folder / "state.json")
    # Its checksum is right, so what is inside gets looked at.
    for name in ("tensors.safetensors", "replay-tail.safetensors"):
        files[name] = Content.of((folder / name).read_bytes())
    (folder / "state.json").write_bytes(pack_manifest(fields, files))

    for module, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")]:
        monkeypatch.setattr(module, name, refuse)
    with pytest.raises(UserError, match=r"tensors\.safetensors is damaged .*; the checkpoint of step 10 is"):
        store.load()
    ring = Ring(100)
    store.load(10).restore_replay(ring)
    assert ring.added == 9


def test_damage_between_check_and_restore(tmp_path: Path) -> None:
    store = two_checkpoints(tmp_path)
    checkpoint = store.load()
    cut(checkpoint.path / "replay-tail.safetensors")
    with pytest.raises(UserError, match=r"replay-tail\.safetensors is damaged .*whole a moment ago: check the"):
        checkpoint.restore_replay(Ring(100))


def test_the_state_is_there_to_be_read(tmp_path: Path) -> None:
    store = two_checkpoints(tmp_path)
    text = (store.directory / "step-000000000020" / "state.json").read_text()
    manifest = json.loads(text)
    assert (manifest["format"], manifest["version"], manifest["step"]) == ("sparse-agents-checkpoint", 1, 20)
    assert manifest["files"].keys() == {
        "tensors.safetensors",
        "replay-tail.safetensors",
        *(f"replay/segment-{start:012d}.safetensors" for start in (0, 4, 8, 12)),
    }
    assert text.endswith("}\n")
