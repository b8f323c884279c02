"""The callback of a run: evaluates, writes down, saves, and stops where stopping is exact."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.costs import training_memory
from runs.input_records import connections_on_real
from runs.metrics import MetricsFile
from runs.progress import TrainingBar
from runs.scoring import Scorer
from runs.settings import Settings
from runs.topology_courses import distances, flow_of_networks, gradient_flows
from runs.topology_records import dormant_shares, mask_changes, positions_now, replaced_and_explored

SHOW_EVERY = 0.2  # seconds between two updates of the bar


class Interrupted(Exception):
    """A person or the system asked the run to stop; it is saved at `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass
class Journal:
    """What a run has recorded so far; part of every checkpoint."""

    curve: list[list[float]] = field(default_factory=list)
    """[step, mean return] of every evaluation."""
    last_score: dict[str, Any] | None = None
    evaluated: int = 0
    """Step of the last evaluation."""
    saved: int = 0
    """Step of the last checkpoint."""
    changes: int = 0
    """Topology changes written down."""
    course: list[list[float]] = field(default_factory=list)
    """[step, share of connections replaced, share of positions ever connected] of every topology change."""
    explored: dict[str, Tensor] = field(default_factory=dict)
    """Per layer that can change, flat positions that ever held a connection, ascending."""
    begun: dict[str, Tensor] = field(default_factory=dict)
    """Per layer that can change, flat positions that held a connection at the start."""
    multiplied: dict[str, Tensor] = field(default_factory=dict)
    """Per layer, flat positions that multiply since the last change of masks."""
    evaluated_positions: dict[str, Tensor] = field(default_factory=dict)
    """Those of the last evaluation, or of the start."""
    distances: list[list[Any]] = field(default_factory=list)
    """[step, distance from the start by network, from the last evaluation by network] of every evaluation."""
    gradient_flow: list[list[Any]] = field(default_factory=list)
    """[step, gradient flow by layer] of every evaluation."""
    dormant: list[list[Any]] = field(default_factory=list)
    """[step, share of dormant neurons by network] of every evaluation."""
    inputs: list[list[Any]] = field(default_factory=list)
    """[step, see `connections_on_real` by network] of every evaluation in noisy observations."""
    curve_seconds: list[list[float]] = field(default_factory=list)
    """[step, seconds of training until then] of every evaluation."""
    curve_processor_seconds: list[list[float]] = field(default_factory=list)
    """The same in seconds of processors, summed over threads, which other programs do not lengthen."""
    peak_bytes: dict[str, int] | None = None
    """What training held at the start or at an evaluation, where that was most."""
    metrics_offset: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)


def bytes_in_training(model: Any, before: dict[str, int] | None) -> dict[str, int]:
    """What training holds by kind and in all (see `training_memory`), or held `before` if that was more."""
    held = training_memory(model)
    now = {**asdict(held), "total": held.total}
    return before if before is not None and before["total"] > now["total"] else now


class Recorder(BaseCallback):
    """Works at the boundaries between two environment steps, where nothing is half done.

    SB3 calls `_on_step` before the transition is stored and before the updates of that step; the next
    `_on_rollout_start` is the first moment at which step and updates are complete.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        save: Callable[[Any, Journal], None],
        scorer: Scorer,
        metrics: MetricsFile,
        bar: TrainingBar,
        stop: list[int],
    ) -> None:
        super().__init__()
        self.settings, self.journal = settings, journal
        self._save_state, self._scorer, self._metrics, self._bar, self._stop = save, scorer, metrics, bar, stop
        self._shown = self._clock = time.perf_counter()
        self._processor_clock = time.process_time()
        self._start: int | None = None

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                episode = info["episode"]
                self._metrics.write("episode", self.num_timesteps, **{"return": episode["r"]}, length=episode["l"])
                self._bar.score(episode["r"])
        now = time.perf_counter()
        if now - self._shown > SHOW_EVERY:
            self._show(now)
        return True

    def _on_rollout_start(self) -> None:
        if self._start is None:
            self._start = self.model.num_timesteps
            self._began = time.perf_counter()
            model: Any = self.model
            if self.journal.peak_bytes is None:
                self.journal.peak_bytes = bytes_in_training(model, None)
            if not self.journal.explored:
                self.journal.explored = positions_now(model)
                self.journal.begun = self.journal.evaluated_positions = dict(self.journal.explored)
        self._boundary(last=False)

    def _on_training_end(self) -> None:
        self._boundary(last=True)
        if self._start is not None:
            self._show(time.perf_counter())

    def _boundary(self, last: bool) -> None:
        """What is due after the updates of the last step."""
        step, journal, settings = self.model.num_timesteps, self.journal, self.settings
        self._write_changes(step)
        if step > journal.evaluated and (last or step % settings.eval_every == 0):
            self._evaluate(step)
        if step > journal.saved and (last or self._stop or step % settings.checkpoint_every == 0):
            self.save()
        if self._stop and not last:
            raise Interrupted(step)

    def _write_changes(self, step: int) -> None:
        model: Any = self.model
        if model.changes > self.journal.changes:
            self.journal.changes = model.changes
            changed = model.last_rewirings
            if not changed:
                changed = mask_changes(model, self.journal.multiplied or self.journal.begun)
                self.journal.multiplied = positions_now(model)
            replaced = {name: change.grown.numel() for name, change in changed.items()}
            shares = replaced_and_explored(changed, self.journal.explored)
            self.journal.course.append([step, *shares])
            self._metrics.write(
                "topology", step, change=model.changes, replaced=replaced, replaced_share=shares[0],
                explored_share=shares[1],
            )  # fmt: skip

    def _evaluate(self, step: int) -> None:
        self._account()
        model: Any = self.model
        score = self._scorer.score(model, step)
        journal = self.journal
        dormant = dormant_shares(model)
        flows, inputs = gradient_flows(model), connections_on_real(model, step)
        moved = [distances(model, each) for each in (journal.begun, journal.evaluated_positions)]
        took = time.perf_counter() - self._clock
        journal.evaluation_seconds += took
        journal.evaluated = step
        journal.peak_bytes = bytes_in_training(model, journal.peak_bytes)
        journal.last_score = score.as_dict()
        journal.curve.append([step, score.mean])
        journal.dormant.append([step, dormant])
        journal.gradient_flow.append([step, flows])
        if inputs:
            journal.inputs.append([step, inputs])
        if any(moved):
            journal.distances.append([step, *moved])
            journal.evaluated_positions = positions_now(model)
        journal.curve_seconds.append([step, journal.seconds])
        journal.curve_processor_seconds.append([step, journal.processor_seconds])
        self._metrics.write(
            "eval", step, **score.as_dict(), returns=list(score.returns), dormant=dormant, gradient_flow=flows,
            distance_from_start=moved[0], distance_from_last=moved[1], **({"inputs": inputs} if inputs else {}),
            measured={"seconds": took, "training_seconds": journal.seconds},
        )  # fmt: skip
        self._show_topology(
            dormant=dormant, gradient_flow=flow_of_networks(flows), distance_from_start=moved[0],
            distance_from_last=moved[1], **_as_scalars(inputs),
        )  # fmt: skip
        self.logger.record("eval/mean_return", score.mean)
        self.logger.record("eval/std_return", score.std)
        self.logger.dump(step)
        self._bar.say(
            f"step {step:>9,}: return {score.mean:,.1f} ± {score.std:,.1f} over {len(score.returns)} episodes"
        )
        self._clock += took
        self._processor_clock = time.process_time()

    def _show_topology(self, **measures: dict[str, float]) -> None:
        """The measures of an evaluation by network as TensorBoard's scalars, and where exploration stands."""
        if self.journal.course:
            measures["topology"] = dict(zip(("replaced", "explored"), self.journal.course[-1][1:], strict=True))
        for what, values in measures.items():
            for name, value in values.items():
                self.logger.record(f"{what}/{name}", value)

    def save(self) -> None:
        """Store a checkpoint of this moment."""
        self._account()
        self.journal.saved = self.model.num_timesteps
        self.journal.metrics_offset = self._metrics.sync()
        self._save_state(self.model, self.journal)

    def _account(self) -> None:
        """Add the time since the last call, evaluation excluded."""
        now, processor = time.perf_counter(), time.process_time()
        self.journal.seconds += now - self._clock
        self.journal.processor_seconds += processor - self._processor_clock
        self._clock, self._processor_clock = now, processor

    def _show(self, now: float) -> None:
        self._shown = now
        assert self._start is not None
        elapsed = now - self._began
        self._bar.update(self.num_timesteps, (self.num_timesteps - self._start) / elapsed if elapsed else 0.0)


def _as_scalars(inputs: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """What `connections_on_real` says, for TensorBoard."""
    names = ("inputs_real_share", "inputs_per_real", "inputs_per_noise")
    return {what: {name: each[at] for name, each in inputs.items()} for at, what in enumerate(names)} if inputs else {}
