"""Importance pruning of neurons: the weakest hidden neurons lose all their connections, and none comes back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparse_core.activity import readers
from sparse_core.draws import among, largest, whole
from sparse_core.layers import SparseLinear
from sparse_core.view import Constraint, LayerView

logger = logging.getLogger(__name__)
NONE = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class NeuronPruning:
    """Which neurons of a model's hidden layers are gone (Curci et al. 2021, arXiv:2102.01732); a value.

    A hidden layer is one whose outputs another layer reads: its connections go with the neuron if it is sparse, too.
    """

    readers: Mapping[str, tuple[str, int] | None]
    """For a hidden layer, the sparse layer that reads it and by how many inputs each neuron; None where none does."""
    gone: Mapping[str, Tensor]
    """For a hidden layer, its pruned neurons, ascending; layers without any are left out."""

    @classmethod
    def of(cls, model: nn.Module) -> NeuronPruning:
        """Of a model, nothing gone."""
        return cls(readers(model), {})

    def more(
        self, layers: Mapping[str, SparseLinear], constraints: Mapping[str, Constraint], share: float
    ) -> NeuronPruning:
        """The same with the weakest pruned, until so large a share of each hidden layer is gone.

        A neuron's importance is Σ|w| over its incoming connections; ties go to the lowest index. Neurons that have a
        frozen connection or bias, or that a constraint keeps from growing, belong to somebody else and stay, and so do
        those of which a layer does not learn. Where a layer would be left without a connection, none goes.

        Args:
            layers: the model's sparse layers.
            constraints: where they may grow, by name.
            share: of each hidden layer, those that are gone already included, in [0, 1).
        """
        found = dict(self.gone)
        for name in self.readers:
            size = layers[name].shape[0]
            count = min(whole(share * size), size - 1) - len(found.get(name, NONE))
            if count > 0:
                free = self._free(name, layers, constraints.get(name, Constraint()))
                weakest = free[largest(-_importance(layers[name])[free], min(count, len(free)))]
                found[name] = torch.cat([found.get(name, NONE), weakest]).sort().values
        pruned = replace(self, gone={name: neurons for name, neurons in found.items() if len(neurons)})
        cut = [name for name, layer in layers.items() if layer.connections and pruned._cuts(name, layer)]
        if cut:
            logger.warning("no neurons are pruned: %s would be left without a connection", ", ".join(cut))
            return self
        return pruned

    def narrowed(self, name: str, constraint: Constraint, shape: tuple[int, int]) -> Constraint:
        """Where a layer may grow when it must not reach pruned neurons."""
        outputs, inputs = self._gone_of(name)
        if len(outputs):
            constraint = replace(constraint, outputs=_without(constraint.outputs, shape[0], outputs))
        if len(inputs):
            constraint = replace(constraint, inputs=_without(constraint.inputs, shape[1], inputs))
        return constraint

    def lost(self, views: Mapping[str, LayerView]) -> dict[str, Tensor]:
        """For every layer, indices of the movable connections into or out of pruned neurons, ascending."""
        return {
            name: self._touching(name, view.positions, view.shape).nonzero().squeeze(1) for name, view in views.items()
        }

    def _free(self, name: str, layers: Mapping[str, SparseLinear], constraint: Constraint) -> Tensor:
        """Neurons of a layer that may be pruned, ascending."""
        layer, read = layers[name], self.readers[name]
        stays = torch.zeros(layer.shape[0], dtype=torch.bool)
        stays[self.gone.get(name, NONE)] = True
        stays[layer.frozen_positions.cpu() // layer.shape[1]] = True
        stays[layer.frozen_bias.cpu().long()] = True
        stays |= not layer.values.requires_grad
        if read is not None:
            reader, spread = read
            stays |= not layers[reader].values.requires_grad
            stays[layers[reader].frozen_positions.cpu() % layers[reader].shape[1] // spread] = True
        if constraint.outputs is not None:
            allowed = torch.zeros_like(stays)
            allowed[constraint.outputs.cpu().long()] = True
            stays |= ~allowed
        return (~stays).nonzero().squeeze(1)

    def _gone_of(self, name: str) -> tuple[Tensor, Tensor]:
        """Outputs and inputs of a layer that pruned neurons are, ascending."""
        inputs = NONE
        for above, read in self.readers.items():
            if read is not None and read[0] == name and above in self.gone:
                inputs = (self.gone[above][:, None] * read[1] + torch.arange(read[1])).flatten()
        return self.gone.get(name, NONE), inputs

    def _touching(self, name: str, positions: Tensor, shape: tuple[int, int]) -> Tensor:
        outputs, inputs = self._gone_of(name)
        return among(positions // shape[1], outputs) | among(positions % shape[1], inputs)

    def _cuts(self, name: str, layer: SparseLinear) -> bool:
        return bool(self._touching(name, layer.topology.positions, layer.shape).all())


def _importance(layer: SparseLinear) -> Tensor:
    """Σ|w| over the movable connections into each neuron, (out,) on the CPU."""
    weights = layer.per_connection(layer.values.detach().abs()).cpu()
    return weights.new_zeros(layer.shape[0]).index_add_(0, layer.positions.cpu() // layer.shape[1], weights)


def _without(chosen: Tensor | None, size: int, gone: Tensor) -> Tensor:
    kept = torch.arange(size) if chosen is None else chosen.cpu().long().unique()
    return kept[~among(kept, gone)]
