"""One model, one optimizer, two rules and a schedule: the thing that moves connections while weights learn."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparse_core.activity import activities, chain_of
from sparse_core.birth import BIRTHS, Birth
from sparse_core.captures import Captures
from sparse_core.change import Method
from sparse_core.choosing import Choosing
from sparse_core.courses import course_of_counts
from sparse_core.curvature import Closure, flow_shares
from sparse_core.draws import generators, whole
from sparse_core.drop import DROP_RULES, DropRule
from sparse_core.grow import GROW_RULES
from sparse_core.importance import PathImportance
from sparse_core.layers import SparseLinear, learning, sparse_layers
from sparse_core.maskings import MASKINGS, Masks, check_masks
from sparse_core.method_checks import check_keywords, check_method, check_single_weights, slip
from sparse_core.neuron_pruning import NeuronPruning
from sparse_core.optimizer_state import carry_state, check_elementwise, check_held, share_age, warm_up
from sparse_core.presets import PRESETS, Preset
from sparse_core.schedules import SCHEDULES, Every
from sparse_core.steps import StepRuns
from sparse_core.topology import Regrow, Rewiring
from sparse_core.view import Constraint, LayerView
from sparse_core.weight_count import WeightCount

logger = logging.getLogger(__name__)

Rewirings = dict[str, Rewiring]


class Sparsifier:
    """Moves the connections of a model's sparse layers; call `step()` after every `optimizer.step()`.

    Args:
        model: holds the sparse layers.
        optimizer: updates their values; any elementwise torch optimizer.
        drop: name of a drop rule, with options (`"name:option=value"`); None for a topology that never changes.
        grow: name of a grow rule, as `drop`.
        drop_fraction: share ζ of each layer's movable connections that change, in [0, 1], at the start.
        schedule: name of the course of ζ over the steps until `stop`.
        period: steps between two changes; the first is at step `period`.
        total_steps: length of training, wanted by everything that has a course but a constant ζ without `stop`.
        stop: share of `total_steps` after which the topology stays.
        regrow: whether a connection dropped in a change may grow again in it: `"no"`, `"kept"` (with its
            value and state, as SET and RigL were released) or `"fresh"`.
        capture_batches: batches before a change over which rules look that see gradients or activations.
        capture_stride: steps in which one such batch comes (an actor updated every second step: 2).
        birth: value of a new connection: a number, or the name of a birth.
        constraints: per layer name, where growth is allowed.
        importance: gathers the importance of connections; made where a rule needs it and none is given.
        followers: models with the same sparse layers that take the same changes: target networks, and averages of
            weights (`AveragedModel(model).module`, without `use_buffers`), which would mix connections otherwise.
        seed: of the topology's generators, one per layer, on the CPU.
        sparsity: final sparsity of the whole model, wanted by a method whose sparsity has a course (`course`).
        **choices: the other fields of `Preset`: `grow_mix`, `drop_temperature`, `redistribute`, `prune`, …

    Raises:
        ValueError: for unknown names or values out of range.
        TypeError: for an optimizer that is not elementwise, where connections move.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        drop: str | None,
        grow: str | None,
        drop_fraction: float = 0.3,
        schedule: str = "constant",
        period: int = 100,
        total_steps: int | None = None,
        stop: float = 1.0,
        regrow: Regrow = "no",
        capture_batches: int = 1,
        capture_stride: int = 1,
        birth: float | str = 0.0,
        constraints: Mapping[str, Constraint] | None = None,
        importance: PathImportance | None = None,
        followers: Iterable[nn.Module] = (),
        seed: int | None = None,
        sparsity: float | None = None,
        **choices: Any,
    ) -> None:
        check_keywords(choices, inspect.signature(Sparsifier).parameters)
        method = Preset(
            "", drop=drop, grow=grow, drop_fraction=drop_fraction, schedule=schedule, period=period, stop=stop,
            regrow=regrow, capture_batches=capture_batches, birth=birth, **choices,
        )  # fmt: skip
        check_method(method, capture_stride, total_steps, sparsity)
        if method.changes:
            check_elementwise(optimizer)
        self.optimizer, self.choices = optimizer, method
        self.layers = sparse_layers(model)
        self.followers = [_matching_layers(self.layers, follower) for follower in followers]
        check_masks(self.layers, method.rule(method.masking, MASKINGS))
        self.masks = Masks(self.layers, self.followers) if method.masking else None
        self.constraints = dict(constraints or {})
        unknown = set(self.constraints) - set(self.layers)
        if unknown:
            raise ValueError(
                f"`constraints` names no sparse layer with {sorted(unknown)}; known: {', '.join(self.layers)}"
            )
        check_held(self.layers, optimizer)
        check_single_weights(method, self.layers)
        self.method = _method(method, self.layers)
        self.birth: float | Birth = BIRTHS[birth] if isinstance(birth, str) else birth
        rules = [part[1] for part in (self.method.drop, self.method.grow, self.method.prune) if part is not None]
        births = [self.birth] if isinstance(self.birth, Birth) else []
        self.needs_capture = any(rule.needs_capture for rule in [*rules, *births]) or method.redistribute == "gradient"
        self._wants_closure = any(isinstance(rule, DropRule) and rule.needs_closure for rule in rules)
        last = period if method.once else None if total_steps is None else whole(stop * total_steps)
        self.fraction = SCHEDULES[schedule](drop_fraction, last or 0)
        self.every = Every(period, last)
        self._last_change = 0 if last is None else last // period * period
        observer = None if self.method.grow is None else self.method.grow[1].observe
        self._captures = Captures(
            self.layers, capture_batches if self.needs_capture else 0, capture_stride, self.every, observer
        )
        self._generators = generators(seed, *self.layers)
        self._memory: dict[str, dict[str, Tensor]] = {name: {} for name in self.layers}
        self._marks: dict[str, dict[str, Tensor]] = {name: {} for name in self.layers}
        self._activities = activities(model)
        self.neurons = NeuronPruning.of(model)
        self._course = course_of_counts(method, model, self.layers, sparsity)
        self.steps = 0
        self.changes = 0
        self._looks = 0
        self._pending = False
        self._weights = WeightCount(self.layers)
        if method.warmup:
            warm_up(optimizer, method.warmup)
        if not method.ages:
            share_age(optimizer)
        if importance is None and any(rule.needs_importance for rule in rules):
            importance = PathImportance(self.layers)
        self.importance = importance
        self._attach()
        self._captures.arm(0, False)

    def _attach(self) -> None:
        rule = self.choices.step_rule
        runs = None if rule is None else StepRuns(rule, self.layers, self._marks, self.optimizer, self._generators)
        self._around = [each for each in (self.importance, runs, self.masks) if each is not None]
        self._hooks: list[RemovableHandle] = []
        if self._around:
            self._hooks = [
                self.optimizer.register_step_pre_hook(self._before_step),
                self.optimizer.register_step_post_hook(self._after_step),
            ]

    def _before_step(self, *_: Any) -> None:
        for each in self._around:
            each.before_step()

    def _after_step(self, *_: Any) -> None:
        for each in self._around:
            each.after_step()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": [], "_around": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()  # optimizers leave their hooks behind when they are copied

    def detach(self) -> None:
        """Let go of layers and optimizer: nothing is captured or gathered for this sparsifier any more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._captures.drop()

    @classmethod
    def preset(cls, name: str, model: nn.Module, optimizer: Optimizer, **overrides: Any) -> Sparsifier:
        """The method called `name` (see `PRESETS`); keyword arguments override its choices."""
        preset = PRESETS[name]
        if preset.dense and sparse_layers(model):
            raise ValueError(f"preset {name!r} is the dense baseline, but the model has sparse layers; use 'static'")
        choices = {each.name: getattr(preset, each.name) for each in fields(preset) if each.name != "summary"}
        if not preset.changes:
            choices.update(schedule="constant", stop=1.0)
        return cls(model, optimizer, **{**choices, **overrides})

    def step(self, allowed: bool = True, closure: Closure | None = None) -> Rewirings:
        """Count one training step and change the topology when that is due.

        Where a change is due but not `allowed`, it waits for the next step that is. Masks (`Preset.masking`) are no
        topology: they are chosen anew when that is due, in the model and its followers, and no change is returned.

        Args:
            allowed: whether a change that is due may happen now.
            closure: works out the loss of the current batch anew and calls `backward()`; wanted where `needs_closure`
                says so (`grasp`), called at changes only.

        Returns:
            The changes by layer name; empty when nothing was due.

        Raises:
            ValueError: without a closure where one is wanted.
        """
        if self.needs_closure and closure is None:
            raise ValueError(
                f"`prune={self.choices.prune!r}` asks how the gradient changes; give `step` a `closure` that works out "
                "the loss of the current batch anew and calls `backward()`"
            )
        self.steps += 1
        if self.steps == 1 and (why := slip(self.choices, self.layers, self._course, bool(self.followers))):
            logger.warning("no connection will move: %s", why)
        if not self.choices.changes:
            return {}
        if self.masks is not None:
            return self.update() if self.every.due(self.steps) else {}
        self._looks += self._captures.show(self.steps, self._memory)
        self._pending = self._pending or self.every.due(self.steps)
        rewirings = self.update(closure) if self._pending and allowed else {}
        self._captures.arm(self.steps, self._pending)
        return rewirings

    def update(self, closure: Closure | None = None) -> Rewirings:
        """Change the topology now: drop, grow, carry values, optimizer state and followers along.

        Layers whose values do not learn (`requires_grad_(False)`) stay as they are.
        """
        if not self.choices.changes:
            return {}
        if self.masks is not None:
            self._weights.sum_up(self.steps)
            self.masks.refresh()
            self.changes += 1
            return {}
        # All changes are worked out before the first is applied: an error leaves every layer as it was.
        memory = {name: dict(own) for name, own in self._memory.items()}
        neurons = self.neurons
        if self.choices.pruned_neurons and self.way >= self.choices.neurons_from:
            neurons = neurons.more(self.layers, self.constraints, self.choices.pruned_neurons)
        layers = learning(self.layers)
        views = {name: self._view(name, layer, memory[name], neurons) for name, layer in layers.items()}
        if self._wants_closure and closure is not None:
            with self.paused():
                shares = flow_shares(layers, closure)
            views = {name: replace(view, flow_shares=shares[name]) for name, view in views.items()}
        target = None if self._course is None else self._course(self.way)
        if isinstance(target, int):  # in all: less what stays
            still = {name: layer.values.shape[0] for name, layer in self.layers.items() if name not in layers}
            if still and target - sum(still.values()) < len(layers):
                raise ValueError(
                    f"{', '.join(map(repr, still))} do not learn and so keep {sum(still.values()):,} connections, but "
                    f"all layers are to have {target:,}; let them learn, or choose a lower sparsity"
                )
            target -= sum(still.values())
        method = self._warmed()
        rewirings = method.change(
            views, self.fraction(self.steps), target, neurons.lost(views) if neurons.gone else None
        )
        births = {name: self._births(views[name], rewiring) for name, rewiring in rewirings.items()}
        self._pending, self._memory, self.neurons = False, memory, neurons
        self._captures.drop()
        # A share of none is not looked for; what is may come back to where it was.
        moved = any(rewiring.dropped.numel() or rewiring.grown.numel() for rewiring in rewirings.values())
        if moved or any(whole(self.fraction(self.steps) * view.count) for view in views.values()):
            self._looks += self.choices.capture_batches if self._looks_before_changes else 0
        self._apply_all(rewirings, births)
        return rewirings

    def prune_neurons(self, share: float) -> Rewirings:
        """Take all connections from the weakest neurons of each hidden layer, now and for good (`NeuronPruning`).

        Args:
            share: of each hidden layer, those that were pruned before included, in [0, 1).

        Returns:
            The changes by layer name. Optimizer state and followers go along; nothing grows where neurons are gone.

        Raises:
            ValueError: for a share out of range, or with maskings, whose layers keep their weights.
        """
        if not 0 <= share < 1:
            raise ValueError(f"`share` must be in [0, 1), got {share!r}")
        if self.masks is not None:
            raise ValueError("masked layers keep all their weights; make them sparse with `to_sparse` first")
        neurons = self.neurons.more(self.layers, self.constraints, share)
        layers = learning(self.layers)
        views = {name: self._view(name, layer, self._memory[name], neurons) for name, layer in layers.items()}
        rewirings = Method(None, None).change(views, 0.0, lost=neurons.lost(views))
        self.neurons = neurons
        self._apply_all(rewirings, dict.fromkeys(rewirings))
        return rewirings

    def _apply_all(self, rewirings: Rewirings, births: Mapping[str, Tensor | None]) -> None:
        self._weights.sum_up(self.steps)
        for name, rewiring in rewirings.items():
            self._apply(name, rewiring, births[name])
        if self.importance is not None:
            self.importance.rewired(rewirings)
        self.changes += any(rewiring.dropped.numel() or rewiring.grown.numel() for rewiring in rewirings.values())

    @property
    def way(self) -> float:
        """Share of the way to the last change that is covered, in [0, 1]; 0 where training has no known length."""
        return min(self.steps / self._last_change, 1.0) if self._last_change else 0.0

    @property
    def mean_weights(self) -> dict[str, float]:
        """Weights that each layer multiplies, averaged over the steps so far: they change in some methods."""
        return self._weights.mean(self.steps)

    @property
    def needs_closure(self) -> bool:
        """Whether a change that is still to come wants `step` to be given a closure."""
        return self._wants_closure and (self._pending or self.every.next_due(self.steps) is not None)

    @property
    def looks_at_dense_gradient(self) -> bool:
        """Whether a change multiplies out a dense gradient or activation product, 2·B·N operations."""
        plans = self.method.drop is not None and self.method.drop[1].plans
        return plans or (self.method.grow is not None and self.method.grow[1].dense_gradient)

    @property
    def looks(self) -> int:
        """Batches of which gradients of places without a connection were worked out: before changes, or all of them."""
        return self._looks

    @property
    def _looks_before_changes(self) -> bool:
        return self.needs_capture and not self._captures.are_shown

    @property
    def remembered_bytes(self) -> int:
        """Bytes of what rules keep from step to step: nothing for most, a dense matrix for SNFS."""
        own = (kept for each in (self._memory, self._marks) for kept in each.values())
        return sum(tensor.nbytes for kept in own for tensor in kept.values())

    def forget(self, name: str) -> None:
        """Let go of what is remembered and captured of a layer, whose connections have become others."""
        self._memory[name], self._marks[name], self.layers[name].capture = {}, {}, None
        if self.importance is not None:
            self.importance.forget(name)

    def reached_plateau(self) -> None:
        """Say that validation gets no better: methods that search until then (CTRE) grow at random from now on."""
        for own in self._memory.values():
            own["plateau"] = torch.ones(())

    def _warmed(self) -> Method:
        """The method with its temperature of this step."""
        first, last = self.choices.drop_temperature, self.choices.final_drop_temperature
        if first is None or last is None:
            return self.method
        now = Choosing(first + (last - first) * self.way, self.choices.drop_mix)
        return replace(self.method, dropping=now)

    def _view(self, name: str, layer: SparseLinear, memory: dict[str, Tensor], neurons: NeuronPruning) -> LayerView:
        constraint = neurons.narrowed(name, self.constraints.get(name, Constraint()), layer.shape)
        blocked = layer.topology.positions
        if constraint.taken is not None:
            blocked = torch.cat([blocked, constraint.taken]).unique()
        view = LayerView(
            layer.shape, layer.positions.to("cpu", copy=True), layer.strengths.detach().to("cpu", copy=True),
            blocked, self._generators[name], layer.capture, constraint,
            None if self.importance is None else self.importance.signals(name), memory=memory,
            marks={key: mark.cpu() for key, mark in self._marks[name].items()}, progress=self.way,
            activity=self._activities[name],
        )  # fmt: skip
        if not bool(torch.isfinite(view.values).all()):
            raise FloatingPointError(
                f"layer {name!r} has values that are not finite: training has diverged; lower the learning rate"
            )
        return view

    def _births(self, view: LayerView, rewiring: Rewiring) -> Tensor | None:
        """Values of the connections that are new, (k,), in the order of their positions; None for one number."""
        if not isinstance(self.birth, Birth):
            return None
        new = rewiring.after[rewiring.source < 0]
        values: Tensor = self.birth.choose(view, new)
        return values

    def _apply(self, name: str, rewiring: Rewiring, births: Tensor | None = None) -> None:
        layer = self.layers[name]
        followers = [follower[name] for follower in self.followers]
        for each in (layer, *followers):
            each.rewire(rewiring, 0.0 if isinstance(self.birth, Birth) else self.birth)
            if births is not None and births.numel():
                new = (rewiring.source < 0).nonzero().squeeze(1).to(each.values.device)
                with torch.no_grad():
                    each.values[new] = births.to(each.values)
        self._carry(name, rewiring)

    def _carry(self, name: str, rewiring: Rewiring) -> None:
        """Let optimizer state and marks follow a change."""
        carry_state(self.optimizer, self.layers[name].values, rewiring)
        self._marks[name] = {key: rewiring.carry(mark) for key, mark in self._marks[name].items()}

    def freeze(self, name: str, positions: Tensor | None = None, biases: Tensor | None = None) -> None:
        """Freeze connections (flat positions; None: all movable) and biases of one layer, optimizer state following."""
        layer = self.layers[name]
        movable_biases = 0 if layer.bias is None else layer.bias.numel()
        rewiring, kept = layer.freeze(positions, biases)
        self._carry(name, rewiring)
        if self.importance is not None:
            self.importance.frozen(name, rewiring)
        if layer.bias is not None and kept.numel() < movable_biases:
            arange = torch.arange(movable_biases)
            fewer = Rewiring((1, movable_biases), arange, kept, kept, arange[~torch.isin(arange, kept)], arange[:0])
            carry_state(self.optimizer, layer.bias, fewer)
        for follower in self.followers:
            follower[name].freeze(positions, biases)
            # What can no longer change is the same everywhere: nothing would ever bring a lagging value along.
            follower[name].frozen_values.copy_(layer.frozen_values)
            follower[name].frozen_bias_values.copy_(layer.frozen_bias_values)

    def paused(self) -> AbstractContextManager[None]:
        """Within this block forward passes are not captured: losses that must not steer growth."""
        return self._captures.paused()

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while training, captured batches included."""
        return {
            "steps": self.steps,
            "changes": self.changes,
            "looks": self._looks,
            "pending": self._pending,
            "generators": {name: generator.get_state() for name, generator in self._generators.items()},
            "captures": self._captures.state_dict(),
            "importance": None if self.importance is None else self.importance.state_dict(),
            "pruned_neurons": dict(self.neurons.gone),
            "memory": {name: dict(own) for name, own in self._memory.items()},
            "marks": {name: dict(own) for name, own in self._marks.items()},
            **self._weights.state_dict(),
            "course": None if self._course is None else self._course.start,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        if set(state["generators"]) != set(self._generators):
            raise ValueError(
                f"the saved state has layers {sorted(state['generators'])}, this model {sorted(self._generators)}; "
                "build the model as it was when it was saved"
            )
        self.steps, self.changes, self._pending = state["steps"], state["changes"], state["pending"]
        before = self.changes * self.choices.capture_batches if self._looks_before_changes else 0
        earlier = state.get("shown", self.steps) if self._captures.are_shown else before  # of versions without `looks`
        self._looks = state.get("looks", earlier)
        if self.importance is not None and state.get("importance") is not None:
            self.importance.load_state_dict(state["importance"])
        self.neurons = replace(self.neurons, gone=dict(state.get("pruned_neurons", {})))
        self._weights.load_state_dict(state)
        if self._course is not None and state.get("course") is not None:
            self._course.start = state["course"]
        for name, layer in self.layers.items():
            self._generators[name].set_state(state["generators"][name])
            self._memory[name] = dict(state.get("memory", {}).get(name, {}))
            marks = state.get("marks", {}).get(name, {})
            self._marks[name] = {key: mark.to(layer.values.device) for key, mark in marks.items()}
        self._captures.drop()
        self._captures.arm(self.steps, self._pending)
        self._captures.load_state_dict(state["captures"])


def _method(choices: Preset, layers: Mapping[str, SparseLinear]) -> Method:
    """The rules of a change, with their options."""

    def named(name: str | None, registry: Any) -> Any:
        return None if name is None else (name.partition(":")[0], choices.rule(name, registry))

    return Method(
        named(choices.drop, DROP_RULES), named(choices.grow, GROW_RULES), named(choices.prune, DROP_RULES),
        choices.regrow, choices.redistribute, chain_of(layers) if choices.chains else None,
        Choosing(choices.drop_temperature, choices.drop_mix), Choosing(choices.grow_temperature, choices.grow_mix),
    )  # fmt: skip


def _matching_layers(layers: Mapping[str, SparseLinear], follower: nn.Module) -> dict[str, SparseLinear]:
    found = sparse_layers(follower)
    if set(found) != set(layers) or any(
        found[name].topology != layer.topology or not torch.equal(found[name].frozen.cpu(), layer.frozen.cpu())
        for name, layer in layers.items()
    ):
        raise ValueError(
            "a follower must have the model's sparse layers under the same names with the same topology; "
            "make it with `copy.deepcopy(model)` or load the model's state_dict into it"
        )
    return found
