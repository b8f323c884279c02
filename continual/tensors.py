"""Data that lies in memory: a dataset Avalanche can cut and join, its tensors back, and mini-batches of them.

Avalanche's loaders fetch samples one by one; mini-batches cut out of whole tensors take a small part of that time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

Places = tuple[NDArray[np.int64], NDArray[np.int64]]  # for each sample: which leaf, and where in it


class ImageTask(Dataset[tuple[Tensor, int]]):
    """Some rows of labelled uint8 images as float32 images (channels, height, width), made when they are asked for.

    Tasks share `pixels` and `labels`; a task of its own costs its rows and at most one permutation of the pixels.

    Args:
        pixels: uint8 (N, channels, height, width).
        labels: int64 (N,).
        rows: int64 (n,), the images that belong to this task.
        gain: float32 (channels,), an image is pixels · gain + shift.
        shift: float32 (channels,).
        permutation: int64 (channels · height · width,), pixel i shows what was at `permutation[i]`; None for as is.
    """

    def __init__(
        self, pixels: Tensor, labels: Tensor, rows: Tensor, gain: Tensor, shift: Tensor,
        permutation: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.pixels, self.labels, self.rows, self.permutation = pixels, labels, rows, permutation
        self.gain, self.shift = gain.view(-1, 1, 1), shift.view(-1, 1, 1)
        self.targets: list[int] = labels[rows].tolist()  # what Avalanche asks for
        self._rows: list[int] = rows.tolist()

    @property
    def shape(self) -> torch.Size:
        """Of one image: (channels, height, width)."""
        return self.pixels.shape[1:]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._shown(self.pixels[self._rows[index]]), self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        # torch's loader asks for a batch this way; through an AvalancheDataset it never does.
        x, y = self.tensors(torch.as_tensor(indices))
        return list(zip(x.unbind(), y.tolist(), strict=True))

    def tensors(self, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """New tensors x, float32 (n, channels, height, width), and y, int64 (n,), of all samples or of some."""
        rows = self.rows if places is None else self.rows[places]
        return self._shown(self.pixels.index_select(0, rows)), self.labels[rows]

    def _shown(self, pixels: Tensor) -> Tensor:
        if self.permutation is not None:
            # NumPy's take of bytes is several times faster than torch's.
            moved = np.take(pixels.flatten(-3).numpy(), self.permutation.numpy(), axis=-1)
            pixels = torch.from_numpy(moved).view(pixels.shape)
        return (pixels * self.gain).add_(self.shift)


def tensors_of(dataset: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """All samples of a dataset, as a loader would give them: x float32 (n, …), y int64 (n,), task labels t int64 (n,).

    Sees through Avalanche's subsets and concatenations, and torch's below them, down to `ImageTask`. None where
    something else is below, where a transform would change the samples, or where they carry more than a task label:
    then the dataset's own loader must be used. Without a task label, t is 0.
    """
    from avalanche.benchmarks.utils.data import AvalancheDataset

    flat, attributes, group = dataset, {}, "train"
    if isinstance(dataset, AvalancheDataset):
        flat = dataset._flat_data
        attributes = {name: data for name, data in dataset._data_attributes.items() if data.use_in_getitem}
        group = flat._transform_groups.current_group  # the outermost one decides for all below
    labels = attributes.pop("targets_task_labels", None)
    leaves: list[ImageTask] = []
    places = None if attributes else _places(flat, group, leaves)
    if places is None or not leaves or len({leaf.shape for leaf in leaves}) > 1:
        return None
    x, y = _gathered(leaves, *places)
    return x, y, torch.zeros_like(y) if labels is None else _task_labels(labels)


def classes_of(experience: Any) -> tuple[int, ...]:
    """The labels of an experience, ascending; read from its data where Avalanche does not say, as in task streams."""
    said = getattr(experience, "classes_in_this_experience", None)
    return tuple(sorted({int(label) for label in (experience.dataset.targets if said is None else said)}))


def samples_of(dataset: Any, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Samples x (n, …) and labels y int64 (n,), the first `most` at least; one by one where they lie elsewhere."""
    tensors = tensors_of(dataset)
    if tensors is not None:
        return tensors[0], tensors[1]
    count = len(dataset) if most is None else min(most, len(dataset))
    samples = [dataset[index] for index in range(count)]
    return torch.stack([sample[0] for sample in samples]), torch.tensor([int(sample[1]) for sample in samples])


