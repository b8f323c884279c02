"""SpaceNet: as we would have it, as it was released, and without moving connections (arXiv:2007.07617)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from continual.learner import NoChoice, Setup
from continual.networks import SubspaceNetwork
from continual.options import Sizes
from continual.subspaces import SubspaceStrategy
from sparse_core import SparseLinear
from sparse_core.draws import among
from sparse_core.importance import PathImportance, Signals
from sparse_core.topology import Rewiring


class SpaceNet(SubspaceStrategy):
    """One shared network in which every task reserves neurons; ours, on the ideas of SpaceNet (arXiv:2007.07617)."""

    @classmethod
    def defaults(cls, isolation: str, multi_head: bool) -> dict[str, Any]:
        """One configuration for each isolation, chosen on validation data; docs/results.md says how.

        Tasks that share their labels have all classes and as many samples as the whole set.
        """
        moving = {"grow": "gradient", "schedule": "cosine", "drop_fraction": 0.3, "capture_batches": 8}
        if isolation == "strict":
            return {
                **moving, "head": "current", "drop": "magnitude", "period": 40 if multi_head else 20, "stop": 0.75,
                "init": "he", "reads": "own", "rate_schedule": "cosine",
            }  # fmt: skip
        return {
            **moving, "head": "zeroed", "drop": "importance", "period": 20, "head_bias": multi_head,
            "calibrate": not multi_head, "read_reserved": False,
        }  # fmt: skip

    @classmethod
    def optimization(cls, isolation: str, multi_head: bool) -> tuple[str, float]:
        """Optimizer and learning rate where none is given."""
        if isolation == "strict":
            return "adam", 0.008 if multi_head else 0.004
        return "sgd", 0.1 if multi_head else 0.01

    @classmethod
    def for_setup(cls, setup: Setup, **chosen: Any) -> Self:
        """The strategy with its own network and sizes for a benchmark; a `ValueError` for a choice it has not."""
        known = cls.known_options()
        unknown = [name for name in setup.options if name not in known]
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}; this strategy's options: {', '.join(sorted(known))}")
        if setup.initial_topology is not None:
            raise NoChoice(["initial_topology"], "every task's connections are its own plan's")
        if setup.memory is not None and "memory" not in known:
            raise NoChoice(["memory"], "it stores no images")
        if setup.memory is not None and "memory" not in chosen:
            raise ValueError(f"`memory` is for strategies that rehearse; {cls.__name__} stores no images, leave it out")
        multi_head = setup.benchmark.scenario == "domain-il"
        labels = setup.benchmark.classes
        network = SubspaceNetwork(
            setup.benchmark.input_shape if setup.channels else setup.inputs, setup.hidden,
            labels * setup.tasks if multi_head else labels, channels=setup.channels, norm=setup.norm,
            backend=setup.backend,
        )  # fmt: skip
        if "isolation" in setup.options:
            raise ValueError("sizes and optimizer follow `isolation`: give it as a choice of its own, not as an option")
        isolation = setup.isolation or chosen.get("isolation", "shared")
        sizes = cls.sizes([*network.shapes.values()], setup.classes_per_task, setup.tasks, isolation, multi_head)
        options = {"sizes": sizes, **chosen, "isolation": isolation}
        options |= setup.given(epochs="train_epochs", batch_size="train_mb_size", head="head", policy="policy")
        options |= setup.options
        return cls(
            model=network,
            optimizer=setup.make_optimizer(network.parameters(), *cls.optimization(isolation, multi_head)),
            device=setup.device, plugins=list(setup.plugins), evaluator=setup.evaluator, seed=setup.seed,
            multi_head=multi_head, labels=labels, **options,
        )  # fmt: skip

    @classmethod
    def known_options(cls) -> set[str]:
        """Keywords that choose how the strategy learns, a subclass's own among them."""
        chain = [each for each in cls.__mro__ if issubclass(each, SubspaceStrategy) and "__init__" in vars(each)]
        named = {
            name
            for each in chain
            for name, parameter in inspect.signature(vars(each)["__init__"]).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        return named - {"model", "optimizer", "device", "plugins", "evaluator", "seed", "multi_head", "labels"}

    @classmethod
    def sizes(
        cls, shapes: Sequence[tuple[int, int]], classes: int, tasks: int, isolation: str, multi_head: bool
    ) -> Sizes:
        """What each of so many tasks gets in a network of these layers: all its neurons for itself, if they suffice."""
        if isolation == "strict" and multi_head:  # every neuron for every task, four fifths of the cells for all
            return Sizes.fitting(
                shapes, classes, tasks, share=1.0, densities=(0.0733, 0.09, 0.5), reserve=0.0, fill=0.9
            )
        if isolation == "strict":  # positions are what tasks share; neurons need no reservation
            return Sizes.fitting(shapes, classes, tasks, densities=(0.16, 0.256, 1.0), reserve=0.0)
        return Sizes.fitting(shapes, classes, tasks, reserve=1.0)


class SpaceNet2021(SpaceNet):
    """What the release does, quirks included (docs/deviations.md); the regression baseline, not a recommendation."""

    @classmethod
    def optimization(cls, isolation: str, multi_head: bool) -> tuple[str, float]:
        """The release's."""
        return "sgd", 0.01

    @classmethod
    def defaults(cls, isolation: str, multi_head: bool) -> dict[str, Any]:
        """The release's choices."""
        return {
            "head": "zeroed", "drop": "importance", "grow": "importance", "drop_fraction": 0.2, "schedule": "constant",
            "init": "xavier", "biases": "reserved", "read_reserved": False,
        }  # fmt: skip

    @classmethod
    def sizes(
        cls, shapes: Sequence[tuple[int, int]], classes: int, tasks: int, isolation: str, multi_head: bool
    ) -> Sizes:
        """The release's densities between selected neurons: 10,000, 1,640 and 80 connections in 784-80-80-2."""
        densities = (10_000 / (784 * 80), 1_640 / 6_400, 0.5)
        return Sizes.fitting(shapes, classes, tasks, densities=densities)

    def _make_importance(self) -> PathImportance:
        reserved = {name: self.ledger.reserved_by[name] >= 0 for name in self.ledger.hidden}
        return ReleaseImportance(self.network.chain, self.network.upstream, reserved)


class ReleaseImportance(PathImportance):
    """Importance as the release adds it up: never cleared, of dropped connections too, and for neurons twice over.

    A neuron's importance grows at every step by the whole sum its connections have reached: inputs sum over
    outgoing, hidden neurons over incoming connections, reserved neurons stay at zero.

    Args:
        layers: the chain of layers by name, in order.
        upstream: for each layer but the first, the one it reads.
        reserved: for each hidden layer, which neurons are reserved (outputs,).
    """

    def __init__(
        self, layers: Mapping[str, SparseLinear], upstream: Mapping[str, str], reserved: Mapping[str, Tensor]
    ) -> None:
        super().__init__(layers, upstream)
        self._first = next(iter(self.layers))
        self._free = {name: ~neurons for name, neurons in reserved.items()}
        self._ghosts = {name: (torch.empty(0, dtype=torch.int64), self.totals[name][:0].cpu()) for name in self.layers}
        self._neurons = {name: self.totals[name].new_zeros(self.layers[name].shape[0]).cpu() for name in reserved}
        self._inputs = self.totals[self._first].new_zeros(self.layers[self._first].shape[1]).cpu()
        self._index()

    def _index(self) -> None:
        """Rows and columns of the connections, and what the dropped ones still add, until the next change."""
        self._rows = {name: self.layers[name].positions.cpu() // self.layers[name].shape[1] for name in self._neurons}
        self._columns = self.layers[self._first].positions.cpu() % self.layers[self._first].shape[1]
        self._still = {}
        for name, neurons in self._neurons.items():
            positions, totals = self._ghosts[name]
            self._still[name] = torch.zeros_like(neurons).index_add_(0, positions // self.layers[name].shape[1], totals)
        positions, totals = self._ghosts[self._first]
        width = self.layers[self._first].shape[1]
        self._still_inputs = torch.zeros_like(self._inputs).index_add_(0, positions % width, totals)

    @torch.no_grad()
    def after_step(self) -> None:
        """Add what the step has done, to connections and then to neurons."""
        super().after_step()
        for name, neurons in self._neurons.items():
            neurons.add_(self._still[name]).index_add_(0, self._rows[name], self.totals[name].cpu())
            neurons.mul_(self._free[name])
        self._inputs.add_(self._still_inputs).index_add_(0, self._columns, self.totals[self._first].cpu())

    def signals(self, name: str) -> Signals:
        """Importance in the layer `name`; the output layer's neurons have none."""
        outputs = self._neurons.get(name)
        inputs = self._inputs if name == self._first else self._neurons[self.upstream[name]]
        inputs = inputs.repeat_interleave(self.layers[name].shape[1] // inputs.numel())
        if outputs is None:
            outputs = inputs.new_zeros(self.layers[name].shape[0])
        return Signals(self.totals[name].cpu(), outputs, inputs)

    def rewired(self, rewirings: Mapping[str, Rewiring]) -> None:
        """Follow a topology change: what is dropped keeps counting, and counts on where it grows again."""
        for name, rewiring in rewirings.items():
            totals = self.totals[name].cpu()
            gone = torch.searchsorted(rewiring.before, rewiring.dropped.sort().values)
            positions, order = torch.cat([self._ghosts[name][0], rewiring.before[gone]]).sort()
            kept = torch.cat([self._ghosts[name][1], totals[gone]])[order]
            carried = rewiring.carry(totals)
            back = among(rewiring.after, positions) & (rewiring.source < 0)
            carried[back] = kept[torch.searchsorted(positions, rewiring.after[back])]
            still = ~among(positions, rewiring.after)
            self._ghosts[name] = positions[still], kept[still]
            self.totals[name] = carried.to(self.totals[name].device)
        self._index()

    def state_dict(self) -> dict[str, Any]:
        """All sums."""
        return {
            **super().state_dict(),
            "ghosts": dict(self._ghosts),
            "neurons": dict(self._neurons),
            "inputs": self._inputs,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        super().load_state_dict(state)
        self._ghosts = {name: (positions, totals) for name, (positions, totals) in state["ghosts"].items()}
        self._neurons = {name: tensor.clone() for name, tensor in state["neurons"].items()}
        self._inputs = state["inputs"].clone()
        self._index()
