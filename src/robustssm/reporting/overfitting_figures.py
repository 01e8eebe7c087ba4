"""The paper's Figures 1, 2 and 5: every structure in one panel, split by split."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from robustssm.reporting import looks, style
from robustssm.reporting.cells import Group
from robustssm.reporting.runs import Run

COLUMNS = {
    "train_": "train",
    "test_": "test",
    "train_adversarial_": "adversarial train",
    "test_adversarial_": "adversarial test",
}
"""Start of the name of a figure of an epoch to the heading of its column."""
_ROWS: tuple[Literal["loss", "accuracy"], ...] = ("loss", "accuracy")
_LOG_FROM = 30.0  # largest over smallest loss beyond which the small ones would be a flat line
_MARKERS = 6  # on a line, at most


def curves(sections: Sequence[Sequence[Group]], method: str, structures: Sequence[str]) -> str:
    """Loss and accuracy over epochs, data sets down and splits across, as SVG.

    Args:
        sections: For each data set and threat, its cells; those of other methods are left out.
        method: Display name of the training method.
        structures: Those that are drawn, if there are cells of them; their places are colours.
    """
    shown = [
        [
            g
            for g in members
            if g.method == method and g.structure in structures and has_test(g.runs)
        ]
        for members in sections
    ]
    shown = [members for members in shown if members]
    runs = [run for members in shown for group in members for run in group.runs]
    columns = [c for c in COLUMNS if any(_points(run, c, "accuracy") for run in runs)]
    drawn = [s for s in structures if any(g.structure == s for m in shown for g in m)]
    legend = [
        Line2D([], [], label=style.shortened(name, 30), **looks.line(structures.index(name)))
        for name in drawn
    ]
    rows = 2 * len(shown)

    def fill(figure: Figure) -> None:
        grid = figure.subplots(rows, len(columns), squeeze=False)
        for at, members in enumerate(shown):
            for below, quantity in enumerate(_ROWS):
                panels = list(grid[2 * at + below])
                for axes, column in zip(panels, columns, strict=True):
                    _panel(axes, members, column, quantity, structures)
                _scale(panels, members, columns, quantity)
                dataset = f"{members[0].section[0]}: " if len(shown) > 1 else ""
                for axes, column in zip(panels, columns, strict=True):
                    title = f"{dataset}{COLUMNS[column]}, {quantity}"
                    axes.set_title(style.shortened(title, 36), fontsize=8.5)
                    if 2 * at + below < rows - 1:
                        axes.set_xlabel("")
        entries = looks.columns(legend, float(figure.get_figwidth()))
        style.margins(figure, rows=rows, columns=len(columns), entries=max(map(len, entries)))
        style.legend(figure, entries)

    return style.draw(fill, width=max(6.0, 2.3 * len(columns)), height=0.9 + 1.75 * rows)


def has_test(runs: Iterable[Run]) -> bool:
    """Whether training watched adversarial test examples, without which nothing shows."""
    return any(_points(run, "test_adversarial_", "accuracy") for run in runs)


def _points(run: Run, column: str, quantity: str) -> list[tuple[int, float]]:
    scale = 100.0 if quantity == "accuracy" else 1.0
    key = f"{column}{quantity}"
    pairs = [(r.epoch, scale * r.values[key]) for r in run.epochs if key in r.values]
    return [(epoch, value) for epoch, value in pairs if math.isfinite(value)]


def _panel(
    axes: Axes, groups: Sequence[Group], column: str, quantity: str, structures: Sequence[str]
) -> None:
    lines = [
        (g.structure, p) for g in groups for r in g.runs if (p := _points(r, column, quantity))
    ]
    for structure, points in lines:
        every = max(1, -(-len(points) // _MARKERS))
        look = looks.line(structures.index(structure), every=every)
        axes.plot(*zip(*points, strict=True), **look)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    if not lines:
        looks.blank(axes, "not recorded")


def _scale(
    panels: Sequence[Axes], groups: Sequence[Group], columns: Sequence[str], quantity: str
) -> None:
    """One y axis for a whole row, named at its left end."""
    runs = [run for group in groups for run in group.runs]
    values = [value for run in runs for c in columns for _, value in _points(run, c, quantity)]
    for at, axes in enumerate(panels):
        if quantity == "accuracy":
            axes.set_ylim(-3, 103)
            style.percent_axis(axes.yaxis)
        elif values and min(values) > 0 and max(values) / min(values) > _LOG_FROM:
            axes.set_ylim(min(values) / 1.2, max(values) * 1.2)
            style.logarithmic(axes)
        elif values:
            axes.set_ylim(min(0.0, min(values)), 1.05 * max(values) + 1e-6)
        if at:
            axes.tick_params(labelleft=False)
