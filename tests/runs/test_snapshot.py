"""Nested state as JSON and tensors, and back."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from runs.snapshot import pack, unpack


def there_and_back(state: Any) -> Any:
    tensors, plain = pack(state)
    return unpack(json.loads(json.dumps(plain, allow_nan=False)), tensors)


def same(one: Any, other: Any) -> bool:
    """Equal in kind and bits; NumPy's scalars come back as Python's."""
    if isinstance(one, np.generic):
        one = one.item()
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and same(one.numpy(), other.numpy())
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(
            type(mine) is type(yours) and same(one[mine], other[yours]) for mine, yours in zip(one, other, strict=True)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


KINDS = (np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_)
ARRAYS = st.sampled_from(KINDS).flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, min_side=0, max_side=3))
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    NUMBERS,
    st.text(),
    NUMBERS.map(np.float64),
    st.integers(-100, 100).map(np.int32),
    st.booleans().map(np.bool_),
)
# Few and nasty texts, so that paths meet.
KEYS = st.one_of(
    st.sampled_from(["a", "a/0", "0", "a/0'", "$tensor", "$items", "", "/"]), st.integers(-1, 2), st.text()
)
STATES = st.recursive(
    st.one_of(SCALARS, ARRAYS, ARRAYS.map(torch.from_numpy)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


@given(STATES)
def test_comes_back_as_it_was(state: Any) -> None:
    assert same(state, there_and_back(state))


def test_a_worked_example() -> None:
    tensors, plain = pack({"weight": torch.tensor(1.5), "state": {0: {"step": 3}}, "betas": (0.9, np.float32(0.5))})
    assert plain == {
        "weight": {"$tensor": "/weight"},
        "state": {"$items": [[0, {"step": 3}]]},
        "betas": {"$tuple": [0.9, 0.5]},
    }
    assert tensors.keys() == {"/weight"}


def test_two_paths_that_look_alike() -> None:
    state = {"a": {"b": torch.zeros(1)}, "a/b": torch.ones(1), 0: {"0": torch.ones(2)}, "0": {0: torch.zeros(2)}}
    assert same(state, there_and_back(state))


def test_keeps_no_gradient_and_strides() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).t().requires_grad_()
    back = there_and_back({"t": tensor, "a": np.arange(6).reshape(2, 3).T[::-1]})
    assert back["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert not back["t"].requires_grad
    assert back["a"].tolist() == [[2, 5], [1, 4], [0, 3]]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [{1, 2}]}, "/a/0 is a set; a checkpoint holds tensors"),
        ({"f": print}, "/f is a builtin_function_or_method"),
        (b"bytes", " is a bytes"),
        ({"x": 1j}, "/x is a complex"),
        ({"x": np.complex128(1)}, "/x is a complex"),
        ({"x": np.longdouble(1)}, "/x is a longdouble"),
        ({"x": np.bytes_(b"a")}, "/x is a bytes_"),
        ({(1, 2): 3}, r"has a key \(1, 2\)"),
        ({"x": {None: 3}}, "/x has a key None"),
        ({"x": np.array(["text"])}, "can't convert"),
        ({"x": np.array([object()])}, "can't convert"),
    ],
)
def test_refuses_what_would_not_come_back(state: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        pack(state)


def test_a_tensor_that_is_missing() -> None:
    _, plain = pack({"a": torch.zeros(1)})
    with pytest.raises(KeyError, match="/a"):
        unpack(plain, {})
