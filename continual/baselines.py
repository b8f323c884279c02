"""What the dense baselines share beside Avalanche's loop: a perceptron, a head, draws from the seed, scores, costs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from avalanche.training.utils import ParamData
from torch import Tensor, nn
from torch.nn import functional

from continual.heads import places
from continual.learner import Costs, NoChoice, Setup
from continual.loading import InMemory
from continual.tensors import classes_of, tensors_of
from sparse_core import SparseMLP, generators

log = logging.getLogger(__name__)

HEADS = ("full", "current")

_OF_SPARSE_LEARNERS = {"channels", "norm", "isolation", "policy", "initial_topology"}


class HeadLoss(nn.Module):
    """Cross-entropy over all classes, or over `classes` alone where they are set."""

    def __init__(self) -> None:
        super().__init__()
        self.classes: Tensor | None = None

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """The mean loss of logits (B, labels) and labels (B,)."""
        if self.classes is None:
            return functional.cross_entropy(logits, y)
        # Gathered, not multiplied by 0: a class left out gets no gradient whatever its logit is.
        local = places(self.classes, y, "take the head 'full', or a strategy that rehearses")
        return functional.cross_entropy(logits[:, self.classes], local)


class Dense(InMemory):
    """A mixin, named before an Avalanche strategy: one made from a `Setup` that scores and draws from its own seed.

    The loss goes through one `HeadLoss`, which Avalanche's plugins ask too: what EWC calls important is so for the
    head that is trained. Avalanche's own `eval` measures the loss over all classes.

    Args:
        setup: what it is made for.
        model: a module from samples (B, …) to logits (B, labels); a dense perceptron by default.
        methods: Avalanche's plugins that make up the method; they come after the user's.
        optimizer: a name for `Setup.make_optimizer`.
        learning_rate: for the optimizer.
        epochs: of each task where none are chosen; the benchmark's by default.
        rehearses: whether batches hold earlier classes too; the head "current" then means all classes so far.
        statistics: bytes kept of earlier tasks.
        memory: the dataset of stored samples, if any.
    """

    default_head = "full"

    def __init__(
        self,
        *,
        setup: Setup,
        model: nn.Module | None = None,
        methods: Sequence[Any] = (),
        optimizer: str = "sgd",
        learning_rate: float = 0.01,
        epochs: int | None = None,
        rehearses: bool = False,
        statistics: Callable[[], Any] = tuple,
        memory: Callable[[], Any] = tuple,
    ) -> None:
        self.head = self.default_head if setup.head is None else setup.head
        if self.head not in HEADS:
            raise ValueError(f"`head` must be one of {', '.join(HEADS)}, got {self.head!r}")
        model = perceptron(setup) if model is None else model
        model.to(setup.device)
        self.setup, self.rehearses, self._statistics, self._memory = setup, rehearses, statistics, memory
        self.seen: tuple[int, ...] = ()
        chosen = setup.given(epochs="train_epochs", batch_size="train_mb_size")
        if setup.epochs is None and epochs is not None:
            chosen["train_epochs"] = epochs
        super().__init__(  # type: ignore[call-arg]  # Avalanche's strategy comes next
            model=model, optimizer=setup.make_optimizer(model.parameters(), optimizer, learning_rate),
            criterion=HeadLoss(), device=setup.device, eval_mb_size=1024, plugins=[*setup.plugins, *methods],
            evaluator=setup.evaluator or silent_evaluator(), **chosen,
        )  # fmt: skip
        self.batch_seed = setup.seed
        self._random_state = generators(setup.seed, "avalanche")["avalanche"].get_state()

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """As Avalanche's; what it draws from torch's global generator comes from the seed and leaves no trace there."""
        with self._own_draws():
            return super().train(experiences, eval_streams, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _own_draws(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random_state)
            try:
                yield
            finally:
                self._random_state = torch.get_rng_state()

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Avalanche's, with a new optimizer state for each task: its default lets momentum run on into the next."""
        super().check_model_and_optimizer(**{"reset_optimizer_state": True, **kwargs})  # type: ignore[misc]

    def _before_training_exp(self: Any, **kwargs: Any) -> None:
        classes = self.classes_to_learn()
        self.seen = tuple(sorted({*self.seen, *classes}))
        trained = self.seen if self.rehearses else classes
        self._criterion.classes = torch.tensor(trained, device=self.device) if self.head == "current" else None
        super()._before_training_exp(**kwargs)  # type: ignore[misc]

    def _after_training_exp(self: Any, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)  # type: ignore[misc]
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            log.warning(
                "weights are no longer finite after classes %s: lower the learning rate or the penalty's strength",
                list(self.classes_to_learn()),
            )  # fmt: skip

    def classes_to_learn(self: Any) -> tuple[int, ...]:
        """The classes of the current experience, ascending."""
        return classes_of(self.experience)

    def criterion(self: Any) -> Tensor:
        """The head's loss while training."""
        if self.is_training:
            return self._criterion(self.mb_output, self.mb_y)
        return functional.cross_entropy(self.mb_output, self.mb_y)

    @torch.no_grad()
    def class_scores(self: Any, x: Tensor) -> Tensor:
        """Logits (n, labels) with the task not known; once something was learned, -inf for classes still to come."""
        logits = self.model(x.to(self.device))
        return (only(self.seen, logits) if self.seen else logits).to(x.device)

    @torch.no_grad()
    def task_scores(self: Any, x: Tensor, number: int) -> Tensor:
        """Logits (n, labels) of the classes of task `number` (from 0), -inf elsewhere."""
        return only(self.setup.benchmark.task_classes[number], self.model(x.to(self.device))).to(x.device)

    def costs(self: Any) -> Costs:
        """What the dense network and the method's own statistics and samples take."""
        weights = [parameter for parameter in self.model.parameters() if parameter.dim() > 1]
        connections = sum(weight.numel() for weight in weights)
        return Costs(
            nnz=connections, neurons=sum(weight.shape[0] for weight in weights[:-1]),
            parameter_bytes=bytes_of(self.model), index_bytes=0, statistic_bytes=bytes_of(self._statistics()),
            memory_bytes=bytes_of_samples(self._memory()), flops=2 * connections,
        )  # fmt: skip


