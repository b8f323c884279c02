"""The files of a checkpoint: packed into bytes, described, and checked when read back.

Files are written from bytes with Python's own file functions, never by a library that
maps them into memory: there a full disk kills the process instead of raising an error.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from runs.failure import UserError
from runs.files import json_bytes, parse_json

FORMAT = "sparse-agents-checkpoint"
VERSION = 1

Rows = dict[str, NDArray[Any]]


class Damaged(Exception):
    """A file of a checkpoint is not what was written; the text names the file."""


@dataclass(frozen=True)
class Content:
    """What a file must hold."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "Content":
        """The description of `data`."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


def read_checked(path: Path, wanted: Content) -> bytes:
    """The bytes of `path` if they are the `wanted` ones, else `Damaged`."""
    data = read_bytes(path)
    if len(data) != wanted.size:
        raise Damaged(f"{path} is damaged ({len(data)} bytes instead of {wanted.size})")
    if Content.of(data) != wanted:
        raise Damaged(f"{path} is damaged (its contents do not match their checksum)")
    return data


def read_bytes(path: Path) -> bytes:
    """The bytes of `path`, or `Damaged` if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing") from error
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from error


def pack_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The tensors as a safetensors file; views and shared storage are written out in full."""
    packed = {}
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided:
            raise TypeError(f"tensor {name!r} must be dense, got {tensor.layout}; store its parts one by one")
        packed[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return safetensors.torch.save(packed)


def unpack_tensors(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    """The tensors in `data`, which came from `path`."""
    try:
        loaded = safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise Damaged(f"{path} is damaged ({error})") from error
    # A clone lies where torch would have put it. In the file's own bytes it may lie askew,
    # and matrix products round differently there.
    return {name: tensor.clone() for name, tensor in loaded.items()}


def pack_rows(rows: Mapping[str, NDArray[Any]], count: int) -> bytes:
    """The `count` rows of each array as a safetensors file."""
    for name, array in rows.items():
        if len(array) != count:
            raise ValueError(f"replay {name!r} must give {count} rows, got {len(array)}; see `ReplaySource`")
    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in rows.items()})


def unpack_rows(path: Path, data: bytes) -> Rows:
    """The rows in `data`, which came from `path`."""
    try:
        return safetensors.numpy.load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise Damaged(f"{path} is damaged ({error})") from error


def pack_manifest(fields: Mapping[str, Any], files: Mapping[str, Content]) -> bytes:
    """`state.json`: the fields, what each file must hold, and a checksum of all that."""
    described = {name: {"bytes": content.size, "sha256": content.sha256} for name, content in files.items()}
    manifest = {"format": FORMAT, "version": VERSION, **fields, "files": described}
    # To JSON and back, because keys that were numbers become text and sort differently.
    plain = json.loads(json_bytes(manifest, "a checkpoint"))
    return json_bytes({**plain, "sha256": _seal(plain)}, "a checkpoint")


def unpack_manifest(path: Path) -> tuple[dict[str, Any], dict[str, Content]]:
    """The fields and the files of the `state.json` at `path`, or `Damaged`."""
    try:
        manifest = parse_json(read_bytes(path), "it")
    except UserError as error:
        raise Damaged(f"{path} is damaged (it is no JSON object)") from error
    if manifest.get("format") != FORMAT:
        raise Damaged(f"{path} does not belong to a checkpoint of sparse-agents")
    if manifest.get("version") != VERSION:
        raise Damaged(
            f"{path} has the format version {manifest.get('version')!r}, this program reads {VERSION} "
            "(install the sparse-agents that wrote it)"
        )
    if manifest.pop("sha256", None) != _seal(manifest):
        raise Damaged(f"{path} is damaged (its contents do not match their checksum)")
    try:
        described = manifest.pop("files").items()
        return manifest, {name: Content(file["bytes"], file["sha256"]) for name, file in described}
    except (KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} is damaged (it does not describe its files)") from error


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
