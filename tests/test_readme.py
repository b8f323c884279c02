"""The README's Python runs as printed, only shorter, and its commands are ones the program understands."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from runs.command import parse
from sparse_core import DROP_RULES, PRESETS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "runs/records/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command of the README that is whole as it stands."""
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in text.splitlines() if line.strip().startswith("sparse-agents ")]


@pytest.mark.end_to_end
def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DROP_RULES, "_entries", dict(DROP_RULES._entries))
    torch.manual_seed(0)
    names: dict[str, object] = {}
    source = "\n".join(blocks("python"))
    for long, short in (("learn(100_000, progress_bar=True)", "learn(200)"), ("range(1_000)", "range(150)")):
        assert long in source
        source = source.replace(long, short)
    exec(compile(source, "README.md", "exec"), names)
    assert len(names["strategy"].tasks) == 5  # type: ignore[attr-defined]
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert names["model"][0].sparsity > 0.9  # type: ignore[index]
    assert names["sparsifier"].changes == 1  # type: ignore[attr-defined]
    assert (tmp_path / "cheetah.zip").is_file()


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str) -> None:
    arguments = shlex.split(command)[1:]
    if "--help" in arguments:
        with pytest.raises(SystemExit) as stopped:
            parse(arguments)
        assert stopped.value.code == 0
        return
    assert parse(arguments) is not None


def test_there_are_commands_to_understand() -> None:
    named = {shlex.split(command)[1] for command in commands()}
    assert named >= {"train", "resume", "compare", "report", "continual", "evaluate", "export", "list"}


def test_every_method_is_in_the_table_with_its_choices() -> None:
    table = (ROOT / "docs" / "methods.md").read_text()
    rows = {line.split("`")[1]: line.replace("\\|", "|") for line in table.splitlines() if line.startswith("| `")}
    assert {name for name in rows if name in PRESETS} == set(PRESETS)
    for name, preset in PRESETS.items():
        for choice in (preset.summary, preset.drop or preset.prune, preset.grow, preset.dense_by_nature):
            assert choice is None or choice in rows[name], (name, choice)
        *_, fraction, period, _ = (cell.strip() for cell in rows[name].strip("| ").split(" | "))
        assert fraction in ("–", f"{preset.drop_fraction:.2g} {preset.schedule}"), name
        assert period in ("–", "once", str(preset.period)), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, anchor
