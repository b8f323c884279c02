"""The wheel ships the five packages and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"sparse_core", "agents", "continual", "envs", "runs"}


def build_wheel(folder: Path) -> zipfile.ZipFile:
    # From a copy: building writes next to the sources.
    source = folder / "source"
    source.mkdir()
    for name in [*PACKAGES, "tests"]:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    # No isolation: setuptools is already here, so this needs no network.
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--wheel-dir", folder, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.mark.end_to_end
def test_wheel_contents(tmp_path: Path) -> None:
    with build_wheel(tmp_path) as wheel:
        files = set(wheel.namelist())
        (entry_points,) = [name for name in files if name.endswith("/entry_points.txt")]
        assert "sparse-agents = runs.command:main" in wheel.read(entry_points).decode()

    tops = {name.split("/")[0] for name in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    # Each module of the tree is in, so a subpackage without __init__.py shows up here.
    tree = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert tree <= files
    assert {f"{package}/py.typed" for package in PACKAGES} <= files
