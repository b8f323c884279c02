"""GDumb: a new network for each task, trained on the stored images alone (Prabhu et al., ECCV 2020)."""

from continual.baselines import SGD_CHOICES, Baseline, check_choices
from continual.learner import Learner, Setup
from continual.methods import GDumb, class_memory


def build(setup: Setup) -> Learner:
    """Avalanche's GDumb on a dense perceptron; `setup.memory` images a class, 50 by default.

    An epoch is one pass over the memory, so there are more of them than elsewhere. The head "current" is over all
    classes so far.
    """
    check_choices(setup, *SGD_CHOICES, "memory")
    memory = class_memory(setup.memory, setup.benchmark.classes)
    method = GDumb(memory)
    return Baseline(
        setup=setup, methods=[method], epochs=64, learning_rate=0.3, rehearses=True, memory=lambda: memory.buffer,
        statistics=lambda: [method.init_model or ()],
    )  # fmt: skip
