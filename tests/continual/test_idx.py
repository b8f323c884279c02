import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from continual.data import MNIST, default_root
from continual.idx import find_idx, read_idx


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_set(root: Path, name: str = "MNIST", train: int = 30, test: int = 20, packed: bool = False) -> Path:
    """A small set in the layout of the large one; image i is all i, its label i % 10."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        numbers = np.arange(count, dtype=np.uint8)
        arrays = {"images-idx3": numbers.repeat(784).reshape(-1, 28, 28), "labels-idx1": numbers % 10}
        for what, array in arrays.items():
            content = idx_bytes(array)
            path = folder / f"{part}-{what}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder


@given(shape=st.tuples(*[st.integers(0, 4)] * 3), packed=st.booleans())
def test_what_was_written_is_read(
    shape: tuple[int, int, int], packed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path_factory.mktemp("idx") / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    read = read_idx(path, dimensions=3)
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.uint8


def test_plain_file_comes_before_packed_one(tmp_path: Path) -> None:
    assert find_idx(tmp_path, "images") is None
    (tmp_path / "images.gz").touch()
    assert find_idx(tmp_path, "images") == tmp_path / "images.gz"
    (tmp_path / "images").touch()
    assert find_idx(tmp_path, "images") == tmp_path / "images"


SOUND = idx_bytes(np.zeros((2, 3, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "got none"),
        (b"PK\x03\x04" + SOUND[4:], "first four bytes 00 00 08 03, got 50 4b 03 04"),
        (b"\0\0\x0d\x03" + SOUND[4:], "first four bytes"),  # floats
        (idx_bytes(np.zeros(18, np.uint8)), "first four bytes"),  # labels
        (SOUND[:9], "header ends after 9 of 16 bytes"),
        (SOUND[:-1], "2 × 3 × 3, 18 bytes, and only 17 follow"),
        (SOUND + b"\0", "and more follow"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "and only 0 follow"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damage_is_named(tmp_path: Path, content: bytes, why: str, packed: bool) -> None:
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=why) as caught:
        read_idx(path, dimensions=3)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", [3, 12, 25, -4])
def test_cut_archive_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(SOUND)[:cut])
    with pytest.raises(ValueError, match=r"images\.gz is not a sound idx file"):
        read_idx(path, dimensions=3)


def test_changed_archive_is_named(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(SOUND))
    packed[14] ^= 0xFF
    path = tmp_path / "images.gz"
    path.write_bytes(packed)
    with pytest.raises(ValueError, match=r"images\.gz is not a sound idx file"):
        read_idx(path, dimensions=3)


@pytest.mark.parametrize("packed", [False, True])
def test_set_is_read_and_left_alone(tmp_path: Path, packed: bool) -> None:
    folder = write_set(tmp_path, packed=packed)
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}
    train, test = MNIST.read(tmp_path)
    assert train.pixels.shape == (30, 1, 28, 28)
    assert test.pixels[:, 0, 0, 0].tolist() == list(range(20))
    assert train.labels.tolist() == [i % 10 for i in range(30)]
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]


def test_half_a_set_is_not_downloaded_over(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="wanted t10k-labels-idx1-ubyte"):
        MNIST.read(tmp_path)


def test_images_without_their_labels_are_seen(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(29, np.uint8)))
    with pytest.raises(ValueError, match="with 29 labels"):
        MNIST.read(tmp_path)


def test_default_root_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_AGENTS_DATA", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("SPARSE_AGENTS_DATA")
    monkeypatch.setenv("SPARSE_AGENTS_CACHE", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "data"


class Downloaded:
    """Stands in for torchvision's MNIST where there is a network."""

    def __init__(self, root: str, download: bool) -> None:
        write_set(Path(root))


class Unreachable:
    """Stands in for it where there is none, and leaves half a download behind as it does."""

    def __init__(self, root: str, download: bool) -> None:
        (Path(root) / "MNIST" / "raw").mkdir(parents=True)
        (Path(root) / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").touch()
        raise RuntimeError("Error downloading\nTried there, got:\n<urlopen error no network>\n")


@pytest.mark.parametrize("empty", [False, True])
def test_missing_set_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: bool) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST", Downloaded)
    if empty:
        (tmp_path / "new" / "MNIST" / "raw").mkdir(parents=True)
    train, _ = MNIST.read(tmp_path / "new")
    assert len(train.labels) == 30
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["MNIST"]


def test_without_a_network_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST", Unreachable)
    with pytest.raises(FileNotFoundError, match=r"no network.*SPARSE_AGENTS_DATA") as caught:
        MNIST.read(tmp_path)
    assert str(tmp_path / "MNIST") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []  # nothing that would pass for a set next time


def test_real_mnist_is_what_it_should_be(mnist_root: Path) -> None:
    train, test = MNIST.read(mnist_root)
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.pixels.mean() / 255 == pytest.approx(MNIST.mean[0], abs=5e-5)
    assert train.pixels.std() / 255 == pytest.approx(MNIST.std[0], abs=5e-5)
