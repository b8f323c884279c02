"""The command line as typed, frozen dataclasses; the text below a field is its help.

Imports nothing heavy: `sparse-agents --help` must answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

_PRESET = "(default: the preset's)"
_TOPOLOGY = "(default: the preset's, else the topology's)"


def _left_out(metavar: str, default: str = "") -> Any:
    """How the help shows an option that may be left out; `default` says what holds then."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=default)


if TYPE_CHECKING:
    BenchName = str
else:  # a file in that folder is a bench
    _BENCHES = (Path(__file__).parent / "bench" / "cases").glob("[!_]*.py")
    BenchName = tyro.extras.literal_type_from_choices(sorted(path.stem for path in _BENCHES))


@dataclass(frozen=True)
class Train:
    """Train a sparse agent. Interrupt it with Ctrl-C at any time and continue with `sparse-agents resume`.

    Settings left out come from --preset, and those of the topology from --topology.
    """

    algo: tyro.conf.Positional[Literal["td3"]]
    """What learns."""
    env: str = "HalfCheetah-v5"
    """Environment: a Gymnasium id with Box observations and actions (`sparse-agents list envs`)."""
    sparsity: Annotated[float | None, _left_out("FLOAT")] = None
    """Share of connections left out in actor and critics, in [0, 1); 0 is dense. Default: 0.5, dense: 0."""
    topology: str = "set"
    """Method: how connections are placed and moved (`sparse-agents list topologies`)."""
    preset: str = "td3"
    """The agent's hyper-parameters (`sparse-agents list presets`); flags given here beat it."""
    steps: int = 1_000_000
    """Environment steps in all."""
    seed: int = 0
    """Seed of everything that is drawn."""
    out: Annotated[Path | None, _left_out("PATH")] = None
    """Run directory, new or empty. Default: results/ENV/TOPOLOGY-SPARSITY-seedSEED."""
    actor_sparsity: Annotated[float | None, _left_out("FLOAT")] = None
    """Sparsity of the actor alone."""
    critic_sparsity: Annotated[float | None, _left_out("FLOAT")] = None
    """Sparsity of each critic alone."""
    distribution: Annotated[str | None, _left_out("NAME", _TOPOLOGY)] = None
    """How connections are shared out between layers (`sparse-agents list distributions`); er:7,64 weighs layers."""
    dense: Annotated[str | None, _left_out("LIST")] = None
    """Layers kept dense, comma list of input, output, numbers; none for no layer. Default: output."""
    init: Annotated[str | None, _left_out("NAME", "(default: the topology's)")] = None
    """Initial weights: torch, or fan-in (scaled for each neuron's actual inputs)."""
    drop_fraction: Annotated[float | None, _left_out("FLOAT", _TOPOLOGY)] = None
    """Share of each layer's connections replaced at a change, in [0, 1]."""
    schedule: Annotated[str | None, _left_out("NAME", _TOPOLOGY)] = None
    """Course of the drop fraction: constant, linear, cosine, cubic."""
    stop: Annotated[float | None, _left_out("FLOAT", _TOPOLOGY)] = None
    """Share of training after which the topology stays, in [0, 1]."""
    period: Annotated[int | None, _left_out("INT", _PRESET)] = None
    """Critic gradient steps between two topology changes."""
    capture_batches: int = 1
    """Batches before a change that gradient growth looks at."""
    learning_rate: Annotated[float | None, _left_out("FLOAT", _PRESET)] = None
    """Step size of actor and critics."""
    weight_decay: Annotated[float | None, _left_out("FLOAT", _PRESET)] = None
    """L2 coefficient, added to the gradient."""
    learning_starts: Annotated[int | None, _left_out("INT", _PRESET)] = None
    """Environment steps of random actions before learning."""
    batch_size: Annotated[int | None, _left_out("INT", _PRESET)] = None
    """Transitions per update."""
    buffer_size: Annotated[int | None, _left_out("INT", _PRESET)] = None
    """Transitions the replay buffer holds."""
    action_noise: Annotated[float | None, _left_out("FLOAT", _PRESET)] = None
    """Standard deviation of the exploration noise, in units of half the action range."""
    hidden: Annotated[str | None, _left_out("LIST", _PRESET)] = None
    """Hidden layer widths, comma list: 256,256."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    backend: str = "auto"
    """What multiplies (`sparse-agents list backends`); auto measures the fastest for each layer once on a machine."""
    threads: int = 1
    """CPU threads for torch. Networks this small gain little from a second, and lose much on busy cores."""
    eval_every: Annotated[int | None, _left_out("INT", _PRESET)] = None
    """Environment steps between two evaluations."""
    eval_episodes: Annotated[int | None, _left_out("INT", _PRESET)] = None
    """Episodes of each evaluation."""
    checkpoint_every: int = 10_000
    """Environment steps between two checkpoints: what a kill can cost at most."""


@dataclass(frozen=True)
class Resume:
    """Continue a run that was interrupted or killed, bit for bit as if it had not been."""

    directory: tyro.conf.Positional[Path]
    """Run directory."""
    step: Annotated[int | None, _left_out("INT")] = None
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
    step: Annotated[int | None, _left_out("INT")] = None
    """Evaluate this checkpoint instead of the newest."""
    video: Annotated[Path | None, _left_out("PATH")] = None
    """Also film the first episode into this .mp4 file, rendered off screen."""


@dataclass(frozen=True)
class Export:
    """Write a trained agent for other tools: its dense state, a plain SB3 TD3, or an ONNX actor."""

    directory: tyro.conf.Positional[Path]
    """Run directory."""
    to: Literal["dense-state-dict", "sb3", "onnx"]
    """dense-state-dict: safetensors under SB3's names; sb3: a zip for stable_baselines3.TD3.load; onnx: the actor."""
    out: Annotated[Path | None, _left_out("PATH")] = None
    """File to write. Default: DIR/export/, named by the format."""
    step: Annotated[int | None, _left_out("INT")] = None
    """Export this checkpoint instead of the newest."""


@dataclass(frozen=True)
class List:
    """Show what there is to choose from; plain names when piped."""

    what: tyro.conf.Positional[
        Literal["algos", "topologies", "drop", "grow", "distributions", "backends", "envs", "presets"]
    ]
    """Kind of thing."""


@dataclass(frozen=True)
class Demo:
    """Train a small sparse agent on HalfCheetah-v5 in two minutes, and see it beside a random policy."""

    out: Annotated[Path | None, _left_out("PATH")] = None
    """Run directory. Default: results/demo, or the next free number."""


@dataclass(frozen=True)
class Bench:
    """Measure how fast and how small ours is on this machine, in turn with what people use; several minutes."""

    name: tyro.conf.Positional[BenchName]
    """kernel: one layer's products; layer: with autograd; update: TD3's updates; width: of wide agents;
    train: steps from end to end; memory: bytes."""
    json: Annotated[Path | None, _left_out("PATH")] = None
    """Also write every sample and the machine into this file."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The same cases with fewer repetitions, in at most about four minutes."""
    threads: Annotated[int | None, _left_out("INT")] = None
    """CPU threads, for ours and every peer alike. Default: all cores this process may use."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Resume, tyro.conf.subcommand("resume")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)
