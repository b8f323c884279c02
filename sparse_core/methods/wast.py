"""WAST: attention to the neurons that matter (Sokar et al., NeurIPS 2022, arXiv:2211.14627)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_core.drop import drop_rule, least_of_each_sign
from sparse_core.grow import grow_rule
from sparse_core.methods.ctre import random_for_dropped
from sparse_core.presets import PRESETS, Preset
from sparse_core.view import LayerView


@drop_rule("neuron-importance", needs_capture=True)
def least_between_important_neurons(view: LayerView, count: int, *, sensitivity: float = 0.4) -> Tensor:
    """Drop, of each sign its share, the smallest |w| · importance of the output · importance of the input.

    A neuron's importance grows at every change by λ · its mean |gradient| over the captured batches + (1-λ) · the sum
    of its connections' |w|, λ being `sensitivity`. It is kept from one change to the next.
    """
    outputs, inputs = _grown_importance(view, sensitivity)
    row, column = view.positions // view.shape[1], view.positions % view.shape[1]
    return least_of_each_sign(view, count, view.values.abs() * (outputs[row] * inputs[column]).to(view.values.dtype))


@grow_rule("neuron-importance", needs_capture=True)
def between_important(view: LayerView, count: int) -> Tensor:
    """Grow between the most important neurons: the largest products of both ends; see the drop rule."""
    return view.strongest_pairs(count, *_importance(view))


@grow_rule("neuron-importance-or-random", needs_capture=True)
def between_important_or_random(view: LayerView, count: int) -> Tensor:
    """As `neuron-importance`, but a random position for each that this change has just dropped, as CTRE-sim."""
    return random_for_dropped(view, between_important(view, count))


def _importance(view: LayerView) -> tuple[Tensor, Tensor]:
    if not {"outputs", "inputs"} <= view.memory.keys():
        raise RuntimeError("growth by neuron importance needs the drop rule 'neuron-importance', which gathers it")
    return view.memory["outputs"], view.memory["inputs"]


def _grown_importance(view: LayerView, sensitivity: float) -> tuple[Tensor, Tensor]:
    """Importance of outputs and inputs, kept in the view's memory, with what the last batches showed."""
    row, column, sizes = view.positions // view.shape[1], view.positions % view.shape[1], view.values.abs().double()
    for name, index, size, shown in (
        ("outputs", row, view.shape[0], _output_sensitivity(view)),
        ("inputs", column, view.shape[1], _input_sensitivity(view)),
    ):
        strength = torch.zeros(size, dtype=torch.float64).index_add_(0, index, sizes)
        added = sensitivity * shown + (1 - sensitivity) * strength
        view.memory[name] = added if name not in view.memory else view.memory[name] + added
    return _importance(view)


def _output_sensitivity(view: LayerView) -> Tensor:
    """Mean |output gradient| of every output."""
    batches = [gradients.transpose(0, 1).flatten(1).abs().mean(1) for _, gradients in view.seen.pairs]
    return torch.stack(batches).mean(0).double().cpu()


def _input_sensitivity(view: LayerView) -> Tensor:
    """Mean |loss gradient| that reaches every input through its connections: zero for an input that has none."""
    total = torch.zeros(view.shape[1], dtype=torch.float64)
    row, column = view.positions // view.shape[1], view.positions % view.shape[1]
    for _, gradients in view.seen.pairs:
        # Of a convolution, the mean over positions: a tap sees each output once.
        flat = gradients.flatten(2).mean(2) if gradients.dim() > 2 else gradients
        through = torch.sparse_coo_tensor(
            torch.stack([column, row]), view.values.double(), (view.shape[1], view.shape[0]), check_invariants=False
        )
        total += torch.sparse.mm(through, flat.T.double().cpu()).abs().mean(1)
    return total / len(view.seen.pairs)


for _name, _grow, _how in (
    ("wast", "neuron-importance", ""),
    ("wast-random", "neuron-importance-or-random", ", at random for what just went"),
):
    PRESETS.add(
        _name,
        Preset(
            f"drop and grow by the importance of neurons{_how} (WAST: Sokar et al., NeurIPS 2022, arXiv:2211.14627)",
            drop="neuron-importance", grow=_grow, drop_fraction=0.3, period=1, own_period=True, regrow="fresh",
        ),
    )  # fmt: skip
