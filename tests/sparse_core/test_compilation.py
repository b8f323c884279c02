"""Compiled code on disk is used again as long as it is the sources' own, and no longer."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sparse_core.compilation

OUTER = """
from kernels.compilation import serial
from kernels.inner import FACTOR

@serial
def multiplied(x):
    return FACTOR * x
"""
RUN = """
import logging; logging.basicConfig()
from kernels.outer import multiplied
print(multiplied(2))
"""


def run(folder: Path) -> tuple[str, bool]:
    """What the kernel gives in a process of its own, and whether it was compiled there."""
    done = subprocess.run([sys.executable, "-c", RUN], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip(), "compiling kernels" in done.stderr


def test_every_file_with_a_kernel_counts(tmp_path: Path) -> None:
    """A pass on disk holds the code of those that it calls, in whatever file they are."""
    package = Path(sparse_core.compilation.__file__).parent
    for path in package.glob("*.py"):
        shutil.copy(path, tmp_path)
    before = sparse_core.compilation.sources.__wrapped__(tmp_path)
    made = [
        path for path in tmp_path.glob("*.py") if re.search(r"^@(serial|threaded|intrinsic)", path.read_text(), re.M)
    ]
    assert len(made) > 5
    for path in made:
        text = path.read_text()
        path.write_text(text + "\n# edited")
        assert sparse_core.compilation.sources.__wrapped__(tmp_path) != before, path.name
        path.write_text(text)


@pytest.mark.end_to_end
def test_a_kernel_follows_the_files_that_it_is_made_of(tmp_path: Path) -> None:
    package = tmp_path / "kernels"
    package.mkdir()
    shutil.copy(sparse_core.compilation.__file__, package / "compilation.py")
    (package / "__init__.py").touch()
    (package / "outer.py").write_text(OUTER)
    (package / "inner.py").write_text("FACTOR = 3  # numba takes it for a constant")
    assert run(tmp_path) == ("6", True)
    assert run(tmp_path) == ("6", False)
    (package / "inner.py").write_text("FACTOR = 50  # numba takes it for a constant")
    assert run(tmp_path) == ("100", True)
