"""Experience replay: some images of each class are kept and trained on beside every later task (arXiv:1902.10486)."""

from continual.baselines import SGD_CHOICES, Baseline, check_choices
from continual.learner import Learner, Setup
from continual.methods import Replay, class_memory


def build(setup: Setup) -> Learner:
    """Avalanche's replay on a dense perceptron; `setup.memory` images a class, 50 by default.

    Batches hold every class so far, and so does the head "current": with it, only classes to come are left out.
    """
    check_choices(setup, *SGD_CHOICES, "memory")
    memory = class_memory(setup.memory, setup.benchmark.classes)
    method = Replay(mem_size=memory.max_size, storage_policy=memory)
    return Baseline(
        setup=setup, methods=[method], learning_rate=0.03, rehearses=True, memory=lambda: memory.buffer
    )  # fmt: skip
