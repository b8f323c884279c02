"""Compiled elementwise parts of TD3's update, on feature-major arrays (features, batch).

Importing this file imports Numba. Argument names are those of `agents.fused_update`.
"""

from __future__ import annotations

from typing import Any

from sparse_core.compilation import serial
from sparse_core.vectors import prefetch

BLOCK = 16  # batch entries whose rows are turned into columns together: a cache line of each column


@serial
def gather(
    observations: Any, next_observations: Any, actions: Any, rewards: Any, dones: Any, timeouts: Any,
    places: Any, environments: Any, gamma: Any, x: Any, next_x: Any, batch_rewards: Any, discounts: Any,
) -> None:  # fmt: skip
    """Transitions (place, environment) of a replay ring, one per column: x = (observation, action), next_x likewise.

    An episode that ended goes on with discount 0, unless it was cut off by a time limit; rings are
    (places, environments, features).
    """
    number = x.dtype.type
    width = observations.shape[2]
    for ring in (observations, next_observations, actions):
        fetch(ring, places, environments)
    for ring in (rewards, dones, timeouts):
        fetch(ring, places, environments)
    for start in range(0, places.shape[0], BLOCK):
        part = slice(start, min(start + BLOCK, places.shape[0]))
        put(observations, places[part], environments[part], x[:width, part])
        put(next_observations, places[part], environments[part], next_x[:width, part])
        put(actions, places[part], environments[part], x[width:, part])
    for b in range(places.shape[0]):
        place, environment = places[b], environments[b]
        ended = dones[place, environment] * (1 - timeouts[place, environment])
        discounts[b] = number(gamma) * (1 - number(ended))
        batch_rewards[b] = rewards[place, environment]


@serial
def fetch(ring: Any, places: Any, environments: Any) -> None:
    """Ask for these rows of a ring; waiting for one after the other takes several times as long."""
    stride, inner = ring.strides[0], ring.strides[1]
    for b in range(places.shape[0]):
        address = ring.ctypes.data + places[b] * stride + environments[b] * inner
        prefetch(address)  # type: ignore[call-arg]  # Numba itself gives the first argument
        prefetch(address + inner - 1)


@serial
def put(ring: Any, places: Any, environments: Any, columns: Any) -> None:
    """Rows of a ring (places, environments, features) as columns (features, batch)."""
    for i in range(ring.shape[2]):
        for b in range(places.shape[0]):
            columns[i, b] = ring[places[b], environments[b], i]


@serial
def smooth(actions: Any, noise: Any, scale: Any, clip: Any) -> None:
    """Target policy smoothing in place: actions (features, batch) plus clipped noise (batch, features), in [-1, 1]."""
    number = actions.dtype.type
    low, high, one = number(-clip), number(clip), number(1)
    for b in range(actions.shape[1]):
        for i in range(actions.shape[0]):
            disturbance = min(max(number(noise[b, i]) * number(scale), low), high)
            actions[i, b] = min(max(actions[i, b] + disturbance, -one), one)


@serial
def temporal_difference(
    values: Any, next_values: Any, rewards: Any, discounts: Any, gradients: Any, start: Any, stop: Any, loss: Any
) -> Any:
    """Gradients of Σ over critics of the mean squared distance to r + discount · min over critics.

    For batch entries start … stop-1; returns the sum of their squares, added to `loss`. Values and gradients are
    (critics, 1, batch).
    """
    critics, batch = values.shape[0], values.shape[2]
    number = values.dtype.type
    factor = number(2 / batch)
    for b in range(start, stop):
        smallest = next_values[0, 0, b]
        for critic in range(1, critics):
            value = next_values[critic, 0, b]
            if value < smallest or value != value:  # not `min`, which may lose what is not a number
                smallest = value
        target = rewards[b] + discounts[b] * smallest
        for critic in range(critics):
            difference = values[critic, 0, b] - target
            gradients[critic, 0, b] = factor * difference
            loss += difference * difference
    return loss


@serial
def through_tanh(gradients: Any, action_gradients: Any, actions: Any, start: Any, stop: Any) -> None:
    """Gradients before Tanh from those of its outputs, all (features, batch), for batch entries start … stop-1."""
    one = actions.dtype.type(1)
    for i in range(actions.shape[0]):
        for b in range(start, stop):
            gradients[i, b] = action_gradients[i, b] * (one - actions[i, b] * actions[i, b])
