"""Environment steps per second from end to end, learning from the first steps: `learn` itself, evaluation left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import envs
from runs.bench import rivals
from runs.bench.rows import Row, row
from runs.bench.session import Session
from runs.bench.timing import Contestant, Effort

ENV = "HalfCheetah-v5"
SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95)
BATCH = 256
LEARNING_STARTS = 100
EPISODE = 1_000  # steps, as many as updates between two topology changes: one of either in each sample
FULL = Effort(sample_seconds=1.0, seconds=90, least=5, most=15)
QUICK = Effort(sample_seconds=1.0, seconds=15, least=2, most=5, longest=15)


def measure(
    session: Session,
    effort: Effort,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    batch: int = BATCH,
    width: int = rivals.WIDTH,
    whole: int = EPISODE,
) -> list[Row]:
    """Our `learn` at each sparsity against SB3's, in turn, on environments that SB3 makes and wraps for both."""
    session.expect(1 + len(sparsities))
    envs.make(ENV).close()  # from here on MuJoCo warns the log, not the screen
    common: dict[str, Any] = dict(learning_starts=LEARNING_STARTS, buffer_size=100_000)
    agents = {
        sparsity: rivals.ours(ENV, sparsity, width, batch, action_noise=_noise(), **common) for sparsity in sparsities
    }
    peer = rivals.stable_baselines(ENV, width, batch, action_noise=_noise(), **common)
    contestants = [_steps("stable-baselines3", peer, whole)]
    contestants += [_steps(f"ours {sparsity}", agent, whole) for sparsity, agent in agents.items()]
    found = session.measure(ENV, contestants, effort)
    return [
        row(
            "environment step", found[f"ours {sparsity}"], found["stable-baselines3"], "stable-baselines3",
            sparsity=sparsity, width=width, batch_size=batch, backend=rivals.backend_of(agent), details={"env": ENV},
        )
        for sparsity, agent in agents.items()
    ]  # fmt: skip


def _noise() -> NormalActionNoise:
    return NormalActionNoise(np.zeros(rivals.ACTIONS), np.full(rivals.ACTIONS, 0.1))


def _steps(name: str, agent: OffPolicyAlgorithm, whole: int) -> Contestant:
    """One run is one step of the environment and its update; `learn` goes on where it stopped."""

    def run(count: int) -> None:
        agent.learn(count, reset_num_timesteps=False)

    return Contestant(name, run, unit=50, whole=whole, warm_up=3 * LEARNING_STARTS)
