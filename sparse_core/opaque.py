"""What torch's compiler shall call and not look into. Importing this imports that compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def call(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What `function` returns, computed as without a compiler."""
    return function(*arguments, **options)
