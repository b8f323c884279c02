"""Flags that training one run and comparing many have in common; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

PRESET = "(default: the preset's)"
STRATEGY = "(default: the strategy's)"
BENCHMARK = "(default: the benchmark's)"
TOPOLOGY = "(default: as given with the topology, else the preset's, else the topology's)"


def left_out(metavar: str, default: str = "") -> Any:
    """How the help shows an option that may be left out; `default` says what holds then."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=default)


@dataclass(frozen=True)
class AgentFlags:
    """How agents are made and trained; whatever is left out comes from the preset or the topology."""

    actor_sparsity: Annotated[float | None, left_out("FLOAT")] = None
    """Sparsity of the actor alone."""
    critic_sparsity: Annotated[float | None, left_out("FLOAT")] = None
    """Sparsity of each critic alone."""
    input_sparsity: Annotated[float | None, left_out("FLOAT", PRESET)] = None
    """Sparsity of the first layers of actor and critics, every other layer being dense; instead of --sparsity."""
    distribution: Annotated[str | None, left_out("NAME", TOPOLOGY)] = None
    """How connections are shared out between layers (`sparse-agents list distributions`); er:7,64 weighs layers,
    and epsilon:epsilon=20, densities:0.1,0.2 and counts:100,200 fix the sparsity, too."""
    dense: Annotated[str | None, left_out("LIST")] = None
    """Layers kept dense, comma list of input, output, numbers; none for no layer. Default: output."""
    init: Annotated[str | None, left_out("NAME", "(default: the topology's)")] = None
    """Initial weights: torch, or fan-in (scaled for each neuron's actual inputs)."""
    initial_topology: Annotated[str | None, left_out("NAME", "(default: the topology's)")] = None
    """Where connections are at the start (`sparse-agents list initial-topologies`), options and all: brf:r=0.2."""
    drop_fraction: Annotated[float | None, left_out("FLOAT", TOPOLOGY)] = None
    """Share of each layer's connections replaced at a change, in [0, 1]."""
    schedule: Annotated[str | None, left_out("NAME", TOPOLOGY)] = None
    """Course of the drop fraction: constant, linear, cosine, cubic, staged."""
    stop: Annotated[float | None, left_out("FLOAT", TOPOLOGY)] = None
    """Share of training after which the topology stays, in [0, 1]."""
    period: Annotated[int | None, left_out("INT", TOPOLOGY)] = None
    """Critic gradient steps between two topology changes."""
    capture_batches: Annotated[int | None, left_out("INT", "(default: the topology's, usually 1)")] = None
    """Batches before a change that gradient growth looks at."""
    learning_rate: Annotated[float | None, left_out("FLOAT", PRESET)] = None
    """Step size of actor and critics."""
    weight_decay: Annotated[float | None, left_out("FLOAT", PRESET)] = None
    """L2 coefficient, added to the gradient."""
    learning_starts: Annotated[int | None, left_out("INT", PRESET)] = None
    """Environment steps of random actions before learning."""
    batch_size: Annotated[int | None, left_out("INT", PRESET)] = None
    """Transitions per update."""
    buffer_size: Annotated[int | None, left_out("INT", PRESET)] = None
    """Transitions the replay buffer holds."""
    n_steps: Annotated[int | None, left_out("INT", PRESET)] = None
    """Steps over which rewards are summed before a value is asked."""
    n_step_onset: Annotated[int | None, left_out("INT", PRESET)] = None
    """Updates whose returns are over one step, whatever --n-steps."""
    buffer_min: Annotated[int | None, left_out("INT", PRESET)] = None
    """Transitions that the replay buffer keeps in any case while it forgets old ones that the policy contradicts; 0 to
    forget nothing before it is full."""
    buffer_distance: Annotated[float | None, left_out("FLOAT", PRESET)] = None
    """Half the mean squared distance between the oldest actions and the policy's from which on it forgets."""
    action_noise: Annotated[float | None, left_out("FLOAT", PRESET)] = None
    """Standard deviation of the exploration noise, in units of half the action range."""
    hidden: Annotated[str | None, left_out("LIST", PRESET)] = None
    """Hidden layer widths, comma list: 256,256."""
    norm: Literal["none", "layer"] = "none"
    """Normalisation before each ReLU of actor and critics."""
    noise_features: float = 0.0
    """Share of the observation's features that are noise, in [0, 1): 0.9 appends nine times as many as there are."""
    permute_features_every: Annotated[int | None, left_out("INT")] = None
    """Environment steps after which the features of noisy observations change places. Default: never."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    backend: str = "auto"
    """What multiplies (`sparse-agents list backends`); auto measures the fastest for each layer once on a machine."""
    eval_every: Annotated[int | None, left_out("INT", PRESET)] = None
    """Environment steps between two evaluations."""
    eval_episodes: Annotated[int | None, left_out("INT", PRESET)] = None
    """Episodes of each evaluation."""
    checkpoint_every: int = 10_000
    """Environment steps between two checkpoints: what a kill can cost at most."""
    final_episodes: int = 0
    """Fresh episodes that the final policy plays at the end, seeded from 10,000 on as by `evaluate`."""


@dataclass(frozen=True)
class LearnerFlags:
    """How continual learners are made and trained; what is left out is the strategy's or benchmark's own choice."""

    tasks: Annotated[int | None, left_out("INT", "(default: the benchmark's)")] = None
    """Into how many tasks the classes are divided."""
    class_order: str = "0"
    """Which task has which classes: 0 as they are numbered, k a permutation drawn with seed k, or all labels: 3,1,4,…
    For permuted-mnist the seed of its permutations."""
    hidden: str = "400,400"
    """Hidden layer widths, comma list."""
    channels: str = "none"
    """Channels of 3×3 convolutions before the hidden layers, comma list: 32,64. Each is followed by a 2×2 pooling."""
    norm: Literal["none", "batch"] = "none"
    """Normalisation before each activation; batch keeps that of finished tasks' neurons as it is (of reserved ones
    alone: spacenet-2021, spacenet-static, afaf)."""
    epochs: Annotated[int | None, left_out("INT", BENCHMARK)] = None
    """Passes over each task's images."""
    batch_size: Annotated[int | None, left_out("INT", BENCHMARK)] = None
    """Images per update."""
    isolation: Annotated[Literal["shared", "strict"] | None, left_out("shared|strict", STRATEGY)] = None
    """shared: all tasks read one network, and a sample's task need not be known; strict: a task reads only what stood
    when it ended, so that nothing is ever forgotten where the task is known."""
    head: Annotated[str | None, left_out("NAME", STRATEGY)] = None
    """How other tasks' classes take part in the loss: current, full, zeroed, sigmoid."""
    optimizer: Annotated[str | None, left_out("NAME", STRATEGY)] = None
    """sgd, momentum, adam, adamw."""
    learning_rate: Annotated[float | None, left_out("FLOAT", STRATEGY)] = None
    """Step size."""
    policy: Annotated[str | None, left_out("NAME", STRATEGY)] = None
    """When a task does not fit any more: error, shrink (take what is free), reclaim (take from earlier tasks)."""
    memory: Annotated[int | None, left_out("INT", STRATEGY)] = None
    """Images a class that a rehearsal method keeps."""
    initial_topology: Annotated[str | None, left_out("NAME", STRATEGY)] = None
    """Where the connections of sparse-finetune are at the start (`sparse-agents list initial-topologies`)."""
    data_root: Annotated[Path | None, left_out("PATH")] = None
    """Folder of the image sets; what is missing is downloaded to it. Default: SPARSE_AGENTS_DATA, else one in the
    user's cache."""
    device: str = "cpu"
    """cpu, cuda, or auto. Networks this small are seldom faster on a GPU."""
    backend: Annotated[str | None, left_out("NAME")] = None
    """What multiplies sparse layers (`sparse-agents list backends`). Default: csr, on a GPU gemm."""
    checkpoint_every: float = 5.0
    """Seconds after which the end of an epoch is a checkpoint; the end of a task always is. No result depends on it."""
