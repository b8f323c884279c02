"""Gradient updates per second of TD3 on one random replay, against four rivals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runs.bench import rivals
from runs.bench.rows import Row, row
from runs.bench.session import Session
from runs.bench.timing import Effort

SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95)
BATCHES = (256, 100)
FULL = Effort(sample_seconds=1.0, seconds=25, least=7, most=21, longest=60)
QUICK = Effort(sample_seconds=0.3, seconds=4, least=2, most=7, longest=5)
WHAT = "gradient update"


def measure(
    session: Session,
    effort: Effort,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    batches: Sequence[int] = BATCHES,
    width: int = rivals.WIDTH,
) -> list[Row]:
    """Our TD3 at each sparsity against SB3's, SBX's, our dense one, and our dense one with as many weights."""
    if not rivals.sbx_is_there():
        session.say("no rows against sbx: it is not installed; `pip install sbx-rl` brings it")
    sparse = sum(sparsity > 0 for sparsity in sparsities)
    session.expect(len(batches) * (2 + 2 * sparse + rivals.sbx_is_there()))
    rows = []
    for batch in batches:
        rows += _one_batch(session, effort, sparsities, batch, width)
    return rows


def _one_batch(session: Session, effort: Effort, sparsities: Sequence[float], batch: int, width: int) -> list[Row]:
    env = rivals.HalfCheetahSpaces()
    agents = {sparsity: rivals.ours(env, sparsity, width, batch) for sparsity in sorted({0.0, *sparsities})}
    narrow = {sparsity: rivals.small_width(rivals.weights(agent)) for sparsity, agent in agents.items() if sparsity}
    contestants = [rivals.updates("stable-baselines3", rivals.stable_baselines(env, width, batch))]
    contestants += [rivals.updates(f"ours {sparsity}", agent) for sparsity, agent in agents.items()]
    contestants += [rivals.updates(f"small {s}", rivals.ours(env, 0.0, h, batch)) for s, h in narrow.items()]
    if rivals.sbx_is_there():
        sbx = rivals.sbx(env, width, batch, session.threads)
        contestants.append(rivals.updates("sbx", sbx, finish=lambda: rivals.wait_for(sbx)))
    found = session.measure(f"batch {batch}", contestants, effort)
    rows = []
    for sparsity in sparsities:
        agent, own = agents[sparsity], found[f"ours {sparsity}"]
        facts: dict[str, Any] = dict(
            sparsity=sparsity, width=width, batch_size=batch, backend=rivals.backend_of(agent),
            details={"weights": rivals.weights(agent)},
        )  # fmt: skip
        rows.append(row(WHAT, own, found["stable-baselines3"], "stable-baselines3", **facts))
        if "sbx" in found:
            rows.append(row(WHAT, own, found["sbx"], "sbx", **facts))
        if sparsity:
            h = narrow[sparsity]
            rows.append(row(WHAT, own, found["ours 0.0"], "dense", **facts))
            facts["details"] = {**facts["details"], "peer_width": h}
            rows.append(row(WHAT, own, found[f"small {sparsity}"], "small-dense", peer_note=f"{h} wide", **facts))
    return rows
