"""Sparse features that stand still, and a streaming discriminant analysis of them; nothing is stored but statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from continual.lda import StreamingLDA
from continual.learner import Setup
from continual.means import StatisticsStrategy
from continual.networks import Connections, SubspaceNetwork, connect
from continual.tensors import samples_of
from sparse_core import generators

STANDARD = 2000
"""Samples of the first task by which features are standardised."""


class SpaceNetSLDA(StatisticsStrategy):
    """One sparse subspace for all tasks, read by a streaming LDA over both hidden layers' features; ours.

    The first task draws the connections: neurons of the first layer read a random patch of the image,
    neurons of later layers random ones below. It scales each neuron to unit spread around zero, and then
    everything is frozen: features of classes that are gone must stay what they were.

    Args:
        setup: what it is made for.
        share: share of a patch (in all its channels), and of a layer below, that a neuron reads: (first layer, later
            ones), each in (0, 1].
        shrinkage: of the covariance; see `StreamingLDA`.
    """

    def __init__(
        self, *, setup: Setup, share: tuple[float, float] = (0.6, 0.175), shrinkage: float = 1e-4
    ) -> None:  # fmt: skip
        if not isinstance(share, Sequence) or len(share) != 2 or not all(0 < each <= 1 for each in share):
            raise ValueError(f"`share` must be two shares in (0, 1], of a patch and of a layer below, got {share!r}")
        self.network = SubspaceNetwork(setup.inputs, setup.hidden, setup.benchmark.classes, backend=setup.backend)
        self.share, self.epochs_done, self.drawn, self._open = share, 0, False, False
        lda = StreamingLDA(sum(setup.hidden), setup.benchmark.classes, shrinkage, setup.device)
        super().__init__(setup=setup, statistics=lda, features=_Features(self.network))

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """The first task draws the features."""
        if not self._open:
            self._open, self.epochs_done = True, 0
            if not self.drawn:
                self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        generator = generators(self.setup.seed, "features")["features"]
        x = samples_of(self.experience.dataset, STANDARD)[0][:STANDARD].to(self.device)
        for index, layer in enumerate(list(self.network.chain.values())[:-1]):
            outputs, inputs = layer.shape
            if index == 0 and x.dim() == 4 and min(x.shape[2:]) >= 5:
                places = _patches(outputs, (x.shape[1], x.shape[2], x.shape[3]), self.share[0], generator)
            else:
                fan_in = max(1, round(self.share[1] * inputs))
                places = _spread(outputs, inputs, fan_in, generator)
            positions = (torch.arange(outputs)[:, None] * inputs + places).flatten().sort().values
            values = torch.randn(positions.numel(), generator=generator)
            nothing = Connections(positions[:0], values[:0])
            below = x.flatten(1) if index == 0 else list(self.network.activations(x))[index - 1]
            connect(layer, nothing, Connections(positions, values), torch.zeros(outputs))
            before = layer(below)
            scale = 1 / before.std(0).clamp(min=1e-3)
            values = values * scale.cpu()[positions // inputs]
            connect(
                layer, Connections(positions, values), nothing, (-before.mean(0) * scale).cpu(), torch.arange(outputs)
            )
        self.drawn = True

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        """One pass over the data, unless a resumed run has made it."""
        if not self.epochs_done:
            self._before_training_epoch(**kwargs)
            self.training_epoch(**kwargs)
            self.epochs_done = 1
            self._after_training_epoch(**kwargs)

    def _after_training_exp(self, **kwargs: Any) -> None:
        self._open = False
        super()._after_training_exp(**kwargs)

    def state(self) -> dict[str, Any]:
        """Features and statistics."""
        return {
            "network": dict(self.network.state_dict()), "statistics": self.statistics.state(),
            "batches": self.batch_generator.get_state(), "epochs_done": self.epochs_done,
            "drawn": self.drawn, "open": self._open,
        }  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.network.load_state_dict(state["network"])
        self.statistics.load_state(state["statistics"])
        self.batch_generator.set_state(state["batches"])
        self.epochs_done, self.drawn, self._open = state["epochs_done"], state["drawn"], state["open"]


class _Features(nn.Module):
    """Activations of all hidden layers side by side."""

    def __init__(self, network: SubspaceNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Samples (n, …) to features (n, neurons of all hidden layers)."""
        return torch.cat(list(self.network.activations(x)), 1)


def _spread(neurons: int, inputs: int, count: int, generator: torch.Generator) -> Tensor:
    """For each neuron, `count` distinct inputs; drawn a few hundred neurons at a time."""
    drawn = [
        torch.rand(rows.numel(), inputs, generator=generator).topk(count, 1).indices
        for rows in torch.arange(neurons).split(512)
    ]
    return torch.cat(drawn)


def _patches(neurons: int, shape: tuple[int, int, int], share: float, generator: torch.Generator) -> Tensor:
    """For each neuron, inputs drawn from a random square of the images, about a third of their height wide."""
    channels, height, width = shape
    side = max(5, round(0.32 * min(height, width)))
    count = max(1, round(share * channels * side * side))
    top, left = (torch.randint(extent - side + 1, (neurons, 1), generator=generator) for extent in (height, width))
    chosen = torch.rand(neurons, channels * side * side, generator=generator).topk(count, 1).indices
    channel, row, column = chosen // side**2, chosen // side % side, chosen % side
    return channel * height * width + (top + row) * width + left + column
