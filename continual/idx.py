"""The idx format of MNIST and its relatives: unsigned bytes behind a header that gives their shape."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

UNSIGNED_BYTE = 0x08
PIECE = 1 << 20  # bytes read at a time


def find_idx(folder: Path, name: str) -> Path | None:
    """The file `name` in a folder, plain or gzipped (plain first), or None where neither is there."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of an idx file of unsigned bytes, plain or gzipped, in its own shape; writable, in memory.

    Args:
        path: the file; one that ends in `.gz` is unpacked while it is read.
        dimensions: how many dimensions the array must have: 3 for images, 1 for labels.

    Raises:
        ValueError: naming the file, where it is no such array, ends early or goes on too long.
        OSError: where it cannot be read at all.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return _read(cast(BinaryIO, file), dimensions)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, f"it does not unpack: {error}") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _read(file: BinaryIO, dimensions: int) -> NDArray[np.uint8]:
    header = file.read(4 + 4 * dimensions)
    magic = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if header[:4] != magic:
        raise ValueError(f"wanted the first four bytes {magic.hex(' ')}, got {header[:4].hex(' ') or 'none'}")
    if len(header) < 4 + 4 * dimensions:
        raise ValueError(f"its header ends after {len(header)} of {4 + 4 * dimensions} bytes")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    wanted = math.prod(shape)
    # In pieces: a damaged header may ask for more than there is memory. One byte beyond tells a file that goes on.
    content = bytearray()
    while piece := file.read(min(wanted + 1 - len(content), PIECE)):
        content += piece
    if len(content) != wanted:
        came = f"only {len(content):,}" if len(content) < wanted else "more"
        raise ValueError(f"its header says {' × '.join(map(str, shape))}, {wanted:,} bytes, and {came} follow")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is not a sound idx file: {why}; replace it, or delete it and have it downloaded again")
