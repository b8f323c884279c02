"""One sparse network, SET moving its connections, nothing reserved; as many connections as spacenet's tasks have."""

from __future__ import annotations

from continual.baselines import SGD_CHOICES, check_choices
from continual.finetune import SparseFinetune, sparse_network
from continual.learner import Setup
from continual.networks import SubspaceNetwork
from continual.options import Sizes


def build(setup: Setup) -> SparseFinetune:
    """The learner for a benchmark; `options` may name another `topology` (rigl, static)."""
    options = check_choices(setup, *SGD_CHOICES, "initial_topology", topology="set", drop_fraction=0.2)
    labels = setup.benchmark.classes
    shapes = [*SubspaceNetwork(setup.inputs, setup.hidden, labels).shapes.values()]
    connections = setup.tasks * sum(Sizes.fitting(shapes, setup.classes_per_task, setup.tasks).connections)
    try:
        network = sparse_network(
            setup.inputs, setup.hidden, labels, connections, setup.seed, setup.backend, options["topology"],
            setup.initial_topology,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(
            f"as many connections as spacenet's tasks have ({connections}) do not make this network with its dense "
            f"output layer: widen `hidden`, or divide into more tasks ({error})"
        ) from error
    return SparseFinetune(
        model=network, optimizer=setup.make_optimizer(network.parameters(), "sgd", 0.01), device=setup.device,
        plugins=list(setup.plugins), evaluator=setup.evaluator, seed=setup.seed,
        **setup.given(epochs="train_epochs", batch_size="train_mb_size", head="head"), **options,
    )  # fmt: skip
