"""The lottery ticket: train, prune the weakest, put the rest back to where it began, and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sparse_core.distributions import check_sparsity
from sparse_core.draws import largest
from sparse_core.layers import SparseLinear, sparse_layers
from sparse_core.meters import layer_counts, sparsity
from sparse_core.redistribution import apportion
from sparse_core.topology import Rewiring

Train = Callable[[nn.Module], None]


def lottery(
    model: nn.Module, train: Train, final_sparsity: float, *, share: float = 0.2, rewind: bool = True
) -> Iterator[float]:
    """Iterative magnitude pruning with rewinding (Frankle & Carbin 2019, arXiv:1803.03635), a round at a time.

    Each round trains the model, drops the weakest `share` of every sparse layer's connections, and puts weights, biases
    and everything else that is left back to its initial value. The last round leaves exactly `final_sparsity`; train
    the model once more afterwards. It is dense by nature: the first round trains every connection.

    Args:
        model: changed in place; make it with `sparsify(model, final_sparsity, topology="gmp")`, so that it starts full.
        train: trains a model from where it is, with an optimizer of its own; called once a round.
        final_sparsity: of the whole model at the end.
        share: of the connections that are left, dropped in a round.
        rewind: False keeps trained values (gradual pruning, the rival that the paper compares with).

    Yields:
        The model's sparsity after each round, before it is trained again.

    Raises:
        ValueError: for a share outside (0, 1), a model without sparse layers, or one that is sparser already.
    """
    layers = sparse_layers(model)
    if not 0 < share < 1:
        raise ValueError(f"`share` must be a number in (0, 1), got {share!r}")
    if not layers:
        raise ValueError('the model has no sparse layers; make it with `sparsify(model, sparsity, topology="gmp")`')
    if check_sparsity(final_sparsity) < sparsity(model):
        raise ValueError(
            f"the model is {sparsity(model):.4f} sparse already, more than {final_sparsity:g}; start fuller"
        )
    return _rounds(model, layers, train, final_sparsity, share, rewind)


def _rounds(
    model: nn.Module, layers: dict[str, SparseLinear], train: Train, final: float, share: float, rewind: bool
) -> Iterator[float]:
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    places = {name: layer.positions.clone() for name, layer in layers.items()}
    counts = layer_counts(model)
    cells = sum(count.cells for count in counts.values())
    others = sum(count.nnz for name, count in counts.items() if name not in layers)
    left = cells - round(final * cells) - others
    while (present := sum(layer.nnz for layer in layers.values())) > left:
        train(model)
        wanted = max(left, present - sum(int(share * layer.nnz) for layer in layers.values()), 1)
        wanted = min(wanted, present - 1)
        sizes = [layer.nnz for layer in layers.values()]
        keep = apportion([float(size) for size in sizes], sizes, wanted)
        for layer, count in zip(layers.values(), keep, strict=True):
            _prune(layer, count)
        if rewind:
            _rewind(model, layers, state, places)
        yield sparsity(model)


def _prune(layer: SparseLinear, count: int) -> None:
    """Leave the `count` strongest connections."""
    positions = layer.positions.cpu()
    weakest = largest(-layer.strengths.detach().abs().cpu(), positions.numel() - count)
    layer.rewire(Rewiring.of(layer.shape, positions, weakest, positions[:0]))


@torch.no_grad()
def _rewind(
    model: nn.Module, layers: dict[str, SparseLinear], state: dict[str, Tensor], places: dict[str, Tensor]
) -> None:
    """Give everything its first value: of sparse layers, what is left of it."""
    own = {f"{name}.{part}".removeprefix(".") for name in layers for part in _INDICES}
    for name, tensor in model.state_dict().items():
        if name not in own:
            tensor.copy_(state[name])
    for name, layer in layers.items():
        at = torch.searchsorted(places[name], layer.positions)
        layer.values.copy_(state[f"{name}.values".removeprefix(".")][at])


_INDICES = ("values", "row_pointer", "columns", "frozen", "frozen_values", "frozen_bias", "frozen_bias_values")
