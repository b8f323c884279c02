"""Small benchmarks made of tensors, for the tests of learners that meet many tasks."""

import torch
from torch.utils.data import TensorDataset

from continual.scenario import ContinualBenchmark, build
from continual.tensors import ImageTask


def blobs(tasks: int, samples: int = 32, *, shared_classes: bool = False, side: int = 4) -> ContinualBenchmark:
    """Two classes a task, each a random image with noise; or the same two in all, their pixels permuted."""
    draws = torch.Generator().manual_seed(7)
    count = 2 if shared_classes else 2 * tasks
    middle = torch.randint(40, 200, (count, 1, side, side), generator=draws)
    labels = torch.arange(count).repeat_interleave(2 * samples)
    noise = torch.randint(-20, 21, (len(labels), 1, side, side), generator=draws)
    pixels = (middle[labels] + noise).clamp(0, 255).to(torch.uint8)
    gain, shift = torch.tensor([1 / 64]), torch.tensor([-2.0])
    classes = tuple((0, 1) if shared_classes else (2 * task, 2 * task + 1) for task in range(tasks))
    streams: dict[str, list[ImageTask]] = {"train": [], "test": []}
    for pair in classes:
        moved = torch.randperm(side * side, generator=draws) if shared_classes else None
        for stream, half in (("train", 0), ("test", 1)):
            rows = torch.cat([label * 2 * samples + half * samples + torch.arange(samples) for label in pair])
            streams[stream].append(ImageTask(pixels, labels, rows, gain, shift, moved))
    scenario = "domain-il" if shared_classes else "class-il"
    return build("blobs", "", streams, classes, count, scenario)


class Foreign(TensorDataset):
    """Labelled samples that Avalanche's loader must fetch one by one."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        super().__init__(x, y)
        self.targets = y.tolist()

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.tensors[0][index], self.targets[index]


def foreign(side: int, samples: int = 64) -> tuple[Foreign, Foreign]:
    """Training and test images of four classes, one corner bright each."""
    draws = torch.Generator().manual_seed(1)

    def some() -> Foreign:
        y = torch.arange(samples) % 4
        x = 0.3 * torch.rand(samples, 1, side, side, generator=draws)
        half = side // 2
        for index, label in enumerate(y.tolist()):
            row, column = divmod(label, 2)
            x[index, 0, row * half : (row + 1) * half, column * half : (column + 1) * half] += 1
        return Foreign(x, y)

    return some(), some()
