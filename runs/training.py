"""`train` and `resume`: a run directory, from its first file to its result."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger

from agents import SparseAgent
from envs import ReplayMismatch
from runs.building import agent_state, build, restore_agent, start_learning
from runs.checkpoints import Checkpoint, CheckpointStore
from runs.directories import refuse_existing, stop_signals, warn_of_changes
from runs.failure import UserError
from runs.files import write_json, writing
from runs.given_topology import write_topologies
from runs.loading import last_topologies, read_config, rebuild
from runs.lock import RunLock
from runs.machine import machine, provenance, versions
from runs.metrics import DIVERGED, MetricsFile
from runs.options import Resume, Train
from runs.progress import TrainingBar
from runs.recorder import Interrupted, Journal, Recorder
from runs.results import result, total_sparsity
from runs.scoring import EVALUATION_SEED, FRESH_SEED, Score, Scorer
from runs.settings import FORMAT, VERSION, Settings
from runs.snapshot import pack, unpack
from runs.tensorboard import tensorboard_logger
from runs.values import check_device


def train(options: Train) -> int:
    """Begin a run in a new directory and train it to its end."""
    settings = Settings.resolve(options)
    return begin(settings, default_directory(settings) if options.out is None else options.out)


def begin(settings: Settings, directory: Path, backends: Mapping[str, str] | None = None) -> int:
    """Begin a run with these settings; with `backends` that were settled before, else it settles its own."""
    refuse_existing(directory)
    if settings.note is not None:
        print(f"note: {settings.note}", file=sys.stderr)
    source = settings.topology_from
    given = None if source is None else last_topologies(Path(source))
    model = build(settings, backends, given)
    then = "run the command again"
    with writing(directory, then):
        directory.mkdir(parents=True, exist_ok=True)
    with RunLock(directory):
        refuse_existing(directory)
        if given is not None:
            write_topologies(directory, given, then)
        write_json(directory / "config.json", config(settings, model.backends), then)
        return _train(directory, settings, model, _store(directory), None)


def resume(options: Resume) -> int:
    """Continue a run from its newest checkpoint, or from the beginning if it has none."""
    directory = options.directory
    settings, written = read_config(directory)
    if (directory / "result.json").exists():
        if options.step is not None:
            raise UserError(
                f"{directory} is finished: there is nothing to resume from step {options.step}; leave --step out"
            )
        print(f"{directory} is finished: {settings.steps} steps; see `sparse-agents evaluate {directory}`")
        return 0
    check_device(settings.device)
    with RunLock(directory):
        store = _store(directory)
        checkpoint = store.load(options.step) if options.step is not None or store.steps() else None
        warn_of_changes(written, versions())
        return _train(directory, settings, rebuild(directory, settings, written), store, checkpoint)


def default_directory(settings: Settings) -> Path:
    """results/ENV/TOPOLOGY-SPARSITY-seedSEED."""
    share = f"input-{settings.input_sparsity:g}" if settings.input_sparsity is not None else f"{settings.sparsity:g}"
    kind = settings.topology if settings.topology == "dense" else f"{settings.topology}-{share}"
    return Path("results") / settings.env.replace("/", "_").replace(":", "_") / f"{kind}-seed{settings.seed}"


def config(settings: Settings, backends: dict[str, str]) -> dict[str, Any]:
    """What `config.json` holds: settings, and with what and where they were run."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "settings": settings.as_dict(),
        "backends": backends,  # what multiplies is settled once: a resumed run must add up in the same order
        **provenance(),
    }


def _store(directory: Path) -> CheckpointStore:
    return CheckpointStore(directory / "checkpoints", run=directory)