def _places(dataset: Any, group: str, leaves: list[ImageTask]) -> Places | None:
    """Where each sample of a dataset comes from; None as soon as anything is not ours. Adds the leaves it meets."""
    from avalanche.benchmarks.utils.flat_data import FlatData

    if isinstance(dataset, ImageTask):
        known = next((i for i, leaf in enumerate(leaves) if leaf is dataset), len(leaves))
        if known == len(leaves):
            leaves.append(dataset)
        return np.full(len(dataset), known, np.int64), np.arange(len(dataset))
    if type(dataset) is Subset:
        parts, indices = [dataset.dataset], dataset.indices
    elif type(dataset) is ConcatDataset:
        parts, indices = dataset.datasets, None
    elif isinstance(dataset, FlatData) and not _transforms(dataset, group):
        parts, indices = dataset._datasets, dataset._indices
    else:
        return None
    found = [_places(part, group, leaves) for part in parts]
    places = [part for part in found if part is not None]
    if not places or len(places) < len(found):
        return None
    which, where = (np.concatenate(side) for side in zip(*places, strict=True))
    if indices is None:
        return which, where
    chosen = np.fromiter(indices, np.int64, len(indices))
    return which[chosen], where[chosen]


def _transforms(dataset: Any, group: str) -> bool:
    """Whether a node of Avalanche's tree changes samples in this group of transforms, or may."""
    groups = [getattr(dataset, name, None) for name in ("_transform_groups", "_frozen_transform_groups")]
    try:
        return any(each is not None and each[group] is not None for each in groups)
    except KeyError:
        return True


def _gathered(leaves: list[ImageTask], which: NDArray[np.int64], where: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    if len(leaves) == 1:
        return leaves[0].tensors(torch.from_numpy(where))
    x = torch.empty((len(which), *leaves[0].shape))
    y = torch.empty(len(which), dtype=torch.int64)
    for index, leaf in enumerate(leaves):
        mine = torch.from_numpy(np.flatnonzero(which == index))
        x[mine], y[mine] = leaf.tensors(torch.from_numpy(where)[mine])
    return x, y


def _task_labels(attribute: Any) -> Tensor:
    from avalanche.benchmarks.utils.flat_data import ConstantSequence

    if isinstance(attribute.data, ConstantSequence):
        return torch.full((len(attribute),), int(attribute.data[0]))
    return torch.from_numpy(np.fromiter(attribute.data, np.int64, len(attribute)))


class TensorBatches:
    """Mini-batches [x, y, t] of samples in memory; each pass over it is an epoch, in a new order where it shuffles.

    The order is drawn from the generator when a pass begins, one `torch.randperm` each, and from nowhere else.

    Args:
        x: (n, …), on any device.
        y: (n,).
        t: (n,), task labels.
        batch_size: samples in a batch; the last one may be smaller.
        shuffle: whether each epoch has an order of its own.
        generator: where the orders come from, on the CPU; needed where it shuffles.
        drop_last: whether a smaller last batch is left out.

    Raises:
        ValueError: for tensors of different lengths, a batch size below 1, and shuffling without a generator.
    """

    def __init__(
        self, x: Tensor, y: Tensor, t: Tensor, batch_size: int, shuffle: bool = False,
        generator: torch.Generator | None = None, drop_last: bool = False,
    ) -> None:  # fmt: skip
        if not len(x) == len(y) == len(t):
            raise ValueError(f"x, y and t must have one length, got {len(x)}, {len(y)} and {len(t)}")
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        if shuffle and generator is None:
            raise ValueError("shuffling needs a `generator`, so that the same seed gives the same batches; got None")
        self.tensors = [x, y, t]
        self.batch_size, self.generator, self.drop_last = batch_size, generator if shuffle else None, drop_last

    def __len__(self) -> int:
        whole, rest = divmod(len(self.tensors[0]), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[Tensor]]:
        if self.generator is None:
            return self._in_order()
        # Drawn here, not at the first batch: two passes begun in turn have their orders in turn.
        order = torch.randperm(len(self.tensors[0]), generator=self.generator).to(self.tensors[0].device)
        return self._in_order(order)

    def _in_order(self, order: Tensor | None = None) -> Iterator[list[Tensor]]:
        for batch in range(len(self)):
            cut = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            if order is None:
                yield [tensor[cut] for tensor in self.tensors]
            else:
                rows = order[cut]
                yield [tensor.index_select(0, rows) for tensor in self.tensors]
