"""A store with two checkpoints."""

from pathlib import Path

import torch
from small_ring import Ring

from runs.checkpoints import CheckpointStore


def weights(step: int = 0) -> dict[str, torch.Tensor]:
    return {"w": torch.arange(6.0).reshape(2, 3) + step}


def two_checkpoints(tmp_path: Path) -> CheckpointStore:
    """Steps 10 and 20, of which 20 alone needs the segments from row 8 on."""
    store, ring = CheckpointStore(tmp_path / "checkpoints", segment_rows=4), Ring(100)
    for step in (10, 20):
        ring.add(9)
        store.save(step, weights(step), {"step": step}, ring)
    return CheckpointStore(tmp_path / "checkpoints", segment_rows=4)


def files_of(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in directory.rglob("*") if path.is_file()}
