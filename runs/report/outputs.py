"""What a report writes beside its page."""

from __future__ import annotations

from dataclasses import dataclass, field

from matplotlib.figure import Figure

from runs.report import page
from runs.report.drawing import png


@dataclass
class Files:
    """What a report writes beside its page, by name."""

    contents: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Names of all pictures that were asked for, also of those that there is nothing to show in."""

    def is_stale(self, name: str) -> bool:
        """Whether a file of this name is one that an earlier report of the same study may have left."""
        ours = {_kind(each) for each in (*self.contents, *self.asked)}
        return name not in self.contents and _kind(name) in ours

    def picture(self, name: str, made: Figure | None, what: str) -> str:
        """Keep a figure as NAME.png, and say it in HTML; nothing where there is no figure."""
        self.asked.append(f"{name}.png")
        if made is None:
            return ""
        data = png(made)
        self.contents[f"{name}.png"] = data
        return page.picture(data, what)


def _kind(name: str) -> str:
    """What a file of a report shows, whatever it shows it of: `curves` of `curves-Hopper-v5.png`."""
    return name.rpartition(".")[0].split("-")[0]
