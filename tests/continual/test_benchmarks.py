import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from continual.benchmarks import BENCHMARKS, ContinualBenchmark, make_benchmark, summary_of
from continual.data import CIFAR10, CIFAR100, DIGITS, MNIST, every_of_each_class


class SmallCifar:
    """Stands in for torchvision's sets: ten training images and two test images a class, the first pixel its label."""

    classes = 10

    def __init__(self, root: str, train: bool) -> None:
        count = self.classes * (10 if train else 2)
        self.targets = [i % self.classes for i in range(count)]
        self.data = np.zeros((count, 32, 32, 3), np.uint8)
        self.data[:, 0, 0, 2] = self.targets


class SmallCifar100(SmallCifar):
    classes = 100


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", SmallCifar)
    monkeypatch.setattr("torchvision.datasets.CIFAR100", SmallCifar100)
    for folder in ("cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / folder).mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def digits() -> ContinualBenchmark:
    return make_benchmark("split-digits")


@pytest.mark.end_to_end
def test_listing_needs_no_heavy_library() -> None:
    code = (
        "import sys; from continual.benchmarks import BENCHMARKS, summary_of; print(*map(summary_of, BENCHMARKS), "
        "sep='\\n'); assert not {'avalanche', 'torchvision', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(BENCHMARKS)
    assert all(20 < len(summary_of(name)) < 120 for name in BENCHMARKS)


def test_digits_need_no_file(digits: ContinualBenchmark) -> None:
    assert digits.task_classes == ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
    assert (digits.input_shape, digits.classes, digits.scenario) == ((1, 8, 8), 10, "class-il")
    counts = {name: sum(len(digits.tensors(name, task)[1]) for task in range(5)) for name in ("train", "valid", "test")}
    assert counts == {"train": 1302, "valid": 140, "test": 355}


def test_digits_are_normalised_with_their_constants() -> None:
    train, _ = DIGITS.read(Path())
    assert (train.pixels / 16).mean() == pytest.approx(DIGITS.mean[0], abs=5e-5)
    assert (train.pixels / 16).std() == pytest.approx(DIGITS.std[0], abs=5e-5)


def test_streams_cut_each_set_into_disjoint_parts(digits: ContinualBenchmark) -> None:
    train, test = DIGITS.read(Path())
    sets = {"train": train, "valid": train, "test": test}
    rows = {
        name: np.concatenate([experience.dataset._flat_data._datasets[0].rows for experience in stream])
        for name, stream in digits.avalanche.streams.items()
    }
    for label in range(10):
        of_class = np.flatnonzero(train.labels == label)
        assert sorted(set(rows["valid"]) & set(of_class)) == of_class[9::10].tolist()
    assert sorted([*rows["train"], *rows["valid"]]) == list(range(len(train.labels)))
    assert sorted(rows["test"]) == list(range(len(test.labels)))
    for name in rows:
        for task, classes in enumerate(digits.task_classes):
            x, y = digits.tensors(name, task)
            where = np.flatnonzero(np.isin(sets[name].labels, classes))
            where = where[np.isin(where, rows[name])]
            expected = (sets[name].pixels[where] / 16 - DIGITS.mean[0]) / DIGITS.std[0]
            np.testing.assert_allclose(x.numpy(), expected, atol=1e-5)
            np.testing.assert_array_equal(y, sets[name].labels[where])


def test_experiences_know_what_avalanche_asks(digits: ContinualBenchmark) -> None:
    experience = digits.train[1]
    assert experience.classes_in_this_experience == {2, 3}
    assert experience.previous_classes == {0, 1}
    assert experience.classes_seen_so_far == {0, 1, 2, 3}
    assert experience.future_classes == {4, 5, 6, 7, 8, 9}
    assert (experience.current_experience, experience.task_label, experience.task_labels) == (1, 0, [0])
    assert experience.origin_stream is digits.train
    assert experience.origin_stream.benchmark is digits.avalanche
    assert set(experience.dataset.targets.uniques) == {2, 3}
    assert [each.current_experience for each in digits.avalanche.test_stream] == [0, 1, 2, 3, 4]
    assert digits.valid is digits.avalanche.valid_stream


def test_held_out_images_are_of_all_classes_whatever_their_order() -> None:
    labels = np.arange(300) % 10  # as in a file that lists its classes in turn
    for order in (labels, np.sort(labels)):
        assert np.bincount(order[every_of_each_class(order, 10)]).tolist() == [3] * 10
    assert np.flatnonzero(every_of_each_class(np.array([1, 0, 0, 1, 1, 0]), 2)).tolist() == [2, 3]


def test_order_k_is_the_permutation_of_seed_k() -> None:
    flat = [
        label for labels in make_benchmark("split-digits", class_order=7, tasks=10).task_classes for label in labels
    ]
    assert flat == np.random.default_rng(7).permutation(10).tolist()


@pytest.mark.parametrize("order", ["3,1,4,5,9,2,6,8,7,0", [3, 1, 4, 5, 9, 2, 6, 8, 7, 0]])
def test_order_may_be_listed(order: Any) -> None:
    benchmark = make_benchmark("split-digits", class_order=order)
    assert benchmark.task_classes == ((1, 3), (4, 5), (2, 9), (6, 8), (0, 7))
    # Labels keep their numbers.
    assert benchmark.tensors("train", 2)[1].unique().tolist() == [2, 9]


def test_order_0_may_be_text() -> None:
    assert make_benchmark("split-digits", class_order="0", tasks=1).task_classes == (tuple(range(10)),)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"tasks": 3}, "10 classes do not divide into 3 equal tasks; these numbers fit: 1, 2, 5, 10"),
        ({"tasks": 0}, "from 1 to 10, got 0"),
        ({"tasks": 20}, "from 1 to 10, got 20"),
        ({"tasks": True}, "from 1 to 10"),
        ({"class_order": -1}, "whole number from 0"),
        ({"class_order": "first"}, "got 'first'"),
        ({"class_order": "1,2,3"}, "each label from 0 to 9 once, got 3 labels"),
        ({"class_order": [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]}, "each label from 0 to 9 once"),
    ],
)
def test_what_cannot_be_made_is_said(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make_benchmark("split-digits", **arguments)


def test_unknown_name_is_said() -> None:
    with pytest.raises(ValueError, match="did you mean 'split-mnist'"):
        make_benchmark("split-mnits")


@pytest.mark.parametrize("order", ["1,0", [1, 0], -1])
def test_permutations_have_a_seed_and_no_order(order: Any) -> None:
    with pytest.raises(ValueError, match="seed for its permutations"):
        make_benchmark("permuted-mnist", class_order=order)


@pytest.mark.parametrize("argument", [("train", 5), ("train", -1), ("exam", 0)])
def test_unknown_part_is_said(digits: ContinualBenchmark, argument: tuple[str, int]) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 4|has train, valid, test"):
        digits.tensors(*argument)


@pytest.mark.parametrize("tasks", [5, 10, 20, 50])
def test_cifar100_divides(cifar: Path, tasks: int) -> None:
    benchmark = make_benchmark("split-cifar100", tasks=tasks, data_root=cifar)
    assert len(benchmark.train) == len(benchmark.valid) == len(benchmark.test) == tasks
    assert benchmark.input_shape == (3, 32, 32)
    # The last images in the file's order have label 99; their blue corner says so.
    x, y = benchmark.tensors("test", tasks - 1)
    blue = (x[:, 2, 0, 0] * CIFAR100.std[2] + CIFAR100.mean[2]) * 255
    np.testing.assert_allclose(blue, y, atol=1e-3)
    np.testing.assert_allclose(x[:, 0, 0, 0], -CIFAR100.mean[0] / CIFAR100.std[0], atol=1e-5)


@pytest.mark.parametrize("order", [0, 3])
def test_cifar_10_comes_before_cifar_100(cifar: Path, order: int) -> None:
    benchmark = make_benchmark("split-cifar-10-100", class_order=order, data_root=cifar)
    assert benchmark.classes == 110
    assert benchmark.task_classes[0] == tuple(range(10))
    assert [len(classes) for classes in benchmark.task_classes] == [10] * 11
    assert sorted(label for classes in benchmark.task_classes for label in classes) == list(range(110))
    assert (benchmark.task_classes[1] == tuple(range(10, 20))) == (order == 0)
    x, y = benchmark.tensors("test", 4)
    blue = (x[:, 2, 0, 0] * CIFAR10.std[2] + CIFAR10.mean[2]) * 255
    np.testing.assert_allclose(blue, y - 10, atol=1e-3)


def test_cifar_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ValueError, match="cifar-10-batches-py is not a sound CIFAR10"):
        make_benchmark("split-cifar10", data_root=tmp_path)


