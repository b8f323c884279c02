"""`sparse-agents demo`: a study of four minutes, from nothing to a verdict."""

from __future__ import annotations

from pathlib import Path

from runs.options import Demo
from runs.report.options import Report
from runs.studies.options import Compare
from runs.studies.plan import FILE

STEPS, SEEDS = 15_000, 3


def demo(options: Demo) -> int:
    """Compare a static with an adaptive topology and two dense networks, and report."""
    from runs.files import writing
    from runs.report.command import make_report, say
    from runs.studies.command import compare

    directory = options.out or _free(Path("results/demo"))
    if options.out is None:
        with writing(directory.parent):
            directory.parent.mkdir(exist_ok=True)
    print(
        f"does moving the connections of a 90 % sparse TD3 agent help? 4 arms × {SEEDS} seeds × {STEPS:,} steps of "
        f"HalfCheetah-v5 into {directory}",
        flush=True,
    )
    code = compare(
        Compare(
            topologies="dense,static,set", sparsities="0.9", small_dense=True, seeds=str(SEEDS), steps=STEPS,
            hidden="128,128", batch_size=100, learning_rate=1e-3, learning_starts=2_000, buffer_size=STEPS,
            eval_every=2_500, eval_episodes=3, final_episodes=10, out=directory,
        )
    )  # fmt: skip
    if code:
        return code
    say(make_report(Report(directory)))
    print(
        f"more seeds decide: sparse-agents compare --help; a film: sparse-agents evaluate {directory}/… --video x.mp4"
    )
    return 0


def _free(wanted: Path) -> Path:
    """`wanted`, or with the next number where it is taken; one that was interrupted goes on."""
    number, directory = 1, wanted
    while directory.exists() and not ((directory / FILE).exists() and not (directory / "report.html").exists()):
        number += 1
        directory = wanted.with_name(f"{wanted.name}-{number}")
    return directory
