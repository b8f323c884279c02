from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from continual.scenario import build
from continual.tensors import ImageTask, TensorBatches, tensors_of

PIXELS = torch.randint(0, 256, (40, 2, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 4
CLASSES = ((0, 1), (2, 3))


def image_task(task: int, permutation: Tensor | None = None) -> ImageTask:
    rows = torch.isin(LABELS, torch.tensor(CLASSES[task])).nonzero().squeeze(1)
    return ImageTask(PIXELS, LABELS, rows, torch.tensor([0.5, 0.25]), torch.tensor([-1.0, 2.0]), permutation)


def small_benchmark() -> Any:
    order = torch.randperm(18, generator=torch.Generator().manual_seed(1))
    tasks = [image_task(0), image_task(1, order)]
    return build("small", "two small tasks", {"train": tasks, "test": tasks}, CLASSES, 4, "class-il").avalanche


BENCHMARK = small_benchmark()
DATASETS = [experience.dataset for experience in BENCHMARK.train_stream]


def one_by_one(dataset: Any) -> list[Tensor]:
    """What Avalanche's own way of loading gives: each sample through `__getitem__`."""
    samples = [dataset[index] for index in range(len(dataset))]
    x, y, t = (list(part) for part in zip(*((*sample, 0)[:3] for sample in samples), strict=True))
    return [torch.stack(x), torch.tensor(y), torch.tensor(t)]


def assert_agree(dataset: Any) -> None:
    found = tensors_of(dataset)
    assert found is not None
    assert [part.dtype for part in found] == [torch.float32, torch.int64, torch.int64]
    for part, expected in zip(found, one_by_one(dataset), strict=True):
        assert torch.equal(part, expected)


def test_an_image_is_scaled_by_channel_and_permuted() -> None:
    x, y = image_task(0)[1]
    assert y == 1
    assert torch.equal(x[0], PIXELS[1, 0] * 0.5 - 1)
    assert torch.equal(x[1], PIXELS[1, 1] * 0.25 + 2)
    shifted, _ = image_task(0, torch.arange(18).roll(-1))[1]
    assert torch.equal(shifted[0], PIXELS[1].flatten().roll(-1)[:9].view(3, 3) * 0.5 - 1)


def test_batches_of_samples_are_the_samples() -> None:
    data = DATASETS[1]._flat_data._datasets[0]
    for (x, y), index in zip(data.__getitems__([5, 0, 5]), [5, 0, 5], strict=True):
        assert torch.equal(x, data[index][0])
        assert y == data[index][1]


@pytest.mark.parametrize("task", [0, 1])
def test_tensors_are_the_samples(task: int) -> None:
    assert_agree(DATASETS[task])
    assert_agree(DATASETS[task].eval())
    assert_agree(DATASETS[task]._flat_data._datasets[0])


@pytest.mark.parametrize("task", [0, 1])
def test_tensors_are_what_avalanches_loader_gives(task: int) -> None:
    dataset = DATASETS[task]
    found = tensors_of(dataset)
    assert found is not None
    loaded = zip(*DataLoader(dataset, batch_size=7, collate_fn=dataset.collate_fn), strict=True)
    for part, batches in zip(found, loaded, strict=True):
        assert torch.equal(part, torch.cat(batches))


# A tree of what Avalanche and its plugins do to datasets: cut by indices (repeated ones too) and join.
def cut(dataset: Any, data: st.DataObject) -> Any:
    return dataset.subset(data.draw(st.lists(st.integers(0, len(dataset) - 1), min_size=1, max_size=12)))


@given(data=st.data())
def test_tensors_are_the_samples_whatever_was_cut_and_joined(data: st.DataObject) -> None:
    pool = list(DATASETS)
    for _ in range(data.draw(st.integers(1, 6))):
        first, second = (data.draw(st.sampled_from(pool)) for _ in range(2))
        pool.append(cut(first, data) if data.draw(st.booleans()) else first.concat(second))
    assert_agree(pool[-1])


def test_torchs_subsets_and_concatenations_are_seen_through() -> None:
    first, second = image_task(0), image_task(1)
    assert_agree(ConcatDataset([Subset(first, [3, 1]), second, first]))


def test_task_labels_are_those_avalanche_gave() -> None:
    from avalanche.benchmarks import task_incremental_benchmark

    streams = task_incremental_benchmark(BENCHMARK, reset_task_labels=True).streams
    joined = streams["train"][0].dataset.concat(streams["train"][1].dataset).subset([30, 2, 31, 2])
    assert_agree(joined)
    assert joined[0][2] == 1
    found = tensors_of(joined)
    assert found is not None
    assert found[2].tolist() == [1, 0, 1, 0]


def test_replay_buffers_are_seen_through() -> None:
    from avalanche.training.storage_policy import ClassBalancedBuffer

    buffer = ClassBalancedBuffer(max_size=10, adaptive_size=True)
    for experience in BENCHMARK.train_stream:
        buffer.post_adapt(None, experience)
    assert_agree(buffer.buffer)
    assert_agree(DATASETS[1].concat(buffer.buffer))


def test_foreign_data_are_left_to_their_loader() -> None:
    from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, make_avalanche_dataset

    foreign = TensorDataset(torch.zeros(4, 2, 3, 3), torch.zeros(4))
    assert tensors_of(foreign) is None
    assert tensors_of(AvalancheDataset([foreign])) is None
    assert tensors_of(AvalancheDataset([image_task(0), foreign])) is None
    assert tensors_of(AvalancheDataset([])) is None
    changed = make_avalanche_dataset(image_task(0), transform_groups={"train": (lambda x: -x, None), "eval": None})
    assert tensors_of(changed) is None
    assert tensors_of(changed.eval()) is not None
    assert tensors_of(changed.freeze_transforms()) is None
    more = DATASETS[0].update_data_attribute(
        "logits", DataAttribute(list(range(len(DATASETS[0]))), "logits", use_in_getitem=True)
    )
    assert len(more[0]) == 4
    assert tensors_of(more) is None


def numbered(count: int) -> list[Tensor]:
    return [
        torch.arange(count, dtype=torch.float32)[:, None],
        torch.arange(count),
        torch.zeros(count, dtype=torch.int64),
    ]


@given(count=st.integers(0, 20), size=st.integers(1, 7), shuffle=st.booleans(), drop_last=st.booleans())
def test_each_sample_comes_once_an_epoch(count: int, size: int, shuffle: bool, drop_last: bool) -> None:
    batches = TensorBatches(*numbered(count), size, shuffle, torch.Generator().manual_seed(0), drop_last)
    for _ in range(2):
        epoch = list(batches)
        assert len(epoch) == len(batches)
        seen = torch.cat([y for _, y, _ in epoch]).tolist() if epoch else []
        assert all(torch.equal(x.squeeze(1).to(torch.int64), y) for x, y, _ in epoch)
        assert all(len(y) == size for _, y, _ in (epoch if drop_last else epoch[:-1]))
        assert len(seen) == (count // size * size if drop_last else count)
        assert len(set(seen)) == len(seen)
        assert shuffle or seen == list(range(len(seen)))


def test_orders_come_from_the_generator_alone() -> None:
    def orders(seed: int) -> list[list[int]]:
        batches = TensorBatches(*numbered(50), 8, True, torch.Generator().manual_seed(seed))
        return [torch.cat([y for _, y, _ in batches]).tolist() for _ in range(2)]

    state = torch.get_rng_state()
    assert orders(3) == orders(3)
    assert orders(3)[0] != orders(3)[1]
    assert orders(3) != orders(4)
    assert torch.equal(torch.get_rng_state(), state)


def test_unshuffled_batches_draw_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    list(TensorBatches(*numbered(9), 4, False, generator))
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())


def test_bad_batches_are_said() -> None:
    x, y, t = numbered(4)
    with pytest.raises(ValueError, match="one length, got 4, 3 and 4"):
        TensorBatches(x, y[:3], t, 2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        TensorBatches(x, y, t, 0)
    with pytest.raises(ValueError, match="needs a `generator`"):
        TensorBatches(x, y, t, 2, shuffle=True)
