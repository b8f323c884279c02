"""How fast an arm of agents trains and how much disk it takes, from a few seconds of the real thing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from runs.building import build, start_learning
from runs.scoring import Scorer
from runs.settings import Settings
from runs.studies.agents import settings_of
from runs.studies.plan import Arm
from sparse_core import meters

_RANDOM, _UPDATES = 500, 2_000  # steps of either kind, at most
_LONG = 3.0  # seconds of updates after which a step's time is known well enough
_WARM = 50  # updates that are not counted: kernels are loaded, caches filled


@dataclass(frozen=True)
class Speed:
    """Seconds per environment step, and bytes."""

    random_step: float
    """While actions are random and nothing is learned."""
    training_step: float
    """With its update."""
    episode: float
    """One episode of an evaluation, several played at once."""
    kept_bytes: int
    """What a finished run leaves on the disk, about."""
    replay_bytes: int
    """And what it needs beside that until then."""

    def seconds(self, settings: Mapping[str, Any]) -> float:
        """Of a whole run, evaluations and final episodes included."""
        steps, random = settings["steps"], min(settings["steps"], settings["learning_starts"])
        evaluations = -(-steps // settings["eval_every"]) * settings["eval_episodes"] + settings["final_episodes"]
        return random * self.random_step + (steps - random) * self.training_step + evaluations * self.episode

    def steps_in(self, seconds: float, settings: Mapping[str, Any]) -> int:
        """Steps whose training takes this long; a `ValueError` if none of them would learn."""
        random: int = settings["learning_starts"]
        learning = round((seconds - random * self.random_step) / self.training_step)
        if learning < 1:
            raise ValueError(
                f"`seconds` {seconds:g} end before learning begins: {random:,} steps of random actions take "
                f"{random * self.random_step:.1f} s; give more, or fewer --learning-starts"
            )
        return random + learning


class _Clock(BaseCallback):
    """Notes the time at every step, and ends training once it is known well enough."""

    def __init__(self, random: int, now: Callable[[], float]) -> None:
        super().__init__()
        self.times: list[float] = []
        self._random, self._now = random, now

    def _on_step(self) -> bool:
        self.times.append(self._now())
        first = self._random + _WARM
        return len(self.times) <= first or self.times[-1] - self.times[first] < _LONG


def measure(arm: Arm, group: str, seed: int) -> Speed:
    """Train an arm for a few seconds, alone, and time it."""
    settings: Settings = settings_of(arm.settings[group], seed, None)
    rows = _RANDOM + _UPDATES
    short = replace(settings, learning_starts=_RANDOM, steps=rows, buffer_size=max(rows, settings.batch_size))
    model = build(short, arm.backends.get(group))
    start_learning(model, Logger(None, []))
    # What else the machine does is no part of it, where that can be told apart.
    alone = settings.threads == 1 and settings.device == "cpu"
    clock = _Clock(_RANDOM, time.process_time if alone else time.perf_counter)
    model.learn(rows, clock)
    times = np.array(clock.times)
    memory = meters.memory(model.policy, optimizers=(model.actor.optimizer, model.critic.optimizer))
    buffer = model.replay_buffer
    assert buffer is not None
    row = sum(ring[0].nbytes for ring in buffer.rings())  # type: ignore[attr-defined]
    kept = memory.parameters + memory.optimizer + memory.indices + settings.steps * _METRICS_BYTES
    scorer = Scorer(settings.env, settings.eval_episodes, settings.seed, settings.noise)
    began = time.perf_counter()
    scorer.score(model)
    episode = (time.perf_counter() - began) / settings.eval_episodes
    scorer.close()
    env = model.get_env()
    assert env is not None
    env.close()
    return Speed(
        random_step=float(times[_RANDOM - 1] - times[0]) / (_RANDOM - 1),
        training_step=float(times[-1] - times[_RANDOM + _WARM]) / (len(times) - 1 - _RANDOM - _WARM),
        episode=episode,
        kept_bytes=int(kept),
        replay_bytes=row * min(settings.buffer_size, settings.steps),  # checkpoints share what has not changed
    )


_METRICS_BYTES = 0.5  # per step, of metrics, events and log
