"""Avalanche's plugins with what they lack: a correct SI on the CPU, a MAS that survives a loss of 0, data in memory."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from avalanche.training.plugins import EWCPlugin, GDumbPlugin, MASPlugin, ReplayPlugin, SynapticIntelligencePlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from torch import Tensor
from torch.utils.data import Dataset

from continual.tensors import TensorBatches, tensors_of


class Gathered(Dataset[Any]):
    """Samples in memory for a loader of torch's, a whole batch at a time and already collated."""

    def __init__(self, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
        self.tensors = tensors

    @classmethod
    def of(cls, dataset: Any) -> Any:
        """The samples of a dataset where they are ours, else the dataset itself."""
        tensors = tensors_of(dataset)
        return dataset if tensors is None else cls(tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        places = torch.tensor(indices)
        return [tensor.index_select(0, places) for tensor in self.tensors]

    @staticmethod
    def collate_fn(batch: list[Tensor]) -> list[Tensor]:
        """Nothing is left to do."""
        return batch


class EWC(EWCPlugin):
    """Avalanche's, its second pass over the data in memory (arXiv:1612.00796)."""

    def compute_importances(
        self, model: Any, criterion: Any, optimizer: Any, dataset: Any, *others: Any, **more: Any
    ) -> Any:  # fmt: skip
        """The mean over batches of the squared gradient of a batch's loss."""
        return super().compute_importances(model, criterion, optimizer, Gathered.of(dataset), *others, **more)


class MAS(MASPlugin):
    """Avalanche's, its second pass in memory; a loss that is exactly 0 is not taken for none (arXiv:1711.09601)."""

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the penalty."""
        # `if not strategy.loss: raise` there stops a run whose batch is fitted down to the last bit.
        strategy.loss += torch.finfo(strategy.loss.dtype).tiny
        super().before_backward(strategy, **kwargs)

    def _get_importance(self, strategy: Any) -> Any:
        # Only the experience's dataset is asked for in there.
        experience = strategy.experience
        strategy.experience = SimpleNamespace(dataset=Gathered.of(experience.dataset))
        try:
            return super()._get_importance(strategy)
        finally:
            strategy.experience = experience


class SI(SynapticIntelligencePlugin):
    """Avalanche's, with copies where it has views, without which it is plain fine-tuning on the CPU (arXiv:1703.04200).

    There `detach().cpu().flatten()` of a weight on the CPU is the weight itself: the weights a task began with move
    along with it, so that both the penalty and every step's path are 0.
    """

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Remember the weights that the task begins with."""
        super().before_training_exp(strategy, **kwargs)
        _copy(self.ewc_data[0])

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Remember the weights before the step."""
        super().before_training_iteration(strategy, **kwargs)
        _copy(self.syn_data["old_theta"])

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Importance from the path, between 0 and Avalanche's limit: below 0 it would reward leaving."""
        # Avalanche's own words for this go through NumPy, which warns that it will stop taking tensors.
        before, importance = self.ewc_data
        for name, parameter in self.allowed_parameters(strategy.model, self.excluded_parameters):
            now, total = parameter.detach().cpu().flatten().clone(), self.syn_data["cum_trajectory"][name]
            total.data += self.syn_data["trajectory"][name].data / ((now - before[name].data).square() + self.eps)
            importance[name].data = (-total.data).clamp(0, 0.001)
            before[name].data = now

    def kept(self) -> list[Any]:
        """What the next task needs: reference weights, importance and its sum; the rest is of one step."""
        return [*self.ewc_data, self.syn_data["cum_trajectory"]]


def _copy(params: Any) -> None:
    for param in params.values():
        param.data = param.data.clone()


class Replay(ReplayPlugin):
    """Avalanche's, its mixed batches in memory: each batch of the task with one as large of the stored samples."""

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Put stored samples beside the task's."""
        stored = len(self.storage_policy.buffer) > 0
        tensors = tensors_of(self.storage_policy.buffer) if stored else None
        if tensors is None or not isinstance(strategy.dataloader, TensorBatches):
            super().before_training_exp(strategy, **kwargs)
            return
        memory = TensorBatches(*tensors, strategy.train_mb_size, True, strategy.batch_generator)
        strategy.dataloader = Beside(strategy.dataloader, memory)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Store images of the task."""
        self.storage_policy.post_adapt(strategy, strategy.experience)  # Avalanche's calls what it says is deprecated


class GDumb(GDumbPlugin):
    """Avalanche's, with a memory of our own (Prabhu et al., ECCV 2020)."""

    def __init__(self, memory: ClassBalancedBuffer) -> None:
        super().__init__(memory.max_size)
        self.storage_policy = memory

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Store images of the task, and train on what is stored."""
        self.storage_policy.post_adapt(strategy, strategy.experience)
        strategy.adapted_dataset = self.storage_policy.buffer


class Beside:
    """Batches of the first loader, each with one of the second beneath it, which starts over as often as it must."""

    def __init__(self, first: TensorBatches, second: TensorBatches) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[list[Tensor]]:
        beneath = _endless(self.second)
        for batch in self.first:
            yield [torch.cat(pair) for pair in zip(batch, next(beneath), strict=True)]


def _endless(batches: TensorBatches) -> Iterator[list[Tensor]]:
    while True:
        yield from batches


def class_memory(images: int | None, classes: int) -> ClassBalancedBuffer:
    """A memory of so many random images for each class, 50 where none is said, from the first task to the last."""
    each = 50 if images is None else images
    if each < 1:
        raise ValueError(f"`memory` must be at least 1 image a class, got {each}")
    return ClassBalancedBuffer(max_size=each * classes, adaptive_size=False, total_num_classes=classes)
