"""Where and with what a run was made: written beside its figures."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("sparse-agents", "torch", "numpy", "numba", "gymnasium", "mujoco", "stable-baselines3", "safetensors")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Host, processor, cores and GPU."""
    import torch

    from sparse_core.measurements import processor

    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def provenance(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """With what, where, how and when the running command began: what the config of a run says beside its settings."""
    return {
        "versions": versions(packages),
        "commit": commit(),
        "machine": machine(),
        "command": command(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str | None:
    """The commit of the source tree, with `+` where it has changes; None outside a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def command() -> list[str]:
    """The command that is running, as it can be typed."""
    program = Path(sys.argv[0]).name
    return ["sparse-agents" if program == "command.py" else program, *sys.argv[1:]]  # or `python -m runs.command`
