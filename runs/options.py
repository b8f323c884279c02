"""The command line as typed, frozen dataclasses; the text below a field is its help.

Imports nothing heavy: `sparse-agents --help` must answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Train:
    """Train a sparse agent. Interrupt it with Ctrl-C at any time and continue with `sparse-agents resume`.

    Settings left out come from --preset, and those of the topology from --topology.
    """

    algo: tyro.conf.Positional[Literal["td3"]]
    """What learns."""
    env: str = "HalfCheetah-v5"
    """Environment: a Gymnasium id with Box observations and actions (`sparse-agents list envs`)."""
    sparsity: float | None = None
    """Share of connections left out in actor and critics, in [0, 1); 0 is dense. Default: 0.5, dense: 0."""
    topology: str = "set"
    """Method: how connections are placed and moved (`sparse-agents list topologies`)."""
    preset: str = "td3"
    """The agent's hyper-parameters (`sparse-agents list presets`); flags given here beat it."""
    steps: int = 1_000_000
    """Environment steps in all."""
    seed: int = 0
    """Seed of everything that is drawn."""
    out: Path | None = None
    """Run directory, new or empty. Default: results/ENV/TOPOLOGY-SPARSITY-seedSEED."""
    actor_sparsity: float | None = None
    """Sparsity of the actor alone."""
    critic_sparsity: float | None = None
    """Sparsity of each critic alone."""
    distribution: str | None = None
    """How connections are shared out between layers (`sparse-agents list distributions`); er:7,64 weighs layers."""
    dense: str | None = None
    """Layers kept dense, comma list of input, output, numbers; none for no layer. Default: output."""
    init: str | None = None
    """Initial weights: torch, or fan-in (scaled for each neuron's actual inputs)."""
    drop_fraction: float | None = None
    """Share of each layer's connections replaced at a change, in [0, 1]."""
    schedule: str | None = None
    """Course of the drop fraction: constant, linear, cosine, cubic."""
    stop: float | None = None
    """Share of training after which the topology stays, in [0, 1]."""
    period: int | None = None
    """Critic gradient steps between two topology changes."""
    capture_batches: int = 1
    """Batches before a change that gradient growth looks at."""
    learning_rate: float | None = None
    """Step size of actor and critics."""
    weight_decay: float | None = None
    """L2 coefficient, added to the gradient."""
    learning_starts: int | None = None
    """Environment steps of random actions before learning."""
    batch_size: int | None = None
    """Transitions per update."""
    buffer_size: int | None = None
    """Transitions the replay buffer holds."""
    action_noise: float | None = None
    """Standard deviation of the exploration noise, in units of half the action range."""
    hidden: str | None = None
    """Hidden layer widths, comma list: 256,256."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    backend: str = "gemm"
    """What multiplies."""
    threads: int | None = None
    """CPU threads for torch. Default: torch's own choice, written to config.json."""
    eval_every: int | None = None
    """Environment steps between two evaluations."""
    eval_episodes: int | None = None
    """Episodes of each evaluation."""
    checkpoint_every: int = 10_000
    """Environment steps between two checkpoints: what a kill can cost at most."""


@dataclass(frozen=True)
class Resume:
    """Continue a run that was interrupted or killed, bit for bit as if it had not been."""

    directory: tyro.conf.Positional[Path]
    """Run directory."""
    step: int | None = None
    """Continue from this checkpoint instead of the newest."""


@dataclass(frozen=True)
class Evaluate:
    """Measure how good a trained agent is, in fresh episodes without exploration noise."""

    directory: tyro.conf.Positional[Path]
    """Run directory."""
    episodes: int = 10
    """Episodes to play."""
    seed: int = 10_000
    """Seed of the episodes; those during training began at the run's seed + 100."""
    step: int | None = None
    """Evaluate this checkpoint instead of the newest."""
    video: Path | None = None
    """Also film the first episode into this .mp4 file, rendered off screen."""


@dataclass(frozen=True)
class Export:
    """Write a trained agent for other tools: its dense state, a plain SB3 TD3, or an ONNX actor."""

    directory: tyro.conf.Positional[Path]
    """Run directory."""
    to: Literal["dense-state-dict", "sb3", "onnx"]
    """dense-state-dict: safetensors under SB3's names; sb3: a zip for stable_baselines3.TD3.load; onnx: the actor."""
    out: Path | None = None
    """File to write. Default: DIR/export/, named by the format."""
    step: int | None = None
    """Export this checkpoint instead of the newest."""


@dataclass(frozen=True)
class List:
    """Show what there is to choose from; plain names when piped."""

    what: tyro.conf.Positional[Literal["algos", "topologies", "drop", "grow", "distributions", "envs", "presets"]]
    """Kind of thing."""


@dataclass(frozen=True)
class Demo:
    """Train a small sparse agent on HalfCheetah-v5 in two minutes, and see it beside a random policy."""

    out: Path | None = None
    """Run directory. Default: results/demo, or the next free number."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Resume, tyro.conf.subcommand("resume")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
)
