"""What all tests share."""

import os
import sys
from ctypes.util import find_library

# Before torch is first imported. The test processes already use the cores;
# threads on top make them slower, and sums depend on the thread count.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before mujoco is first imported, which fails if the library named is missing.
if sys.platform == "linux" and not os.environ.get("DISPLAY") and find_library("EGL"):
    os.environ.setdefault("MUJOCO_GL", "egl")  # renders without a screen

from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

# No deadline: the first call of a compiled kernel takes seconds. In CI the
# same examples every time, so that a failure there is about the change.
settings.register_profile("fast", deadline=None, max_examples=25)
settings.register_profile("ci", settings.get_profile("fast"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "fast")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measurements of backends stay out of the user's cache folder, those of other processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSE_AGENTS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def no_mujoco_log() -> None:
    """MuJoCo's warnings go to the log, as `envs` has it, from environments that are not made by `envs`, too."""
    from envs.registry import _mujoco_warns_the_log

    _mujoco_warns_the_log()


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of torch's threads, for this test only."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
