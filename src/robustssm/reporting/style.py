"""One look for every drawing: colours, sizes, and SVG that is the same for the same numbers.

Colours are those of Okabe and Ito, told apart with every common kind of colour blindness; what a
colour says, a dash or a marker says too. Texts stay text, so that a page can restyle and search it.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

CLEAN, ADVERSARIAL = "#0072b2", "#d55e00"
INK, MUTED, GRID, PAPER = "#1b1b1f", "#66666e", "#dcdce1", "#ffffff"
SERIES = ("#00806b", "#8a3fa0", "#8f6a00", "#c2376b", "#4059b5", "#5a5a5a")
"""Colours for things of one kind, none of which says clean or adversarial; markers go with them."""
VARIABLES = {
    CLEAN: "--clean",
    ADVERSARIAL: "--adversarial",
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--paper",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)},
}
"""Colour to the CSS variable that a page replaces it by, for a dark ground."""

_SETTINGS: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # names come from files; a dollar sign is a dollar sign
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.4,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "robustssm",
}


def draw(
    fill: Callable[[Figure], None], *, width: float, height: float, fitted: bool = False
) -> str:
    """A drawing as SVG text.

    Args:
        fill: Draws on an empty figure.
        width: In inches.
        height: In inches.
        fitted: Whether axes are placed by the size of their labels; if not, `fill` places them.
    """
    target = io.StringIO()
    # matplotlib measures text with its own font; the browser has one for every script.
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(width, height), layout="constrained" if fitted else None)
        FigureCanvasSVG(figure)
        fill(figure)
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", target.getvalue(), flags=re.DOTALL)
    return text[text.index("<svg") :]


def margins(figure: Figure, *, rows: int = 1, columns: int = 1, entries: int) -> None:
    """Places axes by fixed margins, in inches; measuring every text would take twice as long.

    Args:
        figure: With a grid of axes.
        rows: Of the grid.
        columns: Of the grid.
        entries: Lines of the legend above them.
    """
    width, height = figure.get_size_inches()
    left, right, bottom, beside, between = 0.52, 0.08, 0.45, 0.16, 0.5
    top = 0.34 + 0.19 * entries
    each_wide = (width - left - right - (columns - 1) * beside) / columns
    each_high = (height - top - bottom - (rows - 1) * between) / rows
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=beside / each_wide,
        hspace=between / each_high,
    )


def legend(figure: Figure, columns: Sequence[Sequence[Any]]) -> None:
    """One legend for all axes, above them.

    Args:
        figure: With the axes.
        columns: Entries of each column; the longest decides the height.
    """
    columns = [column for column in columns if column]
    rows = max(map(len, columns), default=0)
    blank = Line2D([], [], linestyle="none", label=" ")
    figure.legend(
        handles=[handle for c in columns for handle in (*c, *[blank] * (rows - len(c)))],
        loc="outside upper left" if figure.get_layout_engine() else "upper left",
        ncols=max(1, len(columns)),
        borderaxespad=0.1,
        columnspacing=1.2,
    )


def percent_axis(axis: Any) -> None:
    """Ticks from 0 to 100."""
    axis.set_ticks([0, 25, 50, 75, 100])
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))


def logarithmic(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    parts = (1.0,) if high / low > 300 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=parts))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
