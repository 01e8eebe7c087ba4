"""Figures: training curves of one run and of all, and accuracies with their intervals."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from robustssm.records import wilson
from robustssm.reporting import names, style
from robustssm.reporting.cells import CLEAN, WORST, Group, flags
from robustssm.reporting.runs import Run
from robustssm.reporting.verdicts import Verdict, worst

Quantity = Literal["loss", "accuracy"]
QUANTITIES: tuple[Quantity, ...] = ("accuracy", "loss")

_DASHES = {"train": (0, (4, 2)), "validation": "-", "test": (0, (1, 1.2))}
_COLOURS = {"": style.CLEAN, "adversarial_": style.ADVERSARIAL}
_LOG_FROM = 30.0  # largest over smallest loss beyond which the small ones would be a flat line


def run_curves(run: Run, quantity: Quantity) -> str:
    """One run's losses or accuracies over epochs, as SVG.

    Args:
        run: A run with at least one epoch on record.
        quantity: What is drawn.
    """

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        _curves(axes, [run], quantity)
        _scale([axes], [run], quantity)
        axes.set_title(f"{quantity.capitalize()} by epoch", pad=6)
        entries = _handles([run], quantity)
        style.margins(figure, entries=max(map(len, entries)))
        style.legend(figure, entries)

    return style.draw(fill, width=4.6, height=3.1)


def overview(groups: Sequence[Group], quantity: Quantity) -> str:
    """Structures down, methods across: the curves of every cell, one thin line per seed, as SVG.

    Args:
        groups: The cells of one section of the table.
        quantity: What is drawn.
    """
    rows = list(dict.fromkeys(group.structure for group in groups))
    methods = {group.method for group in groups}
    columns = sorted(methods, key=lambda method: names.rank(names.METHODS, method))
    runs = [run for group in groups for run in group.runs]

    def fill(figure: Figure) -> None:
        grid = figure.subplots(len(rows), len(columns), sharey=True, squeeze=False)
        cells = {(group.structure, group.method): group.runs for group in groups}
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                members = cells.get((row, column), ())
                _curves(grid[i][j], members, quantity, thin=len(members) > 1)
                grid[i][j].set_title(style.shortened(f"{row} · {column}", 34), fontsize=8.5)
                if i < len(rows) - 1:
                    grid[i][j].set_xlabel("")
                if not any(run.epochs for run in members):
                    _empty(grid[i][j], "no curves" if members else "no run")
        _scale(list(grid.flat), runs, quantity)
        entries = _handles(runs, quantity)
        lines = max(map(len, entries))
        style.margins(figure, rows=len(rows), columns=len(columns), entries=lines)
        style.legend(figure, entries)

    return style.draw(fill, width=2.55 * max(2, len(columns)), height=0.8 + 1.6 * len(rows))


def accuracies(groups: Sequence[Group], method: str, rows: Sequence[str], *, level: float) -> str:
    """Clean accuracy and accuracy under every attack of the best checkpoints, as SVG.

    A line is the Wilson interval of one run, or the range over several seeds.

    Args:
        groups: The cells of one section of the table.
        method: Display name of the training method that is drawn.
        rows: Structures, from top to bottom.
        level: Confidence of the intervals, in (0, 1).
    """
    cells = {group.structure: group for group in groups if group.method == method}

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        for at, row in enumerate(rows):
            if row in cells:
                _interval(axes, cells[row], CLEAN, at - 0.13, level)
                _interval(axes, cells[row], WORST, at + 0.13, level)
            else:
                axes.text(2, at, "no run", va="center", color=style.MUTED, fontsize=8)
        axes.set(xlim=(-2, 102), ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [style.shortened(row, 30) for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=style.INK)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        style.percent_axis(axes.xaxis)
        axes.set_title(style.shortened(method, 40), pad=6, fontweight="bold")
        style.legend(figure, [[handle] for handle in _accuracy_handles(cells.values())])

    return style.draw(fill, width=4.6, height=1.15 + 0.38 * len(rows), fitted=True)


def has_curves(runs: Iterable[Run], quantity: Quantity) -> bool:
    """Whether any run has something to draw."""
    return any(_points(run, *which, quantity) for run in runs for which in _kinds())


def _kinds() -> list[tuple[str, str]]:
    return [(split, attacked) for attacked in _COLOURS for split in _DASHES]


def _points(run: Run, split: str, attacked: str, quantity: Quantity) -> list[tuple[int, float]]:
    key = f"{split}_{attacked}{quantity}"
    scale = 100.0 if quantity == "accuracy" else 1.0
    pairs = [(r.epoch, scale * r.values[key]) for r in run.epochs if key in r.values]
    return [(epoch, value) for epoch, value in pairs if math.isfinite(value)]


def _curves(axes: Axes, runs: Sequence[Run], quantity: Quantity, *, thin: bool = False) -> None:
    for run in runs:
        for split, attacked in _kinds():
            points = _points(run, split, attacked, quantity)
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=_COLOURS[attacked],
                    linestyle=_DASHES[split],
                    linewidth=0.9 if thin else 1.6,
                    marker="o" if len(points) == 1 else None,
                    markersize=3.5,
                )
        best = run.checkpoints.get("best")
        if best is not None and best.epoch is not None and run.epochs:
            axes.axvline(best.epoch, color=style.MUTED, linewidth=0.7, zorder=0.9)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))


def _scale(panels: Sequence[Axes], runs: Sequence[Run], quantity: Quantity) -> None:
    """The same y axis for all panels."""
    if quantity == "accuracy":
        for axes in panels:
            axes.set_ylim(-3, 103)
            style.percent_axis(axes.yaxis)
        return
    values = [v for run in runs for which in _kinds() for _, v in _points(run, *which, quantity)]
    if values and min(values) > 0 and max(values) / min(values) > _LOG_FROM:
        for axes in panels:
            axes.set_ylim(min(values) / 1.2, max(values) * 1.2)
            style.logarithmic(axes)
    elif values:
        room = 0.05 * (max(values) - min(values)) or 0.5
        for axes in panels:
            axes.set_ylim(min(min(values), 0.0), max(values) + room)


def _handles(runs: Sequence[Run], quantity: Quantity) -> list[list[Line2D]]:
    """Columns of the legend: what is drawn, and nothing else."""
    columns = []
    for attacked, colour in _COLOURS.items():
        drawn = [s for s in _DASHES if any(_points(r, s, attacked, quantity) for r in runs)]
        word = "adversarial" if attacked else "clean"
        columns.append(
            [
                Line2D([], [], color=colour, linestyle=_DASHES[split], label=f"{word}, {split}")
                for split in drawn
            ]
        )
    if any("best" in r.checkpoints and r.checkpoints["best"].epoch is not None for r in runs):
        columns.append([Line2D([], [], color=style.MUTED, linewidth=0.7, label="best checkpoint")])
    return columns


def _empty(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=style.MUTED)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_xlabel("")


def _look(key: str, verdict: Verdict = "reliable") -> dict[str, Any]:
    colour = style.CLEAN if key == CLEAN else style.ADVERSARIAL
    invalid = verdict == "unreliable"
    marker = "x" if invalid else ("o" if key == CLEAN else "D")
    size = 8.0 if invalid else (6.0 if key == CLEAN else 5.0)
    face = style.PAPER if key == CLEAN or verdict == "suspicious" else colour
    return {
        "color": colour,
        "marker": marker,
        "markersize": size,
        "markerfacecolor": face,
        "markeredgewidth": 2.0 if invalid else 1.2,
    }


def _interval(axes: Axes, group: Group, key: str, at: float, level: float) -> None:
    best = [run.checkpoints["best"] for run in group.runs if "best" in run.checkpoints]
    rows = [row for checkpoint in best if (row := flags(checkpoint, key))]
    if not rows:
        return
    values = [100 * sum(row) / len(row) for row in rows]
    if len(rows) == 1:
        low, high = (100 * end for end in wilson(sum(rows[0]), len(rows[0]), level=level))
    else:
        low, high = min(values), max(values)
    look = _look(key, _verdict(group)) if key == WORST else _look(key)
    axes.plot([low, high], [at, at], color=look["color"], linewidth=1.6, solid_capstyle="butt")
    axes.plot([sum(values) / len(values)], [at], linestyle="none", **look)


def _verdict(group: Group) -> Verdict:
    """The worst on the best checkpoints, which are what is drawn."""
    return worst([r.verdict_on("best") for r in group.runs if "best" in r.checkpoints])


def _accuracy_handles(groups: Iterable[Group]) -> list[Line2D]:
    drawn = {_verdict(g) for g in groups if any("best" in r.checkpoints for r in g.runs)}
    looks: list[tuple[str, str, Verdict]] = [("clean", CLEAN, "reliable")]
    if drawn - {"suspicious", "unreliable"}:
        looks.append(("under attack", WORST, "reliable"))
    if "suspicious" in drawn:
        looks.append(("under attack, suspicious", WORST, "suspicious"))
    if "unreliable" in drawn:
        looks.append(("not to be believed", WORST, "unreliable"))
    return [
        Line2D(
            [],
            [],
            label=label,
            linestyle="none" if verdict == "unreliable" else "-",
            **_look(key, verdict),
        )
        for label, key, verdict in looks
    ]
