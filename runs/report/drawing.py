"""What all pictures of a report share: sizes, colours that stay with their arm, and files without a date."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

from runs.studies.plan import Arm

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; black is for dense.
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C6D31",
    "#7F7F7F",
    "#6A3D9A",
    "#B2182B",
)
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")


class Palette:
    """A colour, a line and a point for each arm of a study, the same in every picture."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        dense = next((arm.name for arm in arms if arm.method == "dense"), None)
        others = [arm.name for arm in arms if arm.name != dense]
        self._number = {name: number for number, name in enumerate(others)}

    def colour(self, arm: Arm) -> str:
        """Its colour."""
        number = self._number.get(arm.name)
        return "#222222" if number is None else _COLOURS[number % len(_COLOURS)]

    def line(self, arm: Arm) -> str:
        """Its line style, which tells apart what has the same colour."""
        return _LINES[self._round(arm) % len(_LINES)]

    def marker(self, arm: Arm) -> str:
        """Its point, which tells apart what has the same colour."""
        return _MARKERS[self._round(arm) % len(_MARKERS)]

    def _round(self, arm: Arm) -> int:
        return self._number.get(arm.name, 0) // len(_COLOURS)


def figure(width: float, height: float) -> Figure:
    """A figure of its own, without a window and without `pyplot`, which would choose for the whole program."""
    made = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(made)
    return made


def png(made: Figure) -> bytes:
    """A figure as a PNG, the same whenever it is made, in 256 colours: a third of the bytes for the same look."""
    canvas: Any = FigureCanvasAgg(made)
    canvas.draw()
    file = io.BytesIO()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(256).save(file, "PNG", optimize=True)
    return file.getvalue()


def plain(axes: Axes, *, xlabel: str = "", ylabel: str = "", title: str = "") -> None:
    """No more lines than needed, and thousands as people write them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=10)


def name_lines(axes: Axes, inches: float) -> None:
    """The names of its lines to the right of an axes, in as many columns as fit into its height."""
    handles, labels = axes.get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    axes.legend(handles, labels, ncols=_columns(labels, inches), frameon=False, fontsize=8, **place)


def name_arms(made: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """The names of arms to the right of all panels, in as many columns as fit into the figure's height."""
    place: dict[str, Any] = {"loc": "outside right center", "ncols": _columns(labels, made.get_figheight())}
    made.legend(handles, labels, frameon=False, fontsize=8, **place)


def _columns(labels: Sequence[str], inches: float) -> int:
    fitting = max(1, int((inches - 0.3) / 0.175))  # a line of eight points with its spacing
    return max(1, math.ceil(len(labels) / fitting))


def short_numbers(axis: Any) -> None:
    """200k instead of 200000."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def few_ticks(axis: Any) -> None:
    """A logarithmic axis with a number at 1, 2 and 5."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    short_numbers(axis)


def short(value: float) -> str:
    """A number in few letters: 1.5M, 200k."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:  # what three digits make of it is a whole one
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
