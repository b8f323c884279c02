"""A trained agent back from its run directory, to act; no replay buffer is read and nothing unpickled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agents import SparseTD3
from runs.building import restore_networks
from runs.checkpoints import CheckpointStore
from runs.failure import UserError
from runs.settings import Settings
from runs.snapshot import unpack
from runs.training import read_config, rebuild


def load_agent(directory: Path, step: int | None = None) -> tuple[SparseTD3, Settings, int]:
    """The agent of a run's newest checkpoint, or of that of `step`; its settings, and the step."""
    settings, config = read_config(directory)
    checkpoint = CheckpointStore(directory / "checkpoints", run=directory).load(step, replay=False)
    # Only acting: a buffer of the training size would be memory for nothing.
    model = rebuild(directory, replace(settings, buffer_size=settings.batch_size, device="cpu"), config)
    try:
        restore_networks(model, unpack(checkpoint.state["agent"], checkpoint.tensors))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{checkpoint.path} does not hold the networks of {directory}: {error}") from error
    return model, settings, checkpoint.step
