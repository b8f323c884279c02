"""One model, one optimizer, two rules and a schedule: the thing that moves connections while weights learn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparse_core.draws import among, generators
from sparse_core.drop import DROP_RULES
from sparse_core.grow import GROW_RULES
from sparse_core.importance import PathImportance
from sparse_core.layers import SparseLinear, sparse_layers
from sparse_core.optimizer_state import carry_state, check_elementwise
from sparse_core.presets import PRESETS
from sparse_core.schedules import SCHEDULES, Every
from sparse_core.signals import Capture
from sparse_core.topology import Regrow, Rewiring
from sparse_core.view import Constraint, LayerView

Rewirings = dict[str, Rewiring]


class Sparsifier:
    """Moves the connections of a model's sparse layers; call `step()` after every `optimizer.step()`.

    Args:
        model: holds the sparse layers.
        optimizer: updates their values; any elementwise torch optimizer.
        drop: name of a drop rule; None for a topology that never changes.
        grow: name of a grow rule.
        drop_fraction: share ζ of each layer's movable connections that change, in [0, 1], at the start.
        schedule: name of the course of ζ over the steps until `stop`.
        period: steps between two changes; the first is at step `period`.
        total_steps: length of training, wanted by every schedule but a constant one without `stop`.
        stop: share of `total_steps` after which the topology stays.
        regrow: whether a connection dropped in a change may grow again in it: `"no"`, `"kept"` (with its
            value and state, as SET and RigL were released) or `"fresh"`.
        capture_batches: batches before a change over which gradient growth looks.
        capture_stride: steps in which one such batch comes (an actor updated every second step: 2).
        birth: value of a new connection.
        constraints: per layer name, where growth is allowed.
        importance: gathers the importance of connections; made where a rule needs it and none is given.
        followers: models with the same sparse layers that take the same changes (target networks).
        seed: of the topology's generators, one per layer, on the CPU.

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
        birth: float = 0.0,
        constraints: Mapping[str, Constraint] | None = None,
        importance: PathImportance | None = None,
        followers: Iterable[nn.Module] = (),
        seed: int | None = None,
    ) -> None:
        if (drop is None) != (grow is None):
            raise ValueError(
                f"give both `drop` and `grow`, or neither for a static topology; got {drop!r} and {grow!r}"
            )
        if not 0 <= drop_fraction <= 1:
            raise ValueError(f"`drop_fraction` must be in [0, 1], got {drop_fraction!r}")
        if not 0 <= stop <= 1:
            raise ValueError(f"`stop` must be a share of the training steps in [0, 1], got {stop!r}")
        _check_regrow(regrow, grow)
        if min(capture_batches, capture_stride) < 1:
            got = f"{capture_batches} and {capture_stride}"
            raise ValueError(f"`capture_batches` and `capture_stride` must be at least 1, got {got}")
        if total_steps is None and (schedule != "constant" or stop < 1):
            raise ValueError(f"schedule {schedule!r} with `stop` {stop:g} needs `total_steps`, the length of training")
        if drop is not None:
            check_elementwise(optimizer)
        self.optimizer = optimizer
        self.layers = sparse_layers(model)
        self.followers = [_matching_layers(self.layers, follower) for follower in followers]
        self.constraints = dict(constraints or {})
        unknown = set(self.constraints) - set(self.layers)
        if unknown:
            raise ValueError(
                f"`constraints` names no sparse layer with {sorted(unknown)}; known: {', '.join(self.layers)}"
            )
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        absent = [
            name for name, layer in self.layers.items() if layer.values.requires_grad and id(layer.values) not in held
        ]
        if absent:
            raise ValueError(
                f"the optimizer does not hold the values of {', '.join(map(repr, absent))}; make it after the layers, "
                "or call `requires_grad_(False)` on values that are not trained"
            )
        self._drop = None if drop is None else DROP_RULES[drop]
        self._grow = None if grow is None else GROW_RULES[grow]
        self._names = (drop, grow)
        self.regrow, self.birth = regrow, birth
        last = None if total_steps is None else int(stop * total_steps + 1e-9)
        self.fraction = SCHEDULES[schedule](drop_fraction, last or 0)
        self.every = Every(period, last)
        self._captured_steps = capture_batches * capture_stride
        self._capture_batches = capture_batches
        self._generators = generators(seed, *self.layers)
        self.steps = 0
        self.changes = 0
        self._pending = False
        self._gather(importance)
        self._arm()

    def _gather(self, importance: PathImportance | None) -> None:
        """Have the optimizer's own steps gather importance, where it was asked for or a rule needs it."""
        if importance is None and any(rule is not None and rule.needs_importance for rule in (self._drop, self._grow)):
            importance = PathImportance(self.layers)
        self.importance = importance
        self._attach()

    def _attach(self) -> None:
        self._hooks: list[RemovableHandle] = []
        if self.importance is not None:
            self._hooks = [
                self.optimizer.register_step_pre_hook(self._before_step),
                self.optimizer.register_step_post_hook(self._after_step),
            ]

    def _before_step(self, *_: Any) -> None:
        if self.importance is not None:
            self.importance.before_step()

    def _after_step(self, *_: Any) -> None:
        if self.importance is not None:
            self.importance.after_step()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()  # optimizers leave their hooks behind when they are copied

    def detach(self) -> None:
        """Let go of layers and optimizer: nothing is captured or gathered for this sparsifier any more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for layer in self.layers.values():
            layer.capture = None

    @classmethod
    def preset(cls, name: str, model: nn.Module, optimizer: Optimizer, **overrides: Any) -> Sparsifier:
        """The method called `name` (see `PRESETS`); keyword arguments override its choices."""
        preset = PRESETS[name]
        if preset.dense and sparse_layers(model):
            raise ValueError(f"preset {name!r} is the dense baseline, but the model has sparse layers; use 'static'")
        choices: dict[str, Any] = dict(
            drop=preset.drop, grow=preset.grow, drop_fraction=preset.drop_fraction, schedule=preset.schedule,
            period=preset.period, stop=preset.stop, regrow=preset.regrow,
        )  # fmt: skip
        if preset.drop is None:
            choices.update(schedule="constant", stop=1.0)
        return cls(model, optimizer, **{**choices, **overrides})

    @property
    def needs_capture(self) -> bool:
        """Whether growth asks for captured inputs and output gradients."""
        return self._grow is not None and self._grow.needs_capture

    def step(self, allowed: bool = True) -> Rewirings:
        """Count one training step and change the topology when that is due.

        Where a change is due but not `allowed`, it waits for the next step that is.

        Returns:
            The changes by layer name; empty when nothing was due.
        """
        self.steps += 1
        if self._grow is None:
            return {}
        self._pending = self._pending or self.every.due(self.steps)
        rewirings = self.update() if self._pending and allowed else {}
        self._arm()
        return rewirings

    def update(self) -> Rewirings:
        """Change the topology now: drop, grow, carry values, optimizer state and followers along."""
        if self._grow is None:
            return {}
        fraction = self.fraction(self.steps)
        # All changes are worked out before the first is applied: an error leaves every layer as it was.
        rewirings = {name: self._rewiring(name, layer, fraction) for name, layer in self.layers.items()}
        self._pending = False
        for layer in self.layers.values():
            layer.capture = None
        for name, rewiring in rewirings.items():
            self._apply(name, rewiring)
        if self.importance is not None:
            self.importance.rewired(rewirings)
        self.changes += any(rewiring.dropped.numel() for rewiring in rewirings.values())
        return rewirings

    def _rewiring(self, name: str, layer: SparseLinear, fraction: float) -> Rewiring:
        assert self._drop is not None
        assert self._grow is not None
        constraint = self.constraints.get(name, Constraint())
        blocked = layer.topology.positions
        if constraint.taken is not None:
            blocked = torch.cat([blocked, constraint.taken]).unique()
        view = LayerView(
            layer.shape, layer.positions.to("cpu", copy=True), layer.strengths.detach().to("cpu", copy=True),
            blocked, self._generators[name], layer.capture, constraint,
            None if self.importance is None else self.importance.signals(name),
        )  # fmt: skip
        if not bool(torch.isfinite(view.values).all()):
            raise FloatingPointError(f"layer {name!r} has values that are not finite: training has diverged")
        count = int(fraction * view.count + 1e-9)
        if self.regrow == "no":
            count = min(count, view.vacant_count)
        dropped = self._drop.choose(view, count)
        self._check(self._names[0], dropped, count, view.count)
        after = view
        if self.regrow != "no":
            free = ~among(view.blocked, view.positions[dropped])
            after = replace(view, blocked=view.blocked[free], dropped=view.positions[dropped])
            # Constraints may forbid the very positions that were dropped. In place nothing comes that was not there.
            if after.vacant_count < count and not self._grow.in_place:
                count = view.vacant_count
                dropped, after = self._drop.choose(view, count), view
        grown = self._grow.choose(after, count)
        self._check(self._names[1], grown, count, layer.shape[0] * layer.shape[1])
        if bool(among(grown, after.blocked).any()):
            raise RuntimeError(
                f"grow rule {self._names[1]!r} chose a position that is taken; it must choose vacant ones"
            )
        return Rewiring.of(layer.shape, view.positions, dropped, grown, self.regrow)

    @staticmethod
    def _check(rule: str | None, chosen: Tensor, count: int, limit: int) -> None:
        fits = chosen.shape == (count,) and bool((chosen.diff() > 0).all())
        if not fits or (count and not 0 <= int(chosen[0]) <= int(chosen[-1]) < limit):
            raise RuntimeError(
                f"rule {rule!r} must return {count} distinct indices in ascending order within [0, {limit})"
            )

    def _apply(self, name: str, rewiring: Rewiring) -> None:
        layer = self.layers[name]
        layer.rewire(rewiring, self.birth)
        carry_state(self.optimizer, layer.values, rewiring)
        for follower in self.followers:
            follower[name].rewire(rewiring, self.birth)

    def freeze(self, name: str, positions: Tensor | None = None, biases: Tensor | None = None) -> None:
        """Freeze connections (flat positions; None: all movable) and biases of one layer, optimizer state following."""
        layer = self.layers[name]
        movable_biases = 0 if layer.bias is None else layer.bias.numel()
        rewiring, kept = layer.freeze(positions, biases)
        carry_state(self.optimizer, layer.values, rewiring)
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

    def _arm(self) -> None:
        """Start capturing when the next change is near enough; captures count batches by the step."""
        if not self.needs_capture:
            return
        following = self.every.next_due(self.steps)
        near = self._pending or (following is not None and following - self.steps <= self._captured_steps)
        for layer in self.layers.values():
            if near and layer.capture is None:
                layer.capture = Capture(self._capture_batches)
            if layer.capture is not None:
                layer.capture.batch = self.steps

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within this block forward passes are not captured: losses that must not steer growth."""
        captures = {name: layer.capture for name, layer in self.layers.items()}
        for layer in self.layers.values():
            layer.capture = None
        try:
            yield
        finally:
            for name, layer in self.layers.items():
                layer.capture = captures[name]

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while training, captured batches included."""
        return {
            "steps": self.steps,
            "changes": self.changes,
            "pending": self._pending,
            "generators": {name: generator.get_state() for name, generator in self._generators.items()},
            "captures": {
                name: layer.capture.state() for name, layer in self.layers.items() if layer.capture is not None
            },
            "importance": None if self.importance is None else self.importance.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        if set(state["generators"]) != set(self._generators):
            raise ValueError(
                f"the saved state has layers {sorted(state['generators'])}, this model {sorted(self._generators)}; "
                "build the model as it was when it was saved"
            )
        self.steps, self.changes, self._pending = state["steps"], state["changes"], state["pending"]
        if self.importance is not None and state.get("importance") is not None:
            self.importance.load_state_dict(state["importance"])
        for name, layer in self.layers.items():
            self._generators[name].set_state(state["generators"][name])
            layer.capture = None
        self._arm()
        for name, pairs in state["captures"].items():
            capture = self.layers[name].capture
            if capture is not None:
                device = self.layers[name].values.device
                capture.load([(batch, inputs.to(device), given.to(device)) for batch, inputs, given in pairs])


def _check_regrow(regrow: Regrow, grow: str | None) -> None:
    if regrow not in ("no", "kept", "fresh"):
        raise ValueError(f"`regrow` must be 'no', 'kept' or 'fresh', got {regrow!r}")
    if grow is not None and GROW_RULES[grow].in_place and regrow != "fresh":
        raise ValueError(f"grow rule {grow!r} grows what was dropped, anew; give `regrow='fresh'`, got {regrow!r}")


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
