"""All-ReLU: an activation whose negative side changes its sign from layer to layer (Curci et al. 2021)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

Factory = Callable[..., nn.Module]
"""() -> an activation, or (number of the hidden layer, from 0) -> the activation after it."""


class AllReLU(nn.Module):
    """x where x > 0, else -α x after the first hidden layer, α x after the second, and so on in turn.

    Curci, Mocanu & Pechenizkiy 2021, arXiv:2102.01732, who count the input as the first layer: hidden layers have even
    and odd numbers in turn, beginning with an even one. `SparseMLP(…, activation=AllReLU)` numbers its layers;
    `functools.partial(AllReLU, alpha=0.75)` has another slope.

    Args:
        layer: number of the hidden layer, from 0.
        alpha: slope of the negative side, ≥ 0; the release has 0.6 on Fashion-MNIST and 0.75 on CIFAR-10.

    Raises:
        ValueError: for a number or a slope that cannot be.
    """

    def __init__(self, layer: int, alpha: float = 0.6) -> None:
        super().__init__()
        if layer < 0 or layer != int(layer):
            raise ValueError(f"`layer` must be the number of a hidden layer, 0, 1, …, got {layer!r}")
        if not 0 <= alpha < math.inf:
            raise ValueError(f"`alpha` must be a finite number ≥ 0, got {alpha!r}; the sign is the layer's")
        self.slope = float(alpha if layer % 2 else -alpha)

    def forward(self, inputs: Tensor) -> Tensor:
        """Activations of the same shape."""
        return functional.leaky_relu(inputs, self.slope)

    def extra_repr(self) -> str:
        """Shown in a module's printed form."""
        return f"slope={self.slope:g}"


def made(factory: Factory, layer: int) -> nn.Module:
    """The activation after a hidden layer (numbered from 0); a factory that wants an argument is given the number."""
    return factory(layer) if _wants_number(factory) else factory()


def _wants_number(factory: Factory) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # a builtin without a signature
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(each.default is inspect.Parameter.empty and each.kind in positional for each in parameters)
