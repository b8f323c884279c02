"""The command line as typed, frozen dataclasses; the text below a field is its help.

Imports nothing heavy: `sparse-agents --help` must answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from runs.flags import AgentFlags, LearnerFlags, left_out
from runs.methods.options import Methods
from runs.report.options import Report
from runs.studies.options import Compare, CompareContinual

if TYPE_CHECKING:
    AlgoName = str
    BenchName = str
else:  # a file in these folders is one
    _HERE = Path(__file__).parent
    AlgoName, BenchName = (
        tyro.extras.literal_type_from_choices(sorted(path.stem for path in folder.glob("[!_]*.py")))
        for folder in (_HERE / "algos", _HERE / "bench" / "cases")
    )


@dataclass(frozen=True)
class _OneAgent:
    """Which agent, on what."""

    algo: tyro.conf.Positional[AlgoName]
    """What learns (`sparse-agents list algos`)."""
    env: str = "HalfCheetah-v5"
    """Environment: a Gymnasium id with Box observations and actions (`sparse-agents list envs`)."""
    sparsity: Annotated[float | None, left_out("FLOAT")] = None
    """Share of connections left out in actor and critics, in [0, 1); 0 is dense. Default: the preset's, for most
    0.5; dense: 0."""
    topology: Annotated[str | None, left_out("NAME", "(default: the preset's, for most set)")] = None
    """Method: how connections are placed and moved (`sparse-agents list topologies`)."""
    preset: Annotated[str | None, left_out("NAME", "(default: the algorithm's own)")] = None
    """The agent's hyper-parameters (`sparse-agents list presets`); flags given here beat it."""
    steps: int = 1_000_000
    """Environment steps in all."""
    seed: int = 0
    """Seed of everything that is drawn."""
    topology_from: Annotated[Path | None, left_out("PATH")] = None
    """Directory of the finished run whose last topology --topology final-topology takes."""
    out: Annotated[Path | None, left_out("PATH")] = None
    """Run directory, new or empty. Default: results/ENV/TOPOLOGY-SPARSITY-seedSEED."""
    threads: int = 1
    """CPU threads for torch. Networks this small gain little from a second, and lose much on busy cores."""


@dataclass(frozen=True)
class Train(AgentFlags, _OneAgent):
    """Train a sparse agent. Interrupt it with Ctrl-C at any time and continue with `sparse-agents resume`.

    Settings left out come from --preset, and those of the topology from --topology.
    """


@dataclass(frozen=True)
class _OneLearner:
    """Which learner, on what."""

    strategy: str = "spacenet"
    """What learns (`sparse-agents list strategies`)."""
    benchmark: str = "split-digits"
    """Which tasks, of which images (`sparse-agents list benchmarks`); split-digits needs no download."""
    seeds: str = "5"
    """How many runs, seeded 0, 1, 2, …; or the seeds themselves, comma list: 3,7 (one alone: 3,)."""
    out: Annotated[Path | None, left_out("PATH")] = None
    """Run directory, new or empty. Default: results/continual/BENCHMARK/STRATEGY."""
    joint: Annotated[Path | None, left_out("PATH")] = None
    """Finished run of a strategy that learns all tasks together: also says how much less well each task was learned."""
    threads: int = 1
    """CPU threads."""


@dataclass(frozen=True)
class Continual(LearnerFlags, _OneLearner):
    """Learn tasks one after the other in one network, and see what is kept. Ctrl-C at any time, then `resume`.

    Settings left out are the strategy's own choice.
    """


@dataclass(frozen=True)
class Resume:
    """Continue a run that was interrupted or killed, bit for bit as if it had not been."""

    directory: tyro.conf.Positional[Path]
    """Run directory."""
    step: Annotated[int | None, left_out("INT")] = None
    """Continue from this checkpoint instead of the newest; of continual learning: of the first seed not finished."""


@dataclass(frozen=True)
class Evaluate:
    """Measure how good a trained agent is, in fresh episodes without exploration noise."""

    directory: tyro.conf.Positional[Path]
    """Run directory."""
    episodes: int = 10
    """Episodes to play."""
    seed: int = 10_000
    """Seed of the episodes; those during training began at the run's seed + 100."""
    step: Annotated[int | None, left_out("INT")] = None
    """Evaluate this checkpoint instead of the newest."""
    video: Annotated[Path | None, left_out("PATH")] = None
    """Also film the first episode into this .mp4 file, rendered off screen."""


@dataclass(frozen=True)
class Export:
    """Write a trained agent for other tools: its dense state, a plain SB3 agent, or an ONNX actor."""

    directory: tyro.conf.Positional[Path]
    """Run directory."""
    to: Literal["dense-state-dict", "sb3", "onnx"]
    """dense-state-dict: safetensors under SB3's names; sb3: a zip for `load` of stable_baselines3; onnx: the actor."""
    out: Annotated[Path | None, left_out("PATH")] = None
    """File to write. Default: DIR/export/, named by the format."""
    step: Annotated[int | None, left_out("INT")] = None
    """Export this checkpoint instead of the newest."""


Kind = Literal[
    "algos", "topologies", "drop", "grow", "distributions", "initial-topologies", "schedules", "courses", "births",
    "redistributions", "maskings", "backends", "envs", "presets", "strategies", "benchmarks",
]  # fmt: skip


@dataclass(frozen=True)
class List:
    """Show what there is to choose from; plain names when piped."""

    what: tyro.conf.Positional[Kind]
    """Kind of thing."""


@dataclass(frozen=True)
class Demo:
    """Compare static with adaptive sparsity and two dense networks on HalfCheetah-v5 in four minutes, and report."""

    out: Annotated[Path | None, left_out("PATH")] = None
    """Study directory. Default: results/demo, or the next free number."""


@dataclass(frozen=True)
class Bench:
    """Measure how fast and how small ours is on this machine, in turn with what people use; several minutes."""

    name: tyro.conf.Positional[BenchName]
    """kernel: one layer's products; layer: with autograd; update: TD3's updates; width: of wide agents;
    train: steps from end to end; memory: bytes."""
    json: Annotated[Path | None, left_out("PATH")] = None
    """Also write every sample and the machine into this file."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The same cases with fewer repetitions, in at most about four minutes."""
    threads: Annotated[int | None, left_out("INT")] = None
    """CPU threads, for ours and every peer alike. Default: all cores this process may use."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Continual, tyro.conf.subcommand("continual")]
    | Annotated[Resume, tyro.conf.subcommand("resume")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[CompareContinual, tyro.conf.subcommand("compare-continual")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Methods, tyro.conf.subcommand("methods")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)
