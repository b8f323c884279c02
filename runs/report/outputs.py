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

    def picture(self, name: str, made: Figure | None, what: str) -> str:
        """Keep a figure as NAME.png, and say it in HTML; nothing where there is no figure."""
        if made is None:
            return ""
        data = png(made)
        self.contents[f"{name}.png"] = data
        return page.picture(data, what)
