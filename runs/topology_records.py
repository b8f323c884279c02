"""What a run says about its topology: how far it searched, whom it feeds, and which neurons sleep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents import SparseAgent
from sparse_core import SparseLinear, in_time_overparameterisation, sparse_layers
from sparse_core.draws import among
from sparse_core.sparsifier import Rewirings
from sparse_core.topology import Rewiring

ROWS = 512  # transitions on which neurons are looked at
DORMANT = 0.1  # of the mean activity of a layer


def positions_now(model: SparseAgent) -> dict[str, Tensor]:
    """Per sparse layer, flat positions that multiply now, ascending; nothing where none ever move."""
    if not model.sparse_options.moves:
        return {}
    return {name: layer.active_topology.positions for name, layer in model.policy.layers.items()}


def mask_changes(model: SparseAgent, before: dict[str, Tensor]) -> Rewirings:
    """What came and went since these positions multiplied, of layers with a masking: as changes of a topology."""
    found = {}
    for owner, network in (("critic", model.critic), ("actor", model.actor)):
        for name, layer in sparse_layers(network).items():
            if layer.masking is not None:
                then, now = before[f"{owner}.{name}"], layer.active_topology.positions
                dropped, grown = (~among(then, now)).nonzero().squeeze(1), now[~among(now, then)]
                found[f"{owner}.{name}"] = Rewiring.of(layer.shape, then, dropped, grown)
    return found


def replaced_and_explored(rewirings: Rewirings, explored: dict[str, Tensor]) -> tuple[float, float]:
    """Connections replaced / movable ones, and positions ever connected / possible (ITOP's rate, arXiv:2102.02887).

    Both over all layers of one change, whose new positions `explored` takes in.
    """
    grown = sum(change.grown.numel() for change in rewirings.values())
    movable = sum(change.after.numel() for change in rewirings.values())
    return grown / max(movable, 1), in_time_overparameterisation(explored, rewirings)


def places_looked_at(model: SparseAgent) -> NDArray[np.int64] | None:
    """Up to 512 places of the replay buffer, evenly spaced, ascending; None without experience."""
    buffer = model.replay_buffer
    if buffer is None or not buffer.size():
        return None
    return np.unique(np.linspace(0, buffer.size() - 1, ROWS).astype(np.int64))


@torch.no_grad()
def dormant_shares(model: SparseAgent) -> dict[str, float]:
    """Share of hidden neurons that are dormant, of the actor and of the critics; nothing without experience.

    A neuron is, whose mean activity is at most 0.1 of its layer's mean (Sokar et al. 2023, arXiv:2302.12902). Looked
    at on up to 512 transitions, evenly spaced over the replay buffer: nothing is drawn.
    """
    places = places_looked_at(model)
    if places is None:
        return {}
    buffer: Any = model.replay_buffer
    observations, actions = (
        torch.from_numpy(rows[places].reshape(len(places), -1)).float().to(model.device)
        for rows in (buffer.observations, buffer.actions)
    )
    both = torch.cat([observations, actions], dim=1)
    critics = [_dormant(network.children(), both) for network in model.critic.q_networks]
    found = {"actor": [_dormant(model.acting_modules, observations)], "critic": critics}
    return {
        name: sum(dormant for dormant, _ in counts) / max(sum(neurons for _, neurons in counts), 1)
        for name, counts in found.items()
    }


def _dormant(modules: Iterable[nn.Module], inputs: Tensor) -> tuple[int, int]:
    """Dormant neurons and all neurons after the ReLUs of a chain of layers."""
    dormant = neurons = 0
    for module in modules:
        inputs = module(inputs)
        if isinstance(module, nn.ReLU):
            activity = inputs.abs().mean(0)
            dormant += int((activity <= DORMANT * activity.mean()).sum())
            neurons += activity.numel()
    return dormant, neurons


def _layers(model: SparseAgent) -> dict[str, SparseLinear | nn.Linear]:
    """Layers by the names that `result.json` gives them, in order."""
    networks = {"actor": model.actor}
    networks |= {f"critic.qf{index}": network for index, network in enumerate(model.critic.q_networks)}
    return {
        f"{name}.{own}": layer
        for name, network in networks.items()
        for own, layer in network.named_modules()
        if isinstance(layer, SparseLinear | nn.Linear)
    }


def degree_histograms(model: SparseAgent) -> dict[str, dict[str, list[list[int]]]]:
    """Per sparse layer, how many neurons have how many connections: `fan_in` of outputs, `fan_out` of inputs."""
    return {
        name: {"fan_in": _histogram(layer.active_topology.fan_in), "fan_out": _histogram(layer.active_topology.fan_out)}
        for name, layer in _layers(model).items()
        if isinstance(layer, SparseLinear)
    }


def _histogram(degrees: Tensor) -> list[list[int]]:
    values, counts = degrees.unique(return_counts=True)
    return torch.stack([values, counts], dim=1).tolist()


def input_connections(model: SparseAgent) -> dict[str, list[int]]:
    """Connections out of each input, per network; a critic's inputs are observations, then actions."""
    found: dict[str, list[int]] = {}
    for name, layer in _layers(model).items():
        network = "actor" if name.startswith("actor.") else name.rpartition(".")[0]
        if network not in found:  # its first layer
            full = [layer.out_features] * layer.in_features
            found[network] = layer.active_topology.fan_out.tolist() if isinstance(layer, SparseLinear) else full
    return found
