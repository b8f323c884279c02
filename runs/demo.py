"""`sparse-agents demo`: two minutes from nothing to a small agent that moves its connections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runs.options import Demo, Train

STEPS = 30_000


def demo(options: Demo) -> int:
    """Train, evaluate beside a random policy, print the table and draw the curve."""
    from runs.files import writing
    from runs.training import train

    directory = options.out or _free(Path("results/demo"))
    if options.out is None:
        with writing(directory.parent):
            directory.parent.mkdir(exist_ok=True)

    print(f"training a 90 % sparse TD3 agent for {STEPS:,} steps of HalfCheetah-v5 into {directory}", flush=True)
    code = train(
        Train(
            "td3", topology="set", sparsity=0.9, steps=STEPS, out=directory, hidden="128,128", batch_size=100,
            learning_rate=1e-3, learning_starts=2_000, buffer_size=STEPS, period=1_000, eval_every=3_000,
            eval_episodes=5, checkpoint_every=10_000,
        )
    )  # fmt: skip
    if code:
        return code
    _show(directory)
    return 0


def _free(wanted: Path) -> Path:
    """`wanted`, or with the next number where it is taken."""
    number, directory = 1, wanted
    while directory.exists():
        number += 1
        directory = wanted.with_name(f"{wanted.name}-{number}")
    return directory


def _show(directory: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from runs.curve import draw_curve
    from runs.loading import load_agent
    from runs.scoring import Scorer
    from sparse_core import meters

    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    model, settings, _ = load_agent(directory)
    scorer = Scorer(settings.env, 10, seed=10_000)
    trained, chance = scorer.score(model), scorer.score(None)
    scorer.close()
    table = Table(title=f"{settings.env}, {settings.steps:,} steps, seed {settings.seed}, 10 fresh episodes")
    for heading in ("policy", "return ± sd", "connections", "sparsity", "changes"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    table.add_row("random", f"{chance.mean:,.0f} ± {chance.std:,.0f}", "-", "-", "-")
    table.add_row(
        "sparse TD3 (set)", f"{trained.mean:,.0f} ± {trained.std:,.0f}", f"{meters.nnz(model.actor):,}",
        f"{meters.sparsity(model.actor):.1%}", str(result["topology_changes"]),
    )  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    picture = draw_curve(directory, result, chance.mean)
    speed = result["measured"]["steps_per_second"]
    console.print(f"{speed:,.0f} steps/s; curve in {picture}; film it with")
    console.print(f"  sparse-agents evaluate {directory} --video {directory}/cheetah.mp4", soft_wrap=True)
