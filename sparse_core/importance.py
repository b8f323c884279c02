"""What training shows of connections and neurons: importance, gathered at every step and read by rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_core.layers import SparseLinear
from sparse_core.topology import Rewiring


@dataclass(frozen=True, eq=False)
class Signals:
    """Importance in one layer, on the CPU."""

    connections: Tensor  # (n,) of the movable connections, in the topology's order
    outputs: Tensor  # (out_features,)
    inputs: Tensor  # (in_features,)


class PathImportance:
    """Sums |Δw · gradient| of every movable connection over the steps since the last topology change.

    That is how much each connection has lowered the loss, to first order (SpaceNet, arXiv:2007.07617; synaptic
    intelligence, arXiv:1703.04200). Sums begin anew at each change, so that old and new connections are
    judged over the same steps. A neuron's importance is the sum over its connections, incoming and outgoing.

    Args:
        layers: the sparse layers by name.
        upstream: for a layer, the one whose outputs are its inputs (each output feeding as many consecutive
            inputs as there are inputs per output); where none is named, a layer sees its own sums only.
    """

    def __init__(self, layers: Mapping[str, SparseLinear], upstream: Mapping[str, str] | None = None) -> None:
        self.layers = dict(layers)
        self.upstream = dict(upstream or {})
        unknown = {*self.upstream, *self.upstream.values()} - set(self.layers)
        if unknown:
            raise ValueError(f"`upstream` names no layer with {sorted(unknown)}; known: {', '.join(self.layers)}")
        self.downstream = {above: below for below, above in self.upstream.items()}
        self.totals = {name: self._zeros(layer) for name, layer in self.layers.items()}
        self._before = {name: layer.values.detach().clone() for name, layer in self.layers.items()}

    @staticmethod
    def _zeros(layer: SparseLinear) -> Tensor:
        return torch.zeros(layer.values.shape[0], dtype=layer.values.dtype, device=layer.values.device)

    @torch.no_grad()
    def before_step(self) -> None:
        """Note the values; call it before the optimizer's step."""
        for name, layer in self.layers.items():
            if self._before[name].shape == layer.values.shape:
                self._before[name].copy_(layer.values)
            else:
                self._before[name] = layer.values.detach().clone()

    @torch.no_grad()
    def after_step(self) -> None:
        """Add what the step has done; call it after the optimizer's step, while gradients are still there."""
        for name, layer in self.layers.items():
            if layer.values.grad is not None and self._before[name].shape == layer.values.shape:
                product = self._before[name].sub_(layer.values).mul_(layer.values.grad).abs_()
                self.totals[name].add_(layer.per_connection(product))

    def forget(self, name: str) -> None:
        """Begin anew in a layer whose connections have become others."""
        self.totals[name] = self._zeros(self.layers[name])
        self._before[name] = self.layers[name].values.detach().clone()

    def signals(self, name: str) -> Signals:
        """Importance in the layer `name`, as rules see it."""
        outputs, inputs = self._sums(name)
        above, below = self.downstream.get(name), self.upstream.get(name)
        if above is not None:
            outputs = outputs + self._sums(above)[1].view(outputs.numel(), -1).sum(1)
        if below is not None:
            incoming = self._sums(below)[0]
            spread = inputs.numel() // incoming.numel()
            inputs = inputs.view(incoming.numel(), spread).sum(1).add(incoming).repeat_interleave(spread)
        return Signals(self.totals[name].cpu(), outputs, inputs)

    def _sums(self, name: str) -> tuple[Tensor, Tensor]:
        """Importance of a layer's connections summed by output and by input."""
        layer, totals = self.layers[name], self.totals[name].cpu()
        positions, width = layer.positions.cpu(), layer.shape[1]
        outputs = totals.new_zeros(layer.shape[0]).index_add_(0, positions // width, totals)
        inputs = totals.new_zeros(width).index_add_(0, positions % width, totals)
        return outputs, inputs

    def rewired(self, rewirings: Mapping[str, Rewiring]) -> None:
        """Follow a topology change: every sum begins anew."""
        for name in rewirings:
            self.totals[name] = self._zeros(self.layers[name])

    def frozen(self, name: str, rewiring: Rewiring) -> None:
        """Follow connections that have become frozen: they are no longer looked at."""
        self.totals[name] = rewiring.carry(self.totals[name])

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return {"totals": dict(self.totals)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for name, total in state["totals"].items():
            self.totals[name] = total.to(self.layers[name].values.device, copy=True)
