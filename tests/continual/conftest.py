"""What the tests of the continual learners share.

The tests are no package, and a library that brings a package `tests` of its own would hide it.
"""

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

BESIDE = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """A folder with MNIST/raw: `SPARSE_AGENTS_DATA`, else ../shared/data beside the checkout; skips where neither."""
    chosen = os.environ.get("SPARSE_AGENTS_DATA")
    roots = [*([Path(chosen).expanduser()] if chosen else []), BESIDE]
    for root in roots:
        if (root / "MNIST" / "raw").is_dir():
            return root
    pytest.skip("needs MNIST in <root>/MNIST/raw; name the root with SPARSE_AGENTS_DATA")
