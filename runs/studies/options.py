"""The flags of `compare`, for studies of agents and of continual learners; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from runs.flags import AgentFlags, LearnerFlags, left_out
from runs.machine import usable_cores


@dataclass(frozen=True)
class StudyFlags:
    """Where a study is, and who works on it."""

    seeds: str = "5"
    """How many runs of each arm, seeded 0, 1, 2, …; or the seeds themselves, comma list: 3,7 (one alone: 3,). All arms
    get their first five seeds before any gets its sixth."""
    out: Path = Path("results/study")
    """Study directory. The same command continues it; more seeds, arms or environments extend it."""
    arm: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further arm, as a name and flags that hold for it alone: --arm "wide --hidden 512,512". May be repeated."""
    workers: Annotated[int | None, left_out("INT")] = None
    """Processes that work at a time. Default: cores / threads per worker."""
    threads_per_worker: int = 1
    """CPU threads of each. Networks this small gain little from a second."""
    scheduler: Annotated[str | None, left_out("ADDRESS")] = None
    """Let the workers of a Dask cluster do the runs: tcp://host:8786. They must see the same files."""
    retry_failed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Try runs again that have failed; otherwise they are only listed."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the grid, and estimate hours and disk from a few seconds of each arm; write nothing."""

    @property
    def processes(self) -> int:
        """Workers on this machine."""
        return self.workers or max(1, usable_cores() // self.threads_per_worker)


@dataclass(frozen=True)
class _AgentGrid:
    """Which agents, on what."""

    env: str = "HalfCheetah-v5"
    """Environments, comma list."""
    topologies: str = "dense,static,set"
    """Methods, comma list (`sparse-agents list topologies`). dense is one arm whatever the sparsities; final-topology
    takes the last topology of the first method that searches, final-topology:rigl that of rigl, seed by seed."""
    sparsities: Annotated[str | None, left_out("LIST", "(default: the preset's, else 0.9)")] = None
    """Shares of connections left out, comma list."""
    small_dense: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also a narrower dense network with as many weights, for each sparsity."""
    presets: str = "td3"
    """Hyper-parameters, comma list (`sparse-agents list presets`); flags given here beat them."""
    steps: int = 1_000_000
    """Environment steps of each run."""
    seconds: Annotated[float | None, left_out("FLOAT")] = None
    """Instead of equal steps, equal training time: each arm gets the steps it makes in this many seconds, measured
    once, alone on the machine, before the study begins."""


@dataclass(frozen=True)
class Compare(AgentFlags, StudyFlags, _AgentGrid):
    """Run a grid of agents (environments × methods × sparsities × seeds); then `sparse-agents report` says who won.

    Interrupt it at any time: the same command continues. With --strategies it is a grid of continual learners instead;
    see `sparse-agents compare --strategies X --help`.
    """

    final_episodes: int = 100
    """Fresh episodes that each final policy plays at the end, seeded from 10,000 on as by `evaluate`."""


@dataclass(frozen=True)
class _LearnerGrid:
    """Which learners, on what."""

    strategies: str = "spacenet,spacenet-static,naive"
    """Strategies, comma list (`sparse-agents list strategies`)."""
    benchmark: str = "split-digits"
    """Benchmarks, comma list (`sparse-agents list benchmarks`)."""


@dataclass(frozen=True)
class CompareContinual(LearnerFlags, StudyFlags, _LearnerGrid):
    """Run a grid of continual learners (benchmarks × strategies × seeds); then `sparse-agents report` says who won.

    Interrupt it at any time: the same command continues. Without --strategies it is a grid of agents.
    """
