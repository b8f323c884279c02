"""What the SpaceNet release (2021) computes, as plain NumPy: dense weights, boolean masks, float64.

Written from a description of the release, to be run beside a sparse implementation. Its quirks are kept:
importance is never cleared when a connection is dropped and is added up twice for neurons, reserved neurons get no
new connection in or out, biases of neurons that are not reserved train on, the first random weights serve every task.

Nothing here is drawn: the caller passes the first weights and, task by task, neurons, positions and batches.
A position is an integer, `row * inputs + column`, rows being a layer's outputs. Where scores tie, the lowest
position or neuron goes first, in dropping, growing and reserving alike.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]
Batch = tuple[NDArray[np.floating], NDArray[np.integer]]


def first(scores: Floats, count: int) -> Integers:
    """Returns where the `count` lowest scores are; ties lowest index first."""
    return np.argsort(scores, axis=None, kind="stable")[:count]


class DenseRelease:
    """A ReLU network that learns one task after another as the release does.

    A task is `begin_task`, then `epoch` and `change` in turns with no `change` after the last epoch, then `end_task`.

    Attributes:
        masks: Per layer, outputs × inputs: connections of the task under way.
        previous: The same of all finished tasks together; their weights stand still.
        free: Per layer of neurons, input and output included: not reserved. Of the outputs, the task's classes.
        weights: Zero outside `masks` and `previous`; in the head also outside the task's rows.
        biases: Per layer; those of neurons in `free` train.
        importance: Per connection |Δw·gradient|, added up over the task's steps, dropped connections included.
        neuron_importance: Per layer of neurons without the output, see `step`.
        seen: Classes of the tasks begun so far, in order.
    """

    def __init__(
        self,
        initial: Sequence[Floats],
        *,
        learning_rate: float = 0.01,
        drop_fraction: float = 0.2,
        reserved: int = 40,
    ) -> None:
        self.initial = [np.array(weight, dtype=np.float64) for weight in initial]
        self.learning_rate = learning_rate
        self.drop_fraction = drop_fraction
        self.reserved = reserved
        self.weights = [np.zeros_like(weight) for weight in self.initial]
        self.biases = [np.zeros(len(weight)) for weight in self.initial]
        self.masks = [np.zeros(weight.shape, dtype=bool) for weight in self.initial]
        self.previous = [mask.copy() for mask in self.masks]
        self.free = [np.ones(weight.shape[1], dtype=bool) for weight in self.initial]
        self.free.append(np.zeros(len(self.initial[-1]), dtype=bool))
        self.seen: list[int] = []

    def candidates(self, classes: Sequence[int], selected: Sequence[Integers]) -> list[Integers]:
        """Returns, per layer, the positions a task may be given.

        Args:
            classes: Classes of the task.
            selected: Per hidden layer, the neurons chosen for it.
        """
        free = [*self.free[:-1], np.ones(len(self.free[-1]), dtype=bool)]
        allowed = [
            neurons & chosen for neurons, chosen in zip(free, self._selected_by_layer(classes, selected), strict=True)
        ]
        return [
            np.flatnonzero(np.outer(allowed[layer + 1], allowed[layer]) & ~taken)
            for layer, taken in enumerate(self.previous)
        ]

    def begin_task(self, classes: Sequence[int], selected: Sequence[Integers], positions: Sequence[Integers]) -> None:
        """Gives the task its connections, with weights from the first initialisation.

        Args:
            classes: Classes of the task.
            selected: Per hidden layer, the neurons chosen for it.
            positions: Per layer, where its connections start out.

        Raises:
            ValueError: If a position is not among the `candidates`.
        """
        self.free[-1] = np.isin(np.arange(len(self.free[-1])), classes)
        self.selected = self._selected_by_layer(classes, selected)
        self.seen.extend(classes)
        self.weights[-1][:] = 0
        for layer, candidates in enumerate(self.candidates(classes, selected)):
            if not np.isin(positions[layer], candidates).all():
                raise ValueError(f"layer {layer}: some positions are not free for this task")
            self.masks[layer][:] = False
            self.masks[layer].flat[positions[layer]] = True
            self.weights[layer][self.masks[layer]] = self.initial[layer][self.masks[layer]]
        self.importance = [np.zeros_like(weight) for weight in self.weights]
        self.neuron_importance = [np.zeros(weight.shape[1]) for weight in self.weights]

    def epoch(self, batches: Iterable[Batch]) -> None:
        """Takes one step on each batch: inputs (batch × features) and classes."""
        for inputs, targets in batches:
            self.step(inputs, targets)

    def step(self, inputs: NDArray[np.floating], targets: NDArray[np.integer]) -> None:
        """Plain gradient descent on the task's connections and all free biases, then the importances.

        Neurons get, every step anew, the connections' whole sum so far: inputs that of their outgoing connections,
        hidden neurons that of their incoming ones, reserved neurons nothing.
        """
        for layer, (weight, bias) in enumerate(self._gradients(inputs, targets)):
            gradient = weight * self.masks[layer]
            before = self.weights[layer].copy()
            self.weights[layer] -= self.learning_rate * gradient
            self.biases[layer] -= self.learning_rate * bias * self.free[layer + 1]
            self.importance[layer] += np.abs((self.weights[layer] - before) * gradient)
        sums = [self.importance[0].sum(axis=0), *(incoming.sum(axis=1) for incoming in self.importance[:-1])]
        for neurons, total, free in zip(self.neuron_importance, sums, self.free, strict=False):
            neurons += total
            neurons *= free

    def change(self) -> None:
        """Drops the least important connections of all layers but the head and grows as many elsewhere.

        Growth goes by the product of both neurons' importances, over free positions between selected neurons;
        what has just been dropped does not return. New weights are zero.
        """
        for layer in range(len(self.masks) - 1):
            mask, taken = self.masks[layer], self.masks[layer] | self.previous[layer]
            count = int(mask.sum() * self.drop_fraction)
            dropped = first(np.where(mask, self.importance[layer], np.inf), count)
            score = np.outer(self.neuron_importance[layer + 1], self.neuron_importance[layer])
            barred = taken | ~np.outer(self.selected[layer + 1], self.selected[layer])
            if (~barred).sum() < count:
                raise ValueError(f"layer {layer}: {(~barred).sum()} free positions, {count} to grow")
            grown = first(np.where(barred, np.inf, -score), count)
            mask.flat[dropped] = False
            mask.flat[grown] = True
            self.weights[layer] *= mask | self.previous[layer]

    def end_task(self) -> None:
        """Freezes the task's connections, reserves the most important hidden neurons, stores the head's rows."""
        for previous, mask in zip(self.previous, self.masks, strict=True):
            previous |= mask
        for free, score in zip(self.free[1:-1], self.neuron_importance[1:], strict=True):
            free[first(-score, self.reserved)] = False
        self.initial[-1][self.free[-1]] = self.weights[-1][self.free[-1]]

    def logits(self, inputs: NDArray[np.floating]) -> Floats:
        """Returns the outputs with the head's rows of all tasks begun put together."""
        head = np.zeros_like(self.weights[-1])
        head[self.seen] = self.initial[-1][self.seen]
        head[self.free[-1]] = self.weights[-1][self.free[-1]]
        return self._hidden(inputs)[-1] @ head.T + self.biases[-1]

    def predict(self, inputs: NDArray[np.floating]) -> Integers:
        """Returns the class of largest output among those of all tasks begun."""
        classes = np.sort(self.seen)
        return classes[self.logits(inputs)[:, classes].argmax(axis=1)]

    def _selected_by_layer(self, classes: Sequence[int], selected: Sequence[Integers]) -> list[Bools]:
        chosen = [np.arange(len(self.free[0])), *selected, np.asarray(classes)]
        return [np.isin(np.arange(len(free)), neurons) for free, neurons in zip(self.free, chosen, strict=True)]

    def _hidden(self, inputs: NDArray[np.floating]) -> list[Floats]:
        activations = [np.asarray(inputs, dtype=np.float64)]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            activations.append(np.maximum(activations[-1] @ weight.T + bias, 0))
        return activations

    def _gradients(self, inputs: NDArray[np.floating], targets: NDArray[np.integer]) -> list[tuple[Floats, Floats]]:
        """Returns the mean cross-entropy's gradients over all outputs, per layer: of the weights, of the biases.

        The head's rows of other classes are zero here, so their outputs are their biases.
        """
        activations = self._hidden(inputs)
        outputs = activations[-1] @ self.weights[-1].T + self.biases[-1]
        delta = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        delta /= delta.sum(axis=1, keepdims=True)
        delta[np.arange(len(targets)), targets] -= 1
        delta /= len(targets)
        gradients = []
        for weight, below in zip(reversed(self.weights), reversed(activations), strict=True):
            gradients.append((delta.T @ below, delta.sum(axis=0)))
            delta = (delta @ weight) * (below > 0)
        return gradients[::-1]
