"""Small sparse layers and their dense twins."""

import torch
from torch import Tensor

from sparse_core import SparseLinear


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_of(
    in_features: int = 6, out_features: int = 5, sparsity: float = 0.5, frozen: int = 0, seed: int = 0, **options
) -> SparseLinear:
    """A float64 layer whose first `frozen` connections and first bias are frozen."""
    options = {"dtype": torch.float64, **options}
    layer = SparseLinear(in_features, out_features, sparsity=sparsity, generator=seeded(seed), **options)
    if frozen:
        layer.freeze(layer.positions[:frozen], torch.tensor([0]))
    return layer


def masked_twin(layer: SparseLinear) -> tuple[Tensor, Tensor | None]:
    """Dense leaf weight (zero where there is no connection) and bias, made from the layer's state alone."""
    state = layer.state_dict()
    values = torch.empty(layer.nnz, dtype=layer.values.dtype)
    movable = torch.ones(layer.nnz, dtype=torch.bool)
    movable[state["frozen"].long()] = False
    values[movable], values[~movable] = state["values"], state["frozen_values"]
    weight = torch.zeros(layer.shape, dtype=values.dtype)
    for row in range(layer.out_features):
        first, last = state["row_pointer"][row : row + 2].tolist()
        weight[row, state["columns"][first:last].long()] = values[first:last]
    if layer.bias is None:
        return weight.requires_grad_(), None
    bias = torch.empty(layer.out_features, dtype=values.dtype)
    free = torch.ones(layer.out_features, dtype=torch.bool)
    free[state["frozen_bias"].long()] = False
    bias[free], bias[~free] = state["bias"], state["frozen_bias_values"]
    return weight.requires_grad_(), bias.requires_grad_()
