"""The loop that all sparse continual learners share: allocate, train, freeze, reserve; as an Avalanche strategy."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from continual.archive import Archive, Task
from continual.calibration import calibrate
from continual.epochs import SparseEpochs
from continual.heads import HEADS, Targets, places
from continual.learner import Costs
from continual.ledger import CapacityError, Demand, Grant, TaskLedger
from continual.loading import InMemory
from continual.networks import (
    Connections,
    SubspaceNetwork,
    all_biases,
    connect,
    frozen_connections,
    movable_connections,
)
from continual.options import Sizes, SubspaceOptions, accepting
from continual.plugins import check_plugins
from continual.scoring import Scoring, evaluating
from continual.tensors import classes_of, samples_of
from sparse_core import DROP_RULES, GROW_RULES, SCHEDULES, Constraint, SparseLinear, Sparsifier, generators
from sparse_core.draws import among, largest
from sparse_core.importance import PathImportance

log = logging.getLogger(__name__)

_DRAWS = ("allocation", "weights", "batches", "samples")


def task_seed(seed: int, number: int) -> int:
    """A seed of its own for each task."""
    return int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0])


class SubspaceStrategy(Scoring, SparseEpochs, InMemory, SupervisedTemplate):
    """A sparse subspace for each task, in one network; use it like any Avalanche strategy.

    When a task begins, free neurons are selected and connections drawn between them; while it trains,
    connections are dropped and grown there after every epoch but the last; when it ends, they are
    frozen and its most important neurons reserved.

    Args:
        model: a `SubspaceNetwork`; its connections come with the tasks.
        optimizer: any elementwise torch optimizer over the model's parameters; its state begins anew at each task.
        criterion: loss of logits and class indices.
        train_mb_size: samples in a training batch.
        train_epochs: epochs of each task.
        eval_mb_size: samples in an evaluation batch.
        device: where to compute.
        plugins: Avalanche plugins; a `ValueError` for those that want the same parameters in every task (EWC, …).
        evaluator: Avalanche's evaluation plugin.
        eval_every: as in Avalanche.
        seed: of every draw; None takes one from torch's global generator. Only the order of batches from data that do
            not lie in memory is drawn by Avalanche's loader, from the global one.
        multi_head: whether each task has units of its own for the same labels (permuted tasks).
        labels: number of labels; the model's units by default.
        **options: of `SubspaceOptions`; `sizes` left out fits five tasks.
    """

    @accepting(SubspaceOptions)
    def __init__(
        self,
        *,
        model: SubspaceNetwork,
        optimizer: torch.optim.Optimizer,
        criterion: nn.Module | None = None,
        train_mb_size: int = 128,
        train_epochs: int = 4,
        eval_mb_size: int | None = 1024,
        device: str | torch.device = "cpu",
        plugins: Sequence[Any] | None = None,
        evaluator: Any = default_evaluator,
        eval_every: int = -1,
        seed: int | None = None,
        multi_head: bool = False,
        labels: int | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(model, SubspaceNetwork):
            raise TypeError(f"`model` must be a `SubspaceNetwork`, got {type(model).__name__}; make one of its layers")
        check_plugins(plugins)
        chosen = {**self.defaults(options.get("isolation", "shared"), multi_head), **options}
        chosen.setdefault("sizes", Sizes.fitting([*model.shapes.values()], 2, 5))
        self.options = SubspaceOptions(**chosen)
        if len(self.options.sizes.connections) != len(model.shapes):
            raise ValueError(
                f"`sizes` is for {len(self.options.sizes.connections)} layers, the model has {len(model.shapes)}; "
                "give connections for every layer, neurons for every hidden one"
            )
        super().__init__(
            model=model, optimizer=optimizer, criterion=criterion or nn.CrossEntropyLoss(), device=device,
            train_mb_size=train_mb_size, train_epochs=train_epochs, eval_mb_size=eval_mb_size, plugins=plugins,
            evaluator=evaluator, eval_every=eval_every,
        )  # fmt: skip
        self.network = model
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.multi_head = multi_head
        self.labels = model.units if labels is None else labels
        self.ledger = TaskLedger(model.shapes, shared_inputs=self.options.read_reserved)
        self.archive = Archive(model, self.strict, self.options.reads)
        self.grants: dict[str, Grant] = {}
        self.seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
        self._draws = generators(self.seed, *_DRAWS)
        self._batch_generator = self._draws["batches"]
        self._current: Task | None = None
        self._resumed: Mapping[str, Any] | None = None

    @classmethod
    def defaults(cls, isolation: str, multi_head: bool) -> dict[str, Any]:
        """The options in which a strategy differs from `SubspaceOptions`; multi-head is where tasks share labels."""
        return {}

    # ---- one task, from its first connection to its reservation

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Avalanche's, then the task begins: the first `make_optimizer` there wipes optimizer state."""
        super().check_model_and_optimizer(**kwargs)
        if self._resumed is not None:
            self._continue_task()
        else:
            self._begin_task()

    def _begin_task(self) -> None:
        number = len(self.tasks)
        task = self._task_of(self.experience, number)
        grants = self._plan(task)  # nothing has changed yet if this fails
        self._reclaim(grants)
        self.let_go()  # of what an earlier call left behind that was interrupted
        self._current, self.grants, self.epochs_done = task, grants, 0
        for name, layer in self.network.chain.items():
            positions = grants[name].positions
            new = Connections(positions, self._initial(layer, positions).to(layer.values))
            frozen = self.archive.visible(name, number) if self.strict else frozen_connections(layer)
            bias, fixed = self._initial_biases(name, layer)
            connect(layer, frozen, new, bias, fixed)
        if self.strict:
            for norm in self.network.norm_of.values():
                norm.begin()
        self.optimizer.state = defaultdict(dict)
        self.sparsifier = self._make_sparsifier()

    def _plan(self, task: Task) -> dict[str, Grant]:
        """Neurons and first connections of a task that begins."""
        before = self._draws["allocation"].get_state()
        try:
            return self._allot(task)
        except CapacityError:
            self._draws["allocation"].set_state(before)
            raise

    def _allot(self, task: Task) -> dict[str, Grant]:
        """The plan itself, which draws."""
        return self.ledger.plan(
            self._demands(task), self._trained_units(task), self._draws["allocation"],
            policy=self.options.policy, worth=self.archive.worth,
        )  # fmt: skip

    def _demands(self, task: Task) -> dict[str, Demand]:
        """What a task wants of each layer."""
        return self.options.sizes.demands(self.ledger.names)

    def _trained_units(self, task: Task) -> Tensor:
        """Outputs that take part in a task's training, ascending."""
        return task.units

    def _task_of(self, experience: Any, number: int) -> Task:
        classes = classes_of(experience)
        if classes[-1] >= self.labels:
            raise ValueError(f"task {number + 1} has a class {classes[-1]}, the learner knows 0 to {self.labels - 1}")
        first = number * self.labels if self.multi_head else 0
        units = torch.tensor(classes) + first
        if int(units[-1]) >= self.network.units:
            raise ValueError(
                f"task {number + 1} needs output {int(units[-1])}, the network has {self.network.units}; "
                "give it units for every task and label"
                + (f", or fewer `labels` a task than {self.labels}" if self.multi_head else "")
            )
        known = {int(label) for label in getattr(experience, "task_labels", [])}
        return Task(classes, units, known.pop() if len(known) == 1 else None, {}, {}, {})

    def _initial(self, layer: SparseLinear, positions: Tensor) -> Tensor:
        """Values of new connections, drawn in the order of their positions."""
        (outputs, inputs), each = layer.shape, layer.values.shape[1:]
        size = (positions.numel(), *each)
        drawn = torch.rand(size, generator=self._draws["weights"], dtype=layer.values.dtype) * 2 - 1
        if self.options.init == "xavier":
            return drawn * (6 / ((inputs + outputs) * each.numel())) ** 0.5
        fan_in = torch.bincount(positions // inputs, minlength=outputs)[positions // inputs] * each.numel()
        return drawn * (6 / fan_in).sqrt().view(-1, *[1] * len(each))

    def _initial_biases(self, name: str, layer: SparseLinear) -> tuple[Tensor, Tensor]:
        """Biases to begin a task with, and those that stay as they are: other units' always."""
        assert self._current is not None
        if name == self.ledger.names[-1]:
            others = torch.ones(self.network.units, dtype=torch.bool)
            if self.options.head_bias:
                others[self._trained_units(self._current)] = False
            return all_biases(layer), others.nonzero().squeeze(1)
        if self.strict:
            return all_biases(layer).zero_(), torch.empty(0, dtype=torch.int64)
        return all_biases(layer), layer.frozen_bias.cpu().long()

    def _make_sparsifier(self) -> Sparsifier:
        iterations = len(self.dataloader)
        number, last = len(self.tasks), self.ledger.names[-1]
        nowhere = torch.empty(0, dtype=torch.int64)
        constraints = {
            name: Constraint(nowhere if name == last else grant.outputs, grant.inputs, self.ledger.taken(name))
            for name, grant in self.grants.items()
        }
        options, total = self.options, max(iterations * self.train_epochs, 1)
        period = max(iterations if options.period is None else options.period, 1)
        return Sparsifier(
            self.network, self.optimizer, drop=options.drop, grow=options.grow, drop_fraction=options.drop_fraction,
            schedule=options.schedule, regrow=options.regrow, period=period, total_steps=total,
            stop=min(options.stop, max(1 - period / total, 0)), capture_batches=options.capture_batches,
            constraints=constraints, importance=self._make_importance(), seed=task_seed(self.seed, number),
        )  # fmt: skip

    def _make_importance(self) -> PathImportance | None:
        """What gathers importance; None where nobody asks for it, since it costs a sixth of a step."""
        drop, grow = self.options.drop, self.options.grow
        asked = drop is not None and DROP_RULES[drop].needs_importance
        asked |= grow is not None and GROW_RULES[grow].needs_importance
        chosen = any(0 < grant.reserved < grant.outputs.numel() for grant in self.grants.values())
        if asked or chosen or self.options.policy == "reclaim":
            return PathImportance(self.network.chain, self.network.upstream)
        return None

    def _before_update(self, **kwargs: Any) -> None:
        super()._before_update(**kwargs)
        if self.options.rate_schedule != "constant":
            assert self.sparsifier is not None
            total = len(self.dataloader) * self.train_epochs
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = SCHEDULES[self.options.rate_schedule](rate, total)(self.sparsifier.steps)

    def _after_training_exp(self, **kwargs: Any) -> None:
        """The task ends before plugins hear of it, so that a last evaluation sees it closed."""
        self._end_task()
        super()._after_training_exp(**kwargs)

    def _end_task(self) -> None:
        assert self._current is not None
        assert self.sparsifier is not None
        chain, importance = self.network.chain, self.sparsifier.importance
        scores = {
            name: torch.zeros(self.ledger.shapes[name][0]) if importance is None else importance.signals(name).outputs
            for name in self.ledger.hidden
        }
        reserved = {name: self._reserve(self.grants[name], scores[name]) for name in self.ledger.hidden}
        self.let_go()
        if self.options.calibrate:
            x, y = self._own_samples()
            with evaluating(self.network):
                calibrate(self.network, x, y, self._current.units, torch.tensor(self._current.classes))
        own = {name: movable_connections(layer) for name, layer in chain.items()}
        if not all(bool(part.values.isfinite().all()) for part in own.values()):
            log.warning("task %d has diverged: lower the learning rate", len(self.tasks) + 1)
        self.ledger.close_task({name: part.positions for name, part in own.items()}, reserved, scores)
        self.archive.add(self._current)
        if not self.strict:
            for name, layer in chain.items():
                done = self._neurons_to_freeze(name)
                layer.freeze(None, done[~among(done, layer.frozen_bias.cpu().long())])
                if name in self.network.norm_of:
                    self.network.norm_of[name].freeze(done)
        self.optimizer.state = defaultdict(dict)
        self._current, self.grants = None, {}

    def _own_samples(self) -> tuple[Tensor, Tensor]:
        """The task's training samples and labels, on the device."""
        x, y = samples_of(self.experience.dataset)
        return x.to(self.device), y.to(self.device)

    @staticmethod
    def _reserve(grant: Grant, scores: Tensor) -> Tensor:
        """The most important of the selected neurons."""
        return grant.outputs[largest(scores[grant.outputs], grant.reserved)]

    def _neurons_to_freeze(self, name: str) -> Tensor:
        """Neurons whose bias and normalisation belong to finished tasks now, ascending."""
        if name == self.ledger.names[-1]:
            assert self._current is not None
            return self._current.units
        if self.options.biases == "used":
            # A neuron may have lost all its inputs and still be read, for its bias.
            (outputs, inputs), after = self.ledger.shapes[name], self.ledger.names[self.ledger.names.index(name) + 1]
            width = self.ledger.shapes[after][1]
            read = self.ledger.taken(after) % width // (width // outputs)
            return torch.cat([self.ledger.taken(name) // inputs, read]).unique()
        return (self.ledger.reserved_by[name] >= 0).nonzero().squeeze(1)

    # ---- capacity

    def _reclaim(self, grants: Mapping[str, Grant]) -> None:
        """Take from earlier tasks what a plan needs, and say what that costs."""
        for name, grant in grants.items():
            if grant.released.numel():
                owners = self.ledger.reserved_by[name][grant.released].tolist()
                log.warning(
                    "layer %s: %d reserved neurons of tasks %s lose their protection to make room",
                    name, grant.released.numel(), sorted({owner + 1 for owner in owners}),
                )  # fmt: skip
                self.ledger.release(name, grant.released)
            if grant.given_back.numel():
                lost = self.ledger.give_back(name, grant.given_back)
                by_task = ", ".join(f"task {task + 1}: {count}" for task, count in enumerate(lost.tolist()) if count)
                log.warning("layer %s: connections given back to make room (%s)", name, by_task)
                self.archive.keep_only(name, self.ledger.taken(name))

    # ---- forward, loss and scores

    def forward(self) -> Tensor:
        """Logits of the current task while training, scores of all labels while evaluating."""
        if self.is_training:
            x, self._wanted = self._training_samples()
            self._logits = self.network(x)
            logits = self._logits[: self.mb_x.shape[0]]
            return self._by_label(logits) if self.multi_head else logits
        number = self._known_task()
        return self.class_scores(self.mb_x) if number is None else self.task_scores(self.mb_x, number)

    def criterion(self) -> Tensor:
        """The head's loss while training."""
        if not self.is_training:
            # A label that has not come yet scores -inf; its loss is large, but a number.
            return self._criterion(self.mb_output.clamp(min=-1e4), self.mb_y)
        return HEADS[self.options.head](self._targets(self._logits, self._wanted), self._criterion)

    def _training_samples(self) -> tuple[Tensor, Tensor]:
        """What a step trains on, and each sample's unit: the mini-batch first, then what a strategy adds.

        Unit -1 is for what is of no class.
        """
        return self.mb_x, self._units_of(self.mb_y)

    def _units_of(self, y: Tensor) -> Tensor:
        """The current task's units of its labels."""
        return y + len(self.archive.tasks) * self.labels if self.multi_head else y

    def _targets(self, logits: Tensor, wanted: Tensor) -> Targets:
        assert self._current is not None
        bias = self.network.chain[self.ledger.names[-1]].effective_bias()
        assert bias is not None
        units = self._trained_units(self._current).to(wanted.device)
        local = places(units, wanted, "to rehearse earlier classes take `SpaceNetRehearsal`, not a replay plugin")
        return Targets(logits, units, local, bias)

    # ---- what it costs, and its state

    def costs(self) -> Costs:
        """Connections, neurons and bytes of all tasks so far, and the arithmetic of scoring one sample."""
        table = self.ledger.table()
        values, indices = self.archive.nbytes()
        taps = {name: layer.values.shape[1:].numel() for name, layer in self.network.chain.items()}
        return Costs(
            nnz=sum(row.connections * taps[row.layer] for row in table), neurons=sum(row.used for row in table[:-1]),
            parameter_bytes=values, index_bytes=indices, flops=self.archive.flops(),
            capacity=tuple(asdict(row) for row in table),
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs, in plain containers; the tensors are the live ones, so store it first."""
        if self._resumed is not None:  # the optimizer has not been given its state back yet
            return dict(self._resumed)
        return {
            "tasks": [task.plain() for task in self._all_tasks()],
            "grants": {name: vars(grant) for name, grant in self.grants.items()},
            "ledger": self.ledger.state_dict(),
            "network": dict(self.network.state_dict()),
            "generators": {name: generator.get_state() for name, generator in self._draws.items()},
            "epochs_done": self.epochs_done,
            "optimizer": self.optimizer.state_dict() if self._current else None,
            "sparsifier": self.sparsifier.state_dict() if self.sparsifier else None,
        }  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave; within a task, the next call of `train` must be for the task's experience."""
        tasks = [Task.from_plain(entry) for entry in state["tasks"]]
        self.let_go()
        self.ledger.load_state_dict(state["ledger"])
        self.network.load_state_dict(state["network"])
        self.archive.restore(tasks[: self.ledger.tasks])
        self._current = tasks[self.ledger.tasks] if len(tasks) > self.ledger.tasks else None
        self.grants = {name: Grant(**grant) for name, grant in state["grants"].items()}
        self.epochs_done = state["epochs_done"]
        for name, generator in self._draws.items():
            generator.set_state(state["generators"][name])
        self._resumed = state if self._current is not None else None

    def _continue_task(self) -> None:
        assert self._resumed is not None
        assert self._current is not None
        if classes_of(self.experience) != self._current.classes:
            raise ValueError(
                f"the state is from within the task of classes {self._current.classes}, got an experience with "
                f"{classes_of(self.experience)}; go on with the same task"
            )
        self.optimizer.load_state_dict(self._resumed["optimizer"])
        self.sparsifier = self._make_sparsifier()
        self.sparsifier.load_state_dict(self._resumed["sparsifier"])
        self._resumed = None
