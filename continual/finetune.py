"""One sparse network for all tasks, its connections moving, nothing reserved: what reservation is worth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from continual.baselines import only
from continual.epochs import SparseEpochs
from continual.heads import HEADS, Targets, places
from continual.learner import Costs
from continual.loading import InMemory
from continual.plugins import check_plugins
from continual.scoring import evaluating
from continual.subspaces import task_seed
from continual.tensors import classes_of
from sparse_core import PRESETS, Preset, SparseLinear, SparseMLP, Sparsifier, generators, meters, sparse_layers


class SparseFinetune(SparseEpochs, InMemory, SupervisedTemplate):
    """A sparse network that is trained on one task after the other with SET or RigL, and forgets as it may.

    Args:
        model: with sparse layers; one output per class.
        optimizer: any elementwise torch optimizer over the model's parameters.
        criterion: loss of logits and class indices.
        train_mb_size: samples in a training batch.
        train_epochs: epochs of each task.
        eval_mb_size: samples in an evaluation batch.
        device: where to compute.
        plugins: Avalanche plugins.
        evaluator: Avalanche's evaluation plugin.
        eval_every: as in Avalanche.
        topology: name of a preset of `sparse_core` by which connections move, once an epoch.
        drop_fraction: share that moves.
        head: how other classes take part in the loss; see `HEADS`.
        seed: of every draw.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: nn.Module | None = None,
        train_mb_size: int = 128,
        train_epochs: int = 4,
        eval_mb_size: int | None = 1024,
        device: str | torch.device = "cpu",
        plugins: Sequence[Any] | None = None,
        evaluator: Any = default_evaluator,
        eval_every: int = -1,
        topology: str = "set",
        drop_fraction: float = 0.2,
        head: str = "full",
        seed: int | None = None,
    ) -> None:
        HEADS[head]
        if PRESETS[topology].prune is not None or PRESETS[topology].pruned_neurons:
            raise ValueError(
                f"topology {topology!r} comes down to its sparsity once, over one training; tasks that follow each "
                "other have no such end: choose a method that keeps its number of connections, as 'set' or 'rigl'"
            )
        if PRESETS[topology].changes:
            check_plugins(plugins)
        super().__init__(
            model=model, optimizer=optimizer, criterion=criterion or nn.CrossEntropyLoss(), device=device,
            train_mb_size=train_mb_size, train_epochs=train_epochs, eval_mb_size=eval_mb_size, plugins=plugins,
            evaluator=evaluator, eval_every=eval_every,
        )  # fmt: skip
        self.head, self.topology, self.drop_fraction = head, topology, drop_fraction
        self.seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
        self.batch_seed = self.seed
        self.tasks: list[tuple[int, ...]] = []
        self._resumed: Mapping[str, Any] | None = None

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Avalanche's, then the task begins: only now is it known how long an epoch is."""
        super().check_model_and_optimizer(**kwargs)
        if self._resumed is not None:
            self._check_task(self._resumed)
        resumed, self._resumed = self._resumed, None
        if resumed is not None:  # only now: Avalanche's first `make_optimizer` wipes what is there
            self.optimizer.load_state_dict(resumed["optimizer"])
        if self.sparsifier is not None:  # an earlier call was interrupted within the task
            self.sparsifier.detach()
            self.tasks.pop()
        if resumed is None or resumed["sparsifier"] is None:
            assert self.experience is not None
            self.tasks.append(classes_of(self.experience))
            self.epochs_done = 0
            # As for all strategies: what one task has gathered does not push the next.
            self.optimizer.state = defaultdict(dict)
        seed = task_seed(self.seed, len(self.tasks))
        self.sparsifier = Sparsifier.preset(
            self.topology, self.model, self.optimizer, drop_fraction=self.drop_fraction,
            period=_period(PRESETS[self.topology], len(self.dataloader)), seed=seed,
            total_steps=max(len(self.dataloader) * self.train_epochs, 1),
        )  # fmt: skip
        if resumed is not None and resumed["sparsifier"] is not None:
            self.sparsifier.load_state_dict(resumed["sparsifier"])

    def _check_task(self, state: Mapping[str, Any]) -> None:
        classes = classes_of(self.experience)
        if state["sparsifier"] is not None and classes != self.tasks[-1]:
            raise ValueError(
                f"the state is from within the task of classes {self.tasks[-1]}, got an experience with {classes}; "
                "go on with the same task"
            )

    def _after_training_exp(self, **kwargs: Any) -> None:
        self.let_go()
        super()._after_training_exp(**kwargs)

    def criterion(self) -> Tensor:
        """The head's loss while training."""
        if not self.is_training or self.head == "full":  # any class will do, such as those that a plugin replays
            return self._criterion(self.mb_output, self.mb_y)
        units = torch.tensor(self.tasks[-1], device=self.mb_y.device)
        local = places(units, self.mb_y, "take the head 'full', or leave out the plugin that replays")
        return HEADS[self.head](Targets(self.mb_output, units, local, self._output_bias()), self._criterion)

    def _output_bias(self) -> Tensor:
        *_, last = self.model.parameters()
        return last

    @torch.no_grad()
    def class_scores(self, x: Tensor) -> Tensor:
        """Scores (n, labels) with the task not known; -inf for labels of no task so far."""
        with evaluating(self.model):
            scores: Tensor = self.model(x.to(self.device)).to(x.device)
        return only(sorted({label for task in self.tasks for label in task}), scores)

    def task_scores(self, x: Tensor, number: int) -> Tensor:
        """Scores (n, labels) within a task, -inf elsewhere; for one still to come, over all labels so far."""
        scores = self.class_scores(x)
        return scores if number >= len(self.tasks) else only(self.tasks[number], scores)

    def costs(self) -> Costs:
        """One network, whatever the number of tasks."""
        held = meters.memory(self.model)
        layers = sparse_layers(self.model).values()
        *hidden, _ = (each for each in self.model.modules() if isinstance(each, SparseLinear | nn.Linear | nn.Conv2d))
        neurons = sum(
            int((meters.degrees(each)["fan_in"] > 0).sum()) if isinstance(each, SparseLinear) else each.weight.shape[0]
            for each in hidden
        )
        return Costs(
            nnz=meters.nnz(self.model), neurons=neurons, parameter_bytes=held.parameters,
            # Not what a backend has worked out from them, which depends on what it has been asked so far.
            index_bytes=sum(layer.columns.nbytes + layer.row_pointer.nbytes for layer in layers),
            flops=2 * meters.stored(self.model),
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs."""
        if self._resumed is not None:  # the optimizer has not been given its state back yet
            return dict(self._resumed)
        return {
            "tasks": [list(task) for task in self.tasks],
            "model": dict(self.model.state_dict()),
            "batches": self.batch_generator.get_state(),
            "epochs_done": self.epochs_done,
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": None if self.sparsifier is None else self.sparsifier.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave; within a task, the next call of `train` must be for the task's experience."""
        self.let_go()
        self.tasks = [tuple(task) for task in state["tasks"]]
        self.model.load_state_dict(state["model"])
        self.batch_generator.set_state(state["batches"])
        self.epochs_done = state["epochs_done"]
        self._resumed = state


def _period(method: Preset, epoch: int) -> int:
    """An epoch; where the method has a period of its own that, if an epoch is not shorter, or as the user wants it."""
    if "period" in method.chosen:
        return method.period
    return min(method.period, max(epoch, 1)) if method.own_period else max(epoch, 1)


def sparse_network(
    inputs: int,
    hidden: Sequence[int],
    units: int,
    connections: int,
    seed: int,
    backend: str,
    topology: str = "static",
    initial_topology: str | None = None,
) -> nn.Module:
    """A sparse perceptron of samples (B, …) with so many weights that multiply, for a method of `PRESETS`.

    A method with a sparsity of its own (`sr-ste`) has that.
    """
    sizes = [inputs, *hidden, units]
    cells, method = sum(fan_in * fan_out for fan_in, fan_out in pairwise(sizes)), PRESETS[topology]
    network = SparseMLP(
        sizes, sparsity=max(0.0, 1 - connections / cells) if method.own_sparsity is None else None,
        topology=topology if method.masking else "static",
        generator=generators(seed, "network")["network"], backend=backend,
        initial_topology=initial_topology,
    )  # fmt: skip
    return nn.Sequential(nn.Flatten(), network)
