"""Methods that keep more weights than they multiply: which ones are multiplied, and what gradients mean to the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparse_core.registry import Rules, options_of


class Masking(nn.Module):
    """Which values of one layer are multiplied; the layer multiplies `masking(values)` instead of its values.

    The layer has every possible connection. `kept` says which of them take part in the forward pass; it changes in
    `refresh` alone, which the `Sparsifier` calls, so that a layer, its targets and its checkpoints agree on it.

    Args:
        layer: a `SparseLinear` with every connection, one weight each, none of them frozen.
        count: how many weights are multiplied, for maskings that fix their number.

    Raises:
        ValueError: for another layer.
    """

    kept: Tensor
    """(n,) bool: what the layer multiplies."""
    trained: Tensor | None
    """(n,) bool: what the optimizer may move; None: everything."""

    def __init__(self, layer: Any, count: int) -> None:
        super().__init__()
        if layer.weights_per_connection > 1:
            raise ValueError("masks need connections of one weight: `conv_unit='weight'`")
        if layer.values.numel() < layer.cells:
            raise ValueError(
                f"a masked layer keeps every weight it may ever multiply: {layer.cells} values, got "
                f"{layer.values.numel()}; make it with sparsity 0, none of it frozen"
            )
        self.shape, self.count = layer.shape, count
        self.register_buffer("kept", torch.ones_like(layer.values, dtype=torch.bool))
        self.register_buffer("trained", None)

    def forward(self, values: Tensor) -> Tensor:
        """Values (n,), kept or not, to those that multiply (n,): zero where not kept."""
        return straight_through(values, self.kept, self.trained)

    def refresh(self, values: Tensor) -> None:
        """Choose anew what is kept, by the values as they are; nothing is recorded for a gradient."""
        raise NotImplementedError

    def add_gradients(self, values: Tensor, gradient: Tensor, wide: Tensor) -> None:
        """Add the method's own terms to gradients, right before the optimizer's step.

        Args:
            values: of the layer, (n,).
            gradient: theirs, (n,), changed in place.
            wide: () bool: whether the network multiplies more weights than its sparsity asks for.
        """


class StraightThrough(torch.autograd.Function):
    """Values where kept and zeros elsewhere; their gradient reaches every value that is trained."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kept: Tensor, trained: Tensor | None) -> Tensor:
        """(n,) to (n,)."""
        ctx.trained = trained
        return values * kept

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of what was multiplied, kept or not."""
        return gradient if ctx.trained is None else gradient * ctx.trained, None, None


def straight_through(values: Tensor, kept: Tensor, trained: Tensor | None) -> Tensor:
    """Values (n,) where `kept`, zeros elsewhere; gradients reach all that are `trained` (None: all)."""
    masked: Tensor = StraightThrough.apply(values, kept, trained)
    return masked


class MaskingRule(NamedTuple):
    """One way to mask, and what it asks of layers."""

    choose: Callable[..., Masking]
    """(layer, count, *, options) -> its masking."""
    sparsity: Callable[..., float] | None = None
    """(**options) -> the sparsity of every masked layer, where the options fix it."""
    group: Callable[..., int] | None = None
    """(**options) -> inputs that belong together; a layer that has no multiple of them stays dense."""
    exact: bool = True
    """Whether it multiplies exactly as many weights as the sparsity asks for."""


MASKINGS: Rules[MaskingRule] = Rules("masking", MaskingRule)
masking = MASKINGS.rule


def check_masks(layers: Mapping[str, Any], rule: MaskingRule | None) -> None:
    """Raise a `ValueError` unless every layer is masked by this rule with its options; None: by none."""
    for name, layer in layers.items():
        own = None if layer.masking is None else type(layer.masking).__name__
        kind = None if rule is None else rule.choose.func if isinstance(rule.choose, partial) else rule.choose
        wanted = None if kind is None else kind.__name__
        if own != wanted:
            raise ValueError(
                f"layer {name!r} has {own or 'no'} masks, the topology wants {wanted or 'none'}; give `sparsify`, or "
                "`SparseMLP`, the topology that you give the `Sparsifier`"
            )
        options = {} if rule is None else options_of(rule)
        differing = [option for option, value in options.items() if getattr(layer.masking, option) != value]
        if differing:
            raise ValueError(
                f"layer {name!r} was masked with other options ({', '.join(differing)}); give the topology's options "
                "to `sparsify`, or `SparseMLP`, and to the `Sparsifier` alike"
            )


class Masks:
    """The maskings of a model's layers, driven along its training.

    Args:
        layers: the model's sparse layers by name, every one of them masked.
        followers: the same of models that take over what is kept (target networks).
    """

    def __init__(self, layers: Mapping[str, Any], followers: Sequence[Mapping[str, Any]]) -> None:
        self._layers, self._followers = layers, followers
        self._goal = sum(layer.masking.count for layer in layers.values())
        self._still: dict[str, Tensor] = {}

    def refresh(self) -> None:
        """Choose anew what every layer keeps; followers keep the same."""
        for name, layer in self._layers.items():
            if not layer.values.requires_grad:  # what does not learn stays as it is
                continue
            layer.masking.refresh(layer.values.detach())
            for follower in self._followers:
                follower[name].masking.kept.copy_(layer.masking.kept)

    def before_step(self) -> None:
        """Add the method's own gradients, and remember what the optimizer must not move."""
        kept = sum(layer.masking.kept.sum() for layer in self._layers.values())
        wide = torch.as_tensor(kept) > self._goal
        for name, layer in self._layers.items():
            if layer.values.grad is not None:
                layer.masking.add_gradients(layer.values.detach(), layer.values.grad, wide)
            if layer.masking.trained is not None:
                self._still[name] = layer.values.detach().clone()

    @torch.no_grad()
    def after_step(self) -> None:
        """Put back what the optimizer has moved with old moments or weight decay, though it had no gradient."""
        for name, layer in self._layers.items():
            if name in self._still:
                layer.values.copy_(torch.where(layer.masking.trained, layer.values, self._still.pop(name)))
