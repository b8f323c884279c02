"""Image sets that benchmarks are cut from: where their files are, how they are read, how they are normalised.

A root is a folder laid out as torchvision lays it out (`<root>/MNIST/raw`, `<root>/cifar-10-batches-py`, …). Files
that are there are read and never changed; a set that is not there is downloaded by torchvision.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from continual.idx import find_idx, read_idx
from sparse_core.measurements import default_folder

VARIABLE = "SPARSE_AGENTS_DATA"


class Labelled(NamedTuple):
    """Images, uint8 (n, channels, height, width), and their labels, int64 (n,), in the order of their file."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """A set of labelled images and how its pixels become numbers: (pixel / white - mean) / std by channel.

    The constants are those of the training images. `read` takes a root and gives the training and the test images.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    white: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[[Path], tuple[Labelled, Labelled]]


def every_of_each_class(labels: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Which images are a multiple of `count` among those of their class, in the order given; (n,) bool.

    By class, not by place: in a set that lists its classes in turn every 10th image is of one class.
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[count - 1 :: count]] = True
    return chosen


def default_root() -> Path:
    """`SPARSE_AGENTS_DATA`, else `data` in this program's part of the user's cache folder."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen).expanduser() if chosen else default_folder() / "data"


def read_digits(_root: Path) -> tuple[Labelled, Labelled]:
    """scikit-learn's digits, which need no file: every 5th image of each class is a test image."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = digits.images.astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    test = every_of_each_class(labels, 5)
    return Labelled(pixels[~test], labels[~test]), Labelled(pixels[test], labels[test])


def _read_idx_set(name: str) -> Callable[[Path], tuple[Labelled, Labelled]]:
    def read(root: Path) -> tuple[Labelled, Labelled]:
        folder = root / name / "raw"
        names = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
        missing = [file for file in names if find_idx(folder, file) is None]
        if len(missing) == len(names):
            _download(name, root, Path(name))
        elif missing:
            # torchvision would fetch them all and write over those that are there.
            raise FileNotFoundError(
                f"wanted {', '.join(missing)} (or .gz) in {folder}, where only the others are; "
                f"add what is missing, or empty the folder and have {name} downloaded"
            )
        train_pixels, train_labels, test_pixels, test_labels = (_read_part(folder, file) for file in names)
        return _labelled(folder, train_pixels, train_labels), _labelled(folder, test_pixels, test_labels)

    return read


def _read_part(folder: Path, name: str) -> NDArray[np.uint8]:
    path = find_idx(folder, name)
    if path is None:
        raise FileNotFoundError(f"wanted {folder / name} (or .gz), which a download should have left there, found none")
    return read_idx(path, dimensions=3 if "images" in name else 1)


def _labelled(folder: Path, pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Labelled:
    if pixels.shape[1:] != (28, 28) or len(pixels) != len(labels) or not len(labels) or labels.max() > 9:
        raise ValueError(
            f"{folder}: wanted images of 28 × 28 pixels with as many labels from 0 to 9, got images of shape "
            f"{pixels.shape} with {len(labels)} labels up to {labels.max(initial=0)}; replace the files"
        )
    return Labelled(pixels[:, None], labels.astype(np.int64))


def _read_cifar(name: str, folder: str) -> Callable[[Path], tuple[Labelled, Labelled]]:
    def read(root: Path) -> tuple[Labelled, Labelled]:
        from torchvision import datasets

        if not (root / folder).is_dir():
            _download(name, root, Path(folder))
        try:
            parts = [getattr(datasets, name)(str(root), train=train) for train in (True, False)]
        except RuntimeError as error:  # torchvision compares checksums before it unpickles anything
            raise ValueError(
                f"{root / folder} is not a sound {name}: {error}; delete it and have it downloaded again"
            ) from error
        train, test = (Labelled(_channels_first(part.data), np.asarray(part.targets, np.int64)) for part in parts)
        return train, test

    return read


def _channels_first(pixels: Any) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(pixels, np.uint8).transpose(0, 3, 1, 2))


def read_cifar_10_100(root: Path) -> tuple[Labelled, Labelled]:
    """CIFAR-10 with labels 0 to 9, then CIFAR-100 with labels 10 to 109."""
    ten, hundred = CIFAR10.read(root), CIFAR100.read(root)
    train, test = (
        Labelled(np.concatenate([a.pixels, b.pixels]), np.concatenate([a.labels, b.labels + 10]))
        for a, b in zip(ten, hundred, strict=True)
    )
    return train, test


def _download(name: str, root: Path, folder: Path) -> None:
    """Have torchvision put a set's folder into the root: whole, or not at all where it is interrupted."""
    from torchvision import datasets

    fresh = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as waiting:
            getattr(datasets, name)(waiting, download=True)
            with suppress(FileNotFoundError):
                (root / folder / "raw").rmdir()  # an empty one is in the way
                (root / folder).rmdir()
            os.replace(Path(waiting) / folder, root / folder)
    except (OSError, RuntimeError) as error:
        if fresh:
            with suppress(OSError):
                root.rmdir()
        # torchvision lists every mirror on lines of its own; the last one says why.
        why = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise FileNotFoundError(
            f"wanted {name}, looked in {root / folder}, could not download it ({why}); put its files there, "
            f"or name the folder that holds {folder} with --data-root or {VARIABLE}"
        ) from error


DIGITS = ImageSet("digits", 10, (1, 8, 8), 16, (0.3051,), (0.3762,), read_digits)
MNIST = ImageSet("MNIST", 10, (1, 28, 28), 255, (0.1307,), (0.3081,), _read_idx_set("MNIST"))
FASHION = ImageSet("FashionMNIST", 10, (1, 28, 28), 255, (0.2860,), (0.3530,), _read_idx_set("FashionMNIST"))
CIFAR10 = ImageSet(
    "CIFAR10", 10, (3, 32, 32), 255, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616),
    _read_cifar("CIFAR10", "cifar-10-batches-py"),
)  # fmt: skip
CIFAR100 = ImageSet(
    "CIFAR100", 100, (3, 32, 32), 255, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762),
    _read_cifar("CIFAR100", "cifar-100-python"),
)  # fmt: skip
# One network sees both, so both are normalised alike, with the constants of the first task.
CIFAR10_100 = ImageSet("CIFAR10+100", 110, (3, 32, 32), 255, CIFAR10.mean, CIFAR10.std, read_cifar_10_100)
