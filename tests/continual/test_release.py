"""`spacenet-2021` against a dense NumPy version of the release, step by step and mask by mask."""

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from dense_release import DenseRelease

from continual.benchmarks import make_benchmark
from continual.networks import SubspaceNetwork
from continual.options import Sizes
from continual.spacenet import SpaceNet2021

SIZES = Sizes(selected=(20, 20), reserved=(10, 10), connections=(250, 110, 20))


class Beside(SupervisedPlugin):
    """Takes every step of the sparse strategy with the dense version as well, and compares after every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = DenseRelease([np.zeros(shape) for shape in ((60, 64), (60, 60), (10, 60))], reserved=10)
        self.changes = self.epochs = 0

    def before_training_exp(self, strategy: SpaceNet2021, **kwargs: object) -> None:
        # What was drawn is handed over; the first weights of each task are ours.
        grants = strategy.grants
        for initial, layer in zip(self.dense.initial, strategy.network.chain.values(), strict=True):
            initial.flat[layer.positions.numpy()] = layer.values.detach().numpy()
        selected = [grants[name].outputs.numpy() for name in strategy.ledger.hidden]
        classes = strategy._current.classes
        self.dense.begin_task(classes, selected, [grant.positions.numpy() for grant in grants.values()])

    def after_update(self, strategy: SpaceNet2021, **kwargs: object) -> None:
        self.dense.step(strategy.mb_x.flatten(1).numpy().astype(np.float64), strategy.mb_y.numpy())

    def after_training_epoch(self, strategy: SpaceNet2021, **kwargs: object) -> None:
        if strategy.epochs_done < strategy.train_epochs:
            self.dense.change()
            self.changes += 1
        self.epochs += 1
        chain = strategy.network.chain
        for index, (name, layer) in enumerate(chain.items()):
            assert layer.positions.tolist() == np.flatnonzero(self.dense.masks[index]).tolist()
            assert layer.frozen_positions.tolist() == np.flatnonzero(self.dense.previous[index]).tolist()
            weights = self.dense.weights[index].flat[layer.positions.numpy()]
            np.testing.assert_allclose(layer.values.detach().numpy(), weights, rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(layer.effective_bias().detach().numpy(), self.dense.biases[index], atol=1e-9)
            connections = strategy.sparsifier.importance.signals(name).connections.numpy()
            expected = self.dense.importance[index].flat[layer.positions.numpy()]
            np.testing.assert_allclose(connections, expected, rtol=1e-6, atol=1e-12)
        for name, expected in zip(strategy.ledger.hidden, self.dense.neuron_importance[1:], strict=True):
            np.testing.assert_allclose(strategy.sparsifier.importance.signals(name).outputs, expected, rtol=1e-6)
        first = strategy.sparsifier.importance.signals("layers.0").inputs
        np.testing.assert_allclose(first, self.dense.neuron_importance[0], rtol=1e-6)

    def after_training_exp(self, strategy: SpaceNet2021, **kwargs: object) -> None:
        self.dense.end_task()
        for name, free in zip(strategy.ledger.hidden, self.dense.free[1:-1], strict=True):
            assert strategy.ledger.free(name).tolist() == np.flatnonzero(free).tolist()


def test_the_release_is_followed_mask_by_mask() -> None:
    benchmark = make_benchmark("split-digits")
    network = SubspaceNetwork(64, (60, 60), 10, dtype=torch.float64)
    beside = Beside()
    strategy = SpaceNet2021(
        model=network, optimizer=torch.optim.SGD(network.parameters(), lr=0.01), sizes=SIZES, train_epochs=4,
        train_mb_size=16, seed=0, plugins=[beside], evaluator=EvaluationPlugin(),
    )  # fmt: skip
    for experience in benchmark.train:
        strategy.train(experience)
        for task in range(5):
            x, _ = benchmark.tensors("test", task)
            scores = strategy.class_scores(x.double())
            assert scores.argmax(1).tolist() == beside.dense.predict(x.flatten(1).numpy()).tolist()
    assert (beside.changes, beside.epochs) == (15, 20)