class Baseline(Dense, Naive):
    """One of Avalanche's methods on a dense perceptron, task after task; plain fine-tuning without `methods`."""


def perceptron(setup: Setup, hidden: Sequence[int] | None = None) -> nn.Sequential:
    """A dense perceptron with ReLU for samples of any shape, one output for each label, drawn from the seed."""
    sizes = [setup.inputs, *(setup.hidden if hidden is None else hidden), setup.benchmark.classes]
    generator = generators(setup.seed, "weights")["weights"]
    return nn.Sequential(nn.Flatten(), *SparseMLP(sizes, sparsity=0, generator=generator))


def silent_evaluator() -> EvaluationPlugin:
    """Avalanche's evaluation without metrics or loggers, and without its warning that there are none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No loggers specified")
        return EvaluationPlugin()


def check_choices(setup: Setup, *taken: str, **options: Any) -> dict[str, Any]:
    """The options of a strategy, those in the setup over these defaults; a `ValueError` for a choice it has not.

    Args:
        setup: what was chosen.
        taken: which of the setup's choices the strategy has, of epochs, batch_size, optimizer, learning_rate, head,
            memory and initial_topology.
        **options: its own options and their defaults.
    """
    optional = {"epochs", "batch_size", "optimizer", "learning_rate", "head", "memory"} | _OF_SPARSE_LEARNERS
    unset = {field.name: field.default for field in fields(Setup) if field.name in optional - {*taken}}
    wrong = [name for name, default in unset.items() if getattr(setup, name) != default]
    if wrong:
        raise NoChoice(wrong)
    unknown = [name for name in setup.options if name not in options]
    if unknown:
        known = ", ".join(map(repr, options)) or "none"
        raise ValueError(f"unknown option {unknown[0]!r}; this strategy's options: {known}")
    return {**options, **setup.options}


SGD_CHOICES = ("epochs", "batch_size", "optimizer", "learning_rate", "head")


def only(classes: Sequence[int], scores: Tensor) -> Tensor:
    """The scores (n, labels) of some classes, -inf elsewhere."""
    kept = torch.full_like(scores, -torch.inf)
    places = torch.tensor(classes, dtype=torch.int64, device=scores.device)
    kept[:, places] = scores[:, places]
    return kept


def bytes_of(held: Any) -> int:
    """Bytes of all tensors in modules, containers and Avalanche's `ParamData`."""
    if isinstance(held, ParamData):
        held = held.data
    if isinstance(held, Tensor):
        return held.nbytes
    if isinstance(held, nn.Module):
        return sum(tensor.nbytes for tensor in [*held.parameters(), *held.buffers()])
    parts = held.values() if isinstance(held, Mapping) else held
    return sum(map(bytes_of, parts)) if parts else 0


def bytes_of_samples(dataset: Any) -> int:
    """Bytes of stored samples as our benchmarks store them, images in uint8 and labels in int64; others as they are."""
    if not len(dataset):
        return 0
    image = torch.as_tensor(dataset[0][0])
    # Ours are kept as bytes and made float32 when they are asked for.
    size = image.numel() if tensors_of(dataset) is not None else image.nbytes
    return len(dataset) * (size + torch.int64.itemsize)
