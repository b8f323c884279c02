"""What width the seconds of a dense 256-256 agent buy: updates per second of wide sparse agents."""

from __future__ import annotations

from collections.abc import Sequence

from runs.bench import rivals
from runs.bench.rows import Row, row
from runs.bench.session import Session
from runs.bench.timing import Effort

WIDTHS = (256, 512, 1024, 2048)
SPARSITIES = (0.0, 0.9, 0.95, 0.99, 0.9975)
BATCH = 256
PEER_WIDTH = 256
FULL = Effort(sample_seconds=1.0, seconds=20, least=3, most=15, longest=60)
QUICK = Effort(sample_seconds=0.3, seconds=3, least=1, most=5, longest=10)


def measure(
    session: Session,
    effort: Effort,
    *,
    widths: Sequence[int] = WIDTHS,
    sparsities: Sequence[float] = SPARSITIES,
    batch: int = BATCH,
    peer_width: int = PEER_WIDTH,
) -> list[Row]:
    """Our TD3 at each width and sparsity against our dense one at `peer_width`; all of them in turn.

    No layer is kept dense here: at the highest sparsities the output layer alone would exceed the connections.
    """
    env = rivals.HalfCheetahSpaces()
    cases = [(width, sparsity) for width in widths for sparsity in sparsities]
    agents = {case: rivals.ours(env, case[1], case[0], batch, dense=()) for case in {(peer_width, 0.0), *cases}}
    session.expect(len(agents))
    contestants = [rivals.updates(f"{width} {sparsity}", agent) for (width, sparsity), agent in agents.items()]
    found = session.measure(f"{len(cases)} agents", contestants, effort)
    return [
        row(
            "gradient update", found[f"{width} {sparsity}"], found[f"{peer_width} 0.0"], "dense", sparsity=sparsity,
            width=width, batch_size=batch, backend=rivals.backend_of(agents[width, sparsity]),
            peer_note=f"{peer_width} wide",
            details={"weights": rivals.weights(agents[width, sparsity]), "peer_width": peer_width},
        )
        for width, sparsity in cases
    ]  # fmt: skip
