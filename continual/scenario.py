"""A benchmark as Avalanche's streams and as tensors: of ours, or of any that Avalanche has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from continual.tensors import ImageTask, tensors_of

Scenario = Literal["class-il", "domain-il"]
Classes = tuple[int, ...]


@dataclass(frozen=True)
class ContinualBenchmark:
    """A sequence of tasks, each with training, validation and test data.

    Attributes:
        name: what it is called.
        summary: what it is, in one line.
        avalanche: Avalanche's benchmark, with `train_stream`, `test_stream` and, where there is one, `valid_stream`.
        input_shape: of one sample: (channels, height, width).
        classes: how many labels a head needs; labels are below it.
        task_classes: the labels of each task, in ascending order.
        scenario: "class-il" where each task has classes of its own, "domain-il" where tasks share them.
        epochs: of each task, where nobody says otherwise.
        batch_size: samples in a training batch, where nobody says otherwise.
    """

    name: str
    summary: str
    avalanche: Any
    input_shape: tuple[int, ...]
    classes: int
    task_classes: tuple[Classes, ...]
    scenario: Scenario
    epochs: int = 4
    batch_size: int = 128
    _kept: dict[tuple[str, int], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def train(self) -> Any:
        """Avalanche's stream of what may be trained on, one experience for each task."""
        return self.avalanche.train_stream

    @property
    def valid(self) -> Any | None:
        """The stream that choices are made with, never trained on; None where the benchmark has none."""
        return getattr(self.avalanche, "valid_stream", None)

    @property
    def test(self) -> Any:
        """The stream that the results are measured with, and that nothing is chosen by."""
        return self.avalanche.test_stream

    def tensors(self, stream_name: str, task: int) -> tuple[Tensor, Tensor]:
        """One task's samples: x float32 (n, *input_shape) and y int64 (n,), in the order of the dataset.

        Args:
            stream_name: "train", "valid" or "test".
            task: from 0.

        Raises:
            ValueError: where there is no such stream or task.
        """
        stream = self.avalanche.streams.get(stream_name)
        if stream is None:
            raise ValueError(f"no stream called {stream_name!r}; {self.name} has {', '.join(self.avalanche.streams)}")
        if not 0 <= task < len(self.task_classes):
            raise ValueError(f"`task` must be from 0 to {len(self.task_classes) - 1}, got {task}")
        kept = self._kept.get((stream_name, task))
        return kept if kept is not None else _tensors(stream[task].dataset, stream_name)


def build(
    name: str, summary: str, streams: Mapping[str, Sequence[ImageTask]],
    task_classes: Sequence[Classes], classes: int, scenario: Scenario,
) -> ContinualBenchmark:  # fmt: skip
    """A benchmark of tasks that lie in memory: for each stream, one dataset for each task.

    Task labels are 0 throughout, in Avalanche's sense: what the learner is told about the task. For task-incremental
    learning, `avalanche.benchmarks.task_incremental_benchmark(benchmark.avalanche, reset_task_labels=True)`.
    """
    from avalanche.benchmarks.scenarios.generic_scenario import CLScenario, EagerCLStream

    made = [
        EagerCLStream(stream, [_experience(data, index, task_classes) for index, data in enumerate(datasets)])
        for stream, datasets in streams.items()
    ]
    avalanche = CLScenario(made)
    for stream in made:
        stream.benchmark = avalanche  # Avalanche's strict checks ask for it and its own builders leave it out
        for experience in stream:
            experience.benchmark = avalanche  # some of its metrics ask for it
    shape = tuple(streams["train"][0].shape)
    return ContinualBenchmark(name, summary, avalanche, shape, classes, tuple(task_classes), scenario)


def _experience(data: ImageTask, index: int, task_classes: Sequence[Classes]) -> Any:
    from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
    from avalanche.benchmarks.utils import (
        ConstantSequence,
        DataAttribute,
        TaskAwareSupervisedClassificationDataset,
        TaskLabels,
    )

    labels = [DataAttribute(data.targets, "targets"), TaskLabels(ConstantSequence(0, len(data)))]
    dataset = TaskAwareSupervisedClassificationDataset([data], data_attributes=labels)
    experience = DatasetExperience(dataset=dataset, current_experience=index)
    # As `with_classes_timeline` and `with_task_labels` would, without their look at every single label.
    seen = set().union(*task_classes[: index + 1])
    experience.classes_in_this_experience = set(task_classes[index])
    experience.previous_classes = set().union(*task_classes[:index])
    experience.classes_seen_so_far = seen
    experience.future_classes = set().union(*task_classes) - seen
    experience.task_label, experience.task_labels = 0, [0]
    return experience


def wrap(
    avalanche_benchmark: Any, *, name: str = "own", summary: str = "a benchmark of Avalanche's",
    scenario: Scenario | None = None,
) -> ContinualBenchmark:  # fmt: skip
    """Any benchmark of Avalanche's, with its test data (and validation data, if any) as tensors in memory.

    What is needed to know about it is read from the test stream, once. Training data stay where they are: they pass
    through their own transforms each time they are asked for.

    Args:
        avalanche_benchmark: has a `train_stream` and a `test_stream` with one experience for each task.
        name: what it is called in results.
        summary: what it is, in one line.
        scenario: None takes "class-il" where no class is in two tasks, else "domain-il".

    Raises:
        ValueError: where there is no such pair of streams, or their lengths differ.
    """
    streams = avalanche_benchmark.streams
    missing = [stream for stream in ("train", "test") if stream not in streams]
    if missing:
        raise ValueError(f"a benchmark needs a train and a test stream, missing: {', '.join(missing)}")
    tasks = len(list(streams["train"]))
    kept = {
        (stream, index): _tensors(experience.dataset, stream)
        for stream in ("test", "valid")
        for index, experience in enumerate(streams.get(stream, ()))
    }
    for stream in ("test", "valid") if "valid" in streams else ("test",):
        found = sum(key[0] == stream for key in kept)
        if found != tasks or not tasks:
            raise ValueError(
                f"wanted one experience for each task in every stream, got {tasks} to train and {found} in the "
                f"{stream} stream; build the benchmark with as many"
            )
    x, _ = kept["test", 0]
    task_classes = tuple(tuple(kept["test", task][1].unique().tolist()) for task in range(tasks))
    every = [label for labels in task_classes for label in labels]
    if scenario is None:
        scenario = "class-il" if len(set(every)) == len(every) else "domain-il"
    return ContinualBenchmark(
        name,
        summary,
        avalanche_benchmark,
        tuple(x.shape[1:]),
        max(every) + 1,
        task_classes,
        scenario,
        _kept=kept,
    )


def _tensors(dataset: Any, stream: str) -> tuple[Tensor, Tensor]:
    """A dataset's samples as tensors: in one piece where it is ours, else one by one through its loader."""
    # As Avalanche's strategies do: training data with the training transforms, all other data with the others.
    choose = getattr(dataset, "train" if stream == "train" else "eval", None)
    dataset = choose() if callable(choose) else dataset
    found = tensors_of(dataset)
    if found is not None:
        return found[0], found[1]
    loader = torch.utils.data.DataLoader(dataset, batch_size=256, collate_fn=getattr(dataset, "collate_fn", None))
    batches = [(batch[0].to(torch.float32), batch[1].to(torch.int64)) for batch in loader]
    if not batches:
        raise ValueError(f"wanted samples in every experience, got an empty one in the {stream} stream; leave it out")
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    return x, y
