"""The generators that libraries draw from without being given one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Begin all of them anew."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def generator_states() -> dict[str, Any]:
    """Where they are: Python's, NumPy's and torch's."""
    return {
        "python": list(random.getstate()[1]),
        "python_gauss": random.getstate()[2],
        "numpy": _plain(np.random.get_state(legacy=False)),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Put back what `generator_states` gave."""
    random.setstate((3, tuple(states["python"]), states["python_gauss"]))
    numpy_state = states["numpy"]
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state)  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def _plain(state: Any) -> dict[str, Any]:
    """NumPy's legacy generator state with its key as plain integers."""
    return {**state, "state": {**state["state"], "key": state["state"]["key"].tolist()}}
