"""Nested state as JSON with its tensors apart, and back: no pickle, nothing rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pack(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Tensors by path, and the rest as what JSON can hold; NumPy arrays and scalars count as tensors and numbers."""
    tensors: dict[str, Tensor] = {}
    return tensors, _pack(state, "", tensors)


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return {"$tensor": _add(value.detach().cpu(), path, tensors)}
    if isinstance(value, np.ndarray):
        array = torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape)
        return {"$array": _add(array, path, tensors)}
    if isinstance(value, np.bool_ | np.integer | np.floating | np.str_) and not isinstance(value, np.longdouble):
        return value.item()
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _pack(item, f"{path}/{key}", tensors) for key, item in value.items()}
        return {
            "$items": [[_checked_key(key, path), _pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        }
    if isinstance(value, tuple):
        return {"$tuple": [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]}
    if isinstance(value, list):
        return [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{path} is a {type(value).__name__}; a checkpoint holds tensors, arrays, numbers, text and their containers"
    )


def _checked_key(key: object, path: str) -> object:
    """`key` if it comes back from JSON as it was."""
    if not isinstance(key, (bool, int, float, str)):
        raise TypeError(f"{path} has a key {key!r}; a checkpoint holds dictionaries by text and numbers")
    return key


def _add(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    """Keep `tensor` under a name of its own: keys that hold slashes can make two paths look alike."""
    while path in tensors:
        path += "'"
    tensors[path] = tensor
    return path


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given; a tensor that is missing raises a `KeyError`."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$array" in value:
        return tensors[value["$array"]].numpy()
    if "$items" in value:
        return {key: unpack(item, tensors) for key, item in value["$items"]}
    if "$tuple" in value:
        return tuple(unpack(item, tensors) for item in value["$tuple"])
    return {key: unpack(item, tensors) for key, item in value.items()}
