"""The command line as typed, frozen dataclasses; the text below a field is its help.

Imports nothing heavy: `sparse-agents --help` must answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

_PRESET = "(default: the preset's)"
_STRATEGY = "(default: the strategy's)"
_BENCHMARK = "(default: the benchmark's)"
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
class _OneAgent:
    """Which agent, on what."""

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
    topology_from: Annotated[Path | None, _left_out("PATH")] = None
    """Directory of the finished run whose last topology --topology final-topology takes."""
    out: Annotated[Path | None, _left_out("PATH")] = None
    """Run directory, new or empty. Default: results/ENV/TOPOLOGY-SPARSITY-seedSEED."""


@dataclass(frozen=True)
class AgentFlags:
    """How agents are made and trained; whatever is left out comes from the preset or the topology."""

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
    norm: Literal["none", "layer"] = "none"
    """Normalisation before each ReLU of actor and critics."""
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
    final_episodes: int = 0
    """Fresh episodes that the final policy plays at the end, seeded from 10,000 on as by `evaluate`."""


@dataclass(frozen=True)
class Train(AgentFlags, _OneAgent):
    """Train a sparse agent. Interrupt it with Ctrl-C at any time and continue with `sparse-agents resume`.

    Settings left out come from --preset, and those of the topology from --topology.
    """


@dataclass(frozen=True)
class Continual:
    """Learn tasks one after the other in one network, and see what is kept. Ctrl-C at any time, then `resume`.

    Settings left out are the strategy's own choice.
    """

    strategy: str = "spacenet"
    """What learns (`sparse-agents list strategies`)."""
    benchmark: str = "split-digits"
    """Which tasks, of which images (`sparse-agents list benchmarks`); split-digits needs no download."""
    seeds: str = "5"
    """How many runs, seeded 0, 1, 2, …; or the seeds themselves, comma list: 3,7 (one alone: 3,)."""
    out: Annotated[Path | None, _left_out("PATH")] = None
    """Run directory, new or empty. Default: results/continual/BENCHMARK/STRATEGY."""
    tasks: Annotated[int | None, _left_out("INT", "(default: the benchmark's)")] = None
    """Into how many tasks the classes are divided."""
    class_order: str = "0"
    """Which task has which classes: 0 as they are numbered, k a permutation drawn with seed k, or all labels: 3,1,4,…
    For permuted-mnist the seed of its permutations."""
    hidden: str = "400,400"
    """Hidden layer widths, comma list."""
    channels: str = "none"
    """Channels of 3×3 convolutions before the hidden layers, comma list: 32,64. Each is followed by a 2×2 pooling."""
    norm: Literal["none", "batch"] = "none"
    """Normalisation before each activation; batch keeps that of finished tasks' neurons as it is."""
    epochs: Annotated[int | None, _left_out("INT", _BENCHMARK)] = None
    """Passes over each task's images."""
    batch_size: Annotated[int | None, _left_out("INT", _BENCHMARK)] = None
    """Images per update."""
    isolation: Annotated[Literal["shared", "strict"] | None, _left_out("shared|strict", _STRATEGY)] = None
    """shared: all tasks read one network, and a sample's task need not be known; strict: a task reads only what stood
    when it ended, so that nothing is ever forgotten where the task is known."""
    head: Annotated[str | None, _left_out("NAME", _STRATEGY)] = None
    """How other tasks' classes take part in the loss: current, full, zeroed, sigmoid."""
    optimizer: Annotated[str | None, _left_out("NAME", _STRATEGY)] = None
    """sgd, momentum, adam, adamw."""
    learning_rate: Annotated[float | None, _left_out("FLOAT", _STRATEGY)] = None
    """Step size."""
    policy: Annotated[str | None, _left_out("NAME", _STRATEGY)] = None
    """When a task does not fit any more: error, shrink (take what is free), reclaim (take from earlier tasks)."""
    memory: Annotated[int | None, _left_out("INT", _STRATEGY)] = None
    """Images a class that a rehearsal method keeps."""
    data_root: Annotated[Path | None, _left_out("PATH")] = None
    """Folder of the image sets; what is missing is downloaded to it. Default: SPARSE_AGENTS_DATA, else one in the
    user's cache."""
    joint: Annotated[Path | None, _left_out("PATH")] = None
    """Finished run of a strategy that learns all tasks together: also says how much less well each task was learned."""
    device: str = "cpu"
    """cpu, cuda, or auto. Networks this small are seldom faster on a GPU."""
    threads: int = 1
    """CPU threads."""
    backend: Annotated[str | None, _left_out("NAME")] = None
    """What multiplies sparse layers (`sparse-agents list backends`). Default: csr, on a GPU gemm."""
    checkpoint_every: float = 5.0
    """Seconds after which the end of an epoch is a checkpoint; the end of a task always is. No result depends on it."""


@dataclass(frozen=True)
class Resume:
    """Continue a run that was interrupted or killed, bit for bit as if it had not been."""

    directory: tyro.conf.Positional[Path]
    """Run directory."""
    step: Annotated[int | None, _left_out("INT")] = None
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


Kind = Literal[
    "algos", "topologies", "drop", "grow", "distributions", "backends", "envs", "presets", "strategies", "benchmarks"
]  # fmt: skip


@dataclass(frozen=True)
class List:
    """Show what there is to choose from; plain names when piped."""

    what: tyro.conf.Positional[Kind]
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
    | Annotated[Continual, tyro.conf.subcommand("continual")]
    | Annotated[Resume, tyro.conf.subcommand("resume")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)
