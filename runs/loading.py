"""An agent back from its run directory; nothing is unpickled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from agents import SparseAgent
from runs.building import build, restore_networks
from runs.checkpoints import CheckpointStore
from runs.failure import UserError
from runs.files import read_json
from runs.given_topology import read_topologies, topologies
from runs.settings import Settings
from runs.snapshot import unpack
from sparse_core import BACKENDS, Topology
from sparse_core.crossover import AUTO


def read_config(directory: Path) -> tuple[Settings, dict[str, Any]]:
    """The settings of a run directory and the whole of its `config.json`."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give the directory of a run")
    written = read_json(directory / "config.json", "config of a run")
    if written.get("format") == "sparse-agents-continual":
        raise UserError(
            f"{directory} is a run of continual learners, not of an agent; its result.json says what they reached"
        )
    settings = Settings.from_config(written, str(directory / "config.json"))
    if "backends" not in written and settings.backend != AUTO:  # a run from before layers were settled one by one
        written = {**written, "backends": None}
    else:
        _check_backends(written.get("backends"), directory / "config.json")
    return settings, written


def rebuild(directory: Path, settings: Settings, written: dict[str, Any]) -> SparseAgent:
    """A new agent like that of a run directory, with the backends that its `config.json` holds."""
    try:
        given = None if settings.topology_from is None else read_topologies(directory)
        return build(settings, written["backends"], given)
    except ValueError as error:
        raise UserError(f"{directory / 'config.json'} describes no agent that can be made: {error}") from error


def _check_backends(backends: Any, where: Path) -> None:
    """Raise a `UserError` unless these are backends by layer name; whether the layers exist, `build` finds out."""
    then = "restore the file as the run wrote it"
    if not isinstance(backends, dict):
        raise UserError(f"{where} does not say what multiplies in each layer (`backends`); {then}")
    known = [name for name in BACKENDS if name != AUTO]
    unknown = [f"{layer} = {name!r}" for layer, name in backends.items() if name not in known]
    if unknown:
        raise UserError(f"{where} has unknown backends ({', '.join(unknown)}; known: {', '.join(known)}); {then}")


def load_agent(directory: Path, step: int | None = None) -> tuple[SparseAgent, Settings, int]:
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


def last_topologies(directory: Path) -> dict[str, Topology]:
    """Those that a finished run ended with; a `UserError` for a run that is not finished or has none."""
    outcome = read_json(directory / "result.json", "result of the run whose last topology is to be taken")
    model, _, step = load_agent(directory)
    if outcome.get("steps") != step:
        raise UserError(
            f"the newest checkpoint in {directory} is of step {step}, its result of {outcome.get('steps')}; "
            "put back the last checkpoint, or take another run"
        )
    found = topologies(model)
    if not found:
        raise UserError(f"{directory} has no sparse layers; give the run of a sparse agent to --topology-from")
    return found
