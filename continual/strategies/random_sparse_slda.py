"""Streaming discriminant analysis of the outputs of one sparse layer that is never trained: what training must beat."""

from torch import nn

from continual.baselines import check_choices
from continual.lda import StreamingLDA
from continual.learner import Learner, Setup
from continual.means import STATISTICS_CHOICES, StatisticsStrategy
from continual.options import Sizes
from sparse_core import SparseLinear, Topology, generators


def build(setup: Setup) -> Learner:
    """Discriminant analysis of the first hidden layer's outputs, with as many connections as all tasks get there."""
    options = check_choices(setup, *STATISTICS_CHOICES, shrinkage=1e-4, connections=None)
    shape = setup.hidden[0], setup.inputs
    connections = options.pop("connections")
    if connections is None:
        shapes = [shape, (setup.benchmark.classes, setup.hidden[0])]
        connections = setup.tasks * Sizes.fitting(shapes, setup.classes_per_task, setup.tasks).connections[0]
    generator = generators(setup.seed, "features")["features"]
    layer = SparseLinear(
        setup.inputs, setup.hidden[0], topology=Topology.random(shape, connections, generator), init="fan-in",
        generator=generator, backend=setup.backend,
    )  # fmt: skip
    lda = StreamingLDA(setup.hidden[0], setup.benchmark.classes, device=setup.device, **options)
    return StatisticsStrategy(setup=setup, statistics=lda, features=nn.Sequential(nn.Flatten(), layer, nn.ReLU()))
