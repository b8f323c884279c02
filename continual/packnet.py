"""PackNet: each task prunes the free weights of a dense network and keeps the rest for good (arXiv:1711.05769)."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.models.packnet import PackNetModel, PackNetPlugin, WeightAndBiasPackNetModule
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor
from torch.nn import functional

from continual.baselines import Dense, only, perceptron
from continual.learner import Costs, Setup


class PackNet(Dense, SupervisedTemplate):
    """Avalanche's PackNet on a dense perceptron: it must be told the task, and forgets nothing then.

    Every task ends with an equal share of the weights. What belongs to a finished task stays as it is to the last
    bit, whatever the optimizer does.

    Args:
        setup: what it is made for; its tasks are the number of shares.
        post_prune_epochs: of a task's epochs, those after pruning.
        optimizer: see `Dense`.
        learning_rate: see `Dense`.
    """

    scenarios = ("task-il",)
    """There is no class-IL: which weights are read depends on the task."""
    default_head = "current"

    def __init__(self, *, setup: Setup, post_prune_epochs: int | None = None, **options: Any) -> None:
        epochs = setup.given(epochs="epochs")["epochs"]
        after = epochs // 2 if post_prune_epochs is None else post_prune_epochs
        if not 1 <= after < epochs:
            raise ValueError(
                f"packnet trains before and after pruning, so `post_prune_epochs` must be from 1 to below `epochs`, "
                f"got {after} of {epochs}; give at least 2 epochs"
            )
        # The plugin, not Avalanche's `PackNet`, which puts the user's list of plugins into a list, where they are lost.
        method = PackNetPlugin(after, lambda task: 1 - 1 / max(setup.tasks - task, 1))
        super().__init__(setup=setup, model=PackNetModel(perceptron(setup)), methods=[method], **options)
        self.learned: list[int] = []

    @property
    def layers(self) -> list[WeightAndBiasPackNetModule]:
        """The packed layers in order."""
        return [module for module in self.model.modules() if isinstance(module, WeightAndBiasPackNetModule)]

    def _before_training_exp(self: Any, **kwargs: Any) -> None:
        self.learned.append(self.experience.current_experience)
        super()._before_training_exp(**kwargs)

    def forward(self: Any) -> Tensor:
        """Logits of the current task while training, of the experience's own task while evaluating."""
        if self.is_training:
            # Benchmarks without task labels say 0 throughout, and Avalanche's model would stay with the first task.
            return self.model(self.mb_x, torch.full((len(self.mb_x),), self.model.task_count))
        number = self.experience.current_experience
        return self._logits(self.mb_x, self.learned.index(number) if number in self.learned else len(self.learned))

    def optimizer_step(self: Any) -> None:
        """Avalanche's, then what is not free is put back: it masks gradients, and weight decay needs none."""
        before = [layer.wrappee.weight.detach().clone() for layer in self.layers]
        super().optimizer_step()
        with torch.no_grad():
            for layer, weight in zip(self.layers, before, strict=True):
                layer.wrappee.weight.copy_(torch.where(layer.unfrozen_mask, layer.wrappee.weight, weight))

    def class_scores(self, x: Tensor) -> Tensor:
        """There are none; an error that says so."""
        raise NotImplementedError("packnet scores samples of a known task only; ask `task_scores(x, number)`")

    @torch.no_grad()
    def task_scores(self: Any, x: Tensor, number: int) -> Tensor:
        """Logits (n, labels) of the classes of task `number` (from 0) from the weights it reads, -inf elsewhere."""
        return only(self.setup.benchmark.task_classes[number], self._logits(x.to(self.device), number)).to(x.device)

    def _logits(self: Any, x: Tensor, number: int) -> Tensor:
        # Without `activate_task`, which cannot leave the state between pruning and the end of a task.
        layers, x = self.layers, x.flatten(1)
        for index, layer in enumerate(layers):
            weight = layer.wrappee.weight * (layer.task_index <= number)
            x = functional.linear(x, weight, layer.wrappee.bias)
            x = torch.relu(x) if index < len(layers) - 1 else x
        return x

    def costs(self: Any) -> Costs:
        """Weights that belong to finished tasks, one byte each that says to which, and all biases."""
        done = [layer.task_index < layer.task_count for layer in self.layers]
        connections = sum(int(owned.sum()) for owned in done)
        return Costs(
            nnz=connections, neurons=sum(int(owned.any(1).sum()) for owned in done[:-1]),
            parameter_bytes=sum(parameter.nbytes for parameter in self.model.parameters()),
            index_bytes=sum(layer.task_index.nbytes for layer in self.layers), flops=2 * connections,
        )  # fmt: skip
