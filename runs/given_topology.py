"""The topology that a run begins with where it is another run's last one, kept as a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from agents import SparseAgent
from runs.checkpoint_files import Damaged, pack_tensors, read_bytes, unpack_tensors
from runs.failure import UserError
from runs.files import write_atomically
from sparse_core import Topology

FILE = "topology.safetensors"
Topologies = Mapping[str, Topology]


def topologies(model: SparseAgent) -> dict[str, Topology]:
    """The topology of every sparse layer of actor and critics, by the layer's name; of a masked one what multiplies."""
    return {name: layer.active_topology for name, layer in model.policy.layers.items()}


def write_topologies(directory: Path, given: Topologies, then: str) -> None:
    """Keep them in a run directory."""
    tensors = {}
    for name, topology in given.items():
        tensors[f"{name}.shape"] = torch.tensor(topology.shape)
        tensors[f"{name}.row_pointer"], tensors[f"{name}.columns"] = topology.row_pointer, topology.columns
    write_atomically(directory / FILE, pack_tensors(tensors), then)


def read_topologies(directory: Path) -> dict[str, Topology]:
    """What `write_topologies` kept there."""
    path = directory / FILE
    try:
        tensors = unpack_tensors(path, read_bytes(path))
        names = [name.removesuffix(".shape") for name in tensors if name.endswith(".shape")]
        return {
            name: Topology(
                (int(tensors[f"{name}.shape"][0]), int(tensors[f"{name}.shape"][1])),
                tensors[f"{name}.row_pointer"], tensors[f"{name}.columns"],
            )
            for name in names
        }  # fmt: skip
    except (Damaged, KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path} holds no topologies ({error}); begin the run again in a new directory") from error
