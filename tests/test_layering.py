"""Imports point down, and never in a circle.

Every import counts, also one inside a function or under TYPE_CHECKING: a
hidden upward import is still an upward import. The checks work on sources
given as ``{path: text}``, so that the tests can feed them bad examples.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each package may import besides itself and the standard library.
ALLOWED = {
    "sparse_core": {"torch", "numpy", "numba", "llvmlite", "scipy", "faiss"},
    "agents": {"sparse_core", "stable_baselines3", "gymnasium", "torch", "numpy", "numba"},
    "continual": {"sparse_core", "avalanche", "torchvision", "sklearn", "torch", "numpy"},
    "envs": {"gymnasium", "mujoco", "numpy"},
}
# At the top, with nothing above it: runs may import anything but the tests.
PACKAGES = [*ALLOWED, "runs"]

# What importing a whole package must not load, even by a detour through a library.
UNLOADED = {
    "sparse_core": {"stable_baselines3", "avalanche", "mujoco", "gymnasium"},
    "agents": {"avalanche", "mujoco"},
    "envs": {"stable_baselines3", "avalanche", "torch"},
}

Sources = dict[str, str]


def read_package(package: str) -> Sources:
    paths = sorted((ROOT / package).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(path: str, text: str) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Yields (line, module, names taken from it) for all imports in a source."""
    for node in ast.walk(ast.parse(text, path)):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield node.lineno, alias.name, ()
            case ast.ImportFrom(module=module, names=names, level=level):
                # The folder a relative import starts from is the same for
                # a/b.py and a/__init__.py: a.
                start = path.split("/")[:-1]
                start = start[: len(start) - level + 1] if level else []
                base = ".".join([*start, *([module] if module else [])])
                yield node.lineno, base, tuple(alias.name for alias in names)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name, ()


def upward_imports(package: str, sources: Sources) -> list[str]:
    """The imports of a package that its place in the layers does not allow."""
    found = []
    for path, text in sources.items():
        for line, module, _ in imports(path, text):
            top = module.split(".")[0]
            if top == package or top in sys.stdlib_module_names:
                continue
            if top == "tests" or (package in ALLOWED and top not in ALLOWED[package]):
                found.append(f"{path}:{line}: {package} imports {module}")
    return found


def import_cycle(sources: Sources) -> list[str]:
    """One circle of modules that import each other, or nothing."""
    modules = {module_name(path) for path in sources}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for path, text in sources.items():
        for _, base, names in imports(path, text):
            # ``from a import b`` needs a.b where that is a module, else a.
            wanted = {f"{base}.{name}" if f"{base}.{name}" in modules else base for name in names} or {base}
            graph[module_name(path)] |= wanted & modules
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def loaded_by(*modules: str) -> set[str]:
    """The top-level modules a fresh interpreter has after importing these."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_there(package: str) -> None:
    # Without this the checks below would pass on nothing.
    assert f"{package}/__init__.py" in read_package(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package: str) -> None:
    assert upward_imports(package, read_package(package)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_cycle(package: str) -> None:
    assert import_cycle(read_package(package)) == []


@pytest.mark.end_to_end
@pytest.mark.parametrize("package", UNLOADED)
def test_import_stays_light(package: str) -> None:
    # All its modules, not only what its __init__.py brings in.
    modules = map(module_name, read_package(package))
    assert loaded_by(*modules) & UNLOADED[package] == set()


@pytest.mark.parametrize(
    ("package", "text"),
    [
        ("sparse_core", "import agents.td3"),
        ("sparse_core", "def f():\n    from stable_baselines3 import TD3"),
        ("sparse_core", "if TYPE_CHECKING:\n    from gymnasium import Env"),
        ("sparse_core", "import importlib\nimportlib.import_module('mujoco')"),
        ("agents", "from ..envs import ant"),
        ("agents", "from runs import command"),
        ("continual", "import agents"),
        ("envs", "try:\n    import torch\nexcept ImportError:\n    pass"),
        ("runs", "from tests.conftest import settings"),
    ],
)
def test_upward_import_is_seen(package: str, text: str) -> None:
    assert len(upward_imports(package, {f"{package}/bad.py": text})) == 1


def test_downward_import_is_let_through() -> None:
    text = "import os.path\nimport torch.nn\nfrom . import good\nfrom sparse_core import layers"
    assert upward_imports("agents", {"agents/good.py": text}) == []
    assert upward_imports("runs", {"runs/good.py": "import envs, agents, tyro"}) == []


@pytest.mark.parametrize(
    "sources",
    [
        {"p/a.py": "from p.b import x", "p/b.py": "import p.a"},
        {"p/a.py": "from . import b", "p/b.py": "def f():\n    from .a import x"},
        {"p/__init__.py": "from p.a import x", "p/a.py": "from p import y"},
        {
            "p/a.py": "from .q import x",
            "p/q/__init__.py": "from .c import x",
            "p/q/c.py": "from ..a import y",
        },
    ],
)
def test_import_cycle_is_seen(sources: Sources) -> None:
    assert import_cycle(sources)


def test_import_without_cycle_is_let_through() -> None:
    # A submodule may take its sibling by way of the package that re-exports both.
    sources = {"p/__init__.py": "from p.a import x", "p/a.py": "from p import b", "p/b.py": "import torch"}
    assert import_cycle(sources) == []


def test_loaded_module_is_seen() -> None:
    assert "numpy" in loaded_by("numpy")