def _train(
    directory: Path, settings: Settings, model: SparseAgent, store: CheckpointStore, checkpoint: Checkpoint | None
) -> int:
    then = f"`sparse-agents resume {directory}`"
    # Before the state is put back: making environments may draw.
    scorer = Scorer(settings.env, settings.eval_episodes, settings.seed + EVALUATION_SEED, settings.noise)
    with writing(directory / "tensorboard", then):
        logger = tensorboard_logger(directory / "tensorboard", 0 if checkpoint is None else checkpoint.step)
    start_learning(model, logger)
    journal = Journal()
    if checkpoint is not None:
        journal = _restore(directory, model, checkpoint)
        # Before metrics are cut back: later checkpoints count on what is cut off.
        store.rewind(checkpoint.step)
    metrics = MetricsFile(directory / "metrics.jsonl", journal.metrics_offset, then)
    start = model.num_timesteps
    label = f"{settings.env} {settings.topology}"
    if checkpoint is not None:
        print(f"continuing {directory} from step {start}", file=sys.stderr)
    try:
        with TrainingBar(settings.steps, start, total_sparsity(model), label) as bar, stop_signals("step") as stop:
            recorder = Recorder(settings, journal, partial(save_state, store), scorer, metrics, bar, stop)
            # Also with no step left: the result asks the sparsifiers, which only `learn` brings back.
            with _divergence_said(model):
                model.learn(max(0, settings.steps - start), recorder, reset_num_timesteps=start == 0)
            _close_tensorboard(logger, then)
        return _finish(directory, settings, model, journal)
    except Interrupted as interruption:
        print(f"stopped at step {interruption.step}; continue with `sparse-agents resume {directory}`", file=sys.stderr)
        return 130
    finally:
        metrics.close()
        scorer.close()


@contextmanager
def _divergence_said(model: SparseAgent) -> Iterator[None]:
    """Within this block an error that comes of weights that are no longer finite says so."""
    try:
        yield
    except (UserError, ValueError) as error:
        if all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters()):
            raise
        raise UserError(f"weights are not finite at step {model.num_timesteps}: {DIVERGED}") from error


def _restore(directory: Path, model: SparseAgent, checkpoint: Checkpoint) -> Journal:
    try:
        state = unpack(checkpoint.state, checkpoint.tensors)
        restore_agent(model, state["agent"])
        assert model.replay_buffer is not None
        checkpoint.restore_replay(model.replay_buffer)  # type: ignore[arg-type]
        return Journal(**state["journal"])
    except ReplayMismatch as error:
        raise UserError(f"{checkpoint.path}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{checkpoint.path} does not fit the run in {directory}: {error}; was it made by another version?"
        ) from error


def _finish(directory: Path, settings: Settings, model: SparseAgent, journal: Journal) -> int:
    measured = {
        "seconds": journal.seconds,
        "steps_per_second": settings.steps / journal.seconds if journal.seconds else None,
        "evaluation_seconds": journal.evaluation_seconds,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "directory": str(directory),
        "curve_seconds": journal.curve_seconds,
        "processor_seconds": journal.processor_seconds,
        "curve_processor_seconds": journal.curve_processor_seconds,
    }
    outcome = result(model, settings, journal, _final_score(settings, model), measured)
    write_json(directory / "result.json", outcome, f"`sparse-agents resume {directory}`")
    print(
        f"{settings.steps} steps, {outcome['nnz_total']:,} connections (sparsity {outcome['sparsity']:.4f}), "
        f"return {outcome['eval']['mean_return']:,.1f} ± {outcome['eval']['std_return']:,.1f} "
        f"over {outcome['eval']['episodes']} episodes: {directory}"
    )
    return 0


def _final_score(settings: Settings, model: SparseAgent) -> Score | None:
    """Of fresh episodes, if there are to be any."""
    if not settings.final_episodes:
        return None
    scorer = Scorer(settings.env, settings.final_episodes, FRESH_SEED, settings.noise)
    try:
        return scorer.score(model, settings.steps)
    finally:
        scorer.close()


def _close_tensorboard(logger: Logger, then: str) -> None:
    with writing(Path(logger.dir or "tensorboard"), then):
        logger.close()


def save_state(store: CheckpointStore, model: SparseAgent, journal: Journal) -> None:
    """Store everything that resuming needs."""
    tensors, state = pack({"agent": agent_state(model), "journal": journal.as_dict()})
    store.save(model.num_timesteps, tensors, state, model.replay_buffer)  # type: ignore[arg-type]