def test_real_mnist(mnist_root: Path) -> None:
    benchmark = make_benchmark("split-mnist", data_root=mnist_root, class_order="9,8,7,6,5,4,3,2,1,0")
    assert benchmark.task_classes == ((8, 9), (6, 7), (4, 5), (2, 3), (0, 1))
    assert len(benchmark.tensors("test", 0)[1]) == 974 + 1009
    every = torch.cat([benchmark.tensors("train", task)[0] for task in range(5)])
    assert len(every) == 60000 - sum(count // 10 for count in np.bincount(MNIST.read(mnist_root)[0].labels))
    assert every.mean().item() == pytest.approx(0, abs=2e-3)
    assert every.std().item() == pytest.approx(1, abs=2e-3)


def test_real_permuted_mnist(mnist_root: Path) -> None:
    natural, labels = (torch.from_numpy(part) for part in MNIST.read(mnist_root)[1])
    benchmark = make_benchmark("permuted-mnist", data_root=mnist_root, tasks=20, class_order=4)
    assert benchmark.scenario == "domain-il"
    assert benchmark.task_classes == (tuple(range(10)),) * 20
    leaves = [experience.dataset._flat_data._datasets[0] for experience in benchmark.test]
    assert len({leaf.pixels.data_ptr() for leaf in leaves}) == 1  # one copy of the images
    orders = [leaf.permutation.tolist() for leaf in leaves]
    assert all(sorted(order) == list(range(784)) for order in orders)
    assert len(set(map(tuple, orders))) == 20
    for task in (0, 19):
        x, y = benchmark.tensors("test", task)
        back = (x.flatten(1)[:, np.argsort(orders[task])] * MNIST.std[0] + MNIST.mean[0]) * 255
        assert torch.equal(back.round().to(torch.uint8), natural.flatten(1))
        assert torch.equal(y, labels)
    again = make_benchmark("permuted-mnist", data_root=mnist_root, tasks=2, class_order=4)
    assert torch.equal(again.tensors("valid", 1)[0], benchmark.tensors("valid", 1)[0])
    other = make_benchmark("permuted-mnist", data_root=mnist_root, tasks=2, class_order=5)
    assert not torch.equal(other.tensors("valid", 1)[0], benchmark.tensors("valid", 1)[0])


def test_avalanches_own_strategies_learn_it(digits: ContinualBenchmark) -> None:
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training import Naive
    from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        train_mb_size=16,
        train_epochs=3,
        plugins=[ReplayPlugin(mem_size=100)],
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[], strict_checks=True),
    )
    for experience in list(digits.train)[:2]:
        strategy.train(experience)
    accuracies = list(strategy.eval(digits.test).values())
    assert len(accuracies) == 5
    assert min(accuracies[:2]) > 0.8
    assert max(accuracies[2:]) == 0
