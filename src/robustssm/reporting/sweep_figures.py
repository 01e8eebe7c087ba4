"""The error over what a sweep varies, a line per condition."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustssm.records.poisoning import PoisonResult, SweepRow
from robustssm.reporting import poison_names as said
from robustssm.reporting import style
from robustssm.reporting.looks import columns

_LONG = 34  # characters of all labels together, beyond which they are turned


def sweep(result: PoisonResult) -> str:
    """Median with its interval and one dot per seed, as SVG.

    Args:
        result: With rows of a sweep. Values stand at equal distances, in the order of the record.
    """
    labels = list(dict.fromkeys(row.label for row in result.sweep))
    names = list(dict.fromkeys(row.condition for row in result.sweep))
    values = [v for row in result.sweep for v in (*row.errors, row.median)]

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        said.logarithmic(axes, values)
        for at, name in enumerate(names):
            shift = 0.14 * (at - (len(names) - 1) / 2)
            rows = [row for row in result.sweep if row.condition == name]
            _line(axes, rows, labels, name, shift)
        turned = sum(map(len, labels)) > _LONG
        axes.set_xticks(
            range(len(labels)),
            [style.shortened(label, 16) for label in labels],
            rotation=35 if turned else 0,
            ha="right" if turned else "center",
            rotation_mode="anchor",
        )
        axes.set_xlim(-0.5, len(labels) - 0.5)
        what = result.study.removeprefix("sweep_")
        axes.set_xlabel(said.SWEEPS.get(what, what))
        axes.set_title(f"Error over {result.horizon} lags", pad=6, fontweight="bold")
        style.legend(figure, columns(said.handles(names), 4.6))

    return style.draw(fill, width=4.6, height=3.4 + 0.1 * len(names), fitted=True)


def _line(
    axes: Axes, rows: Sequence[SweepRow], labels: Sequence[str], name: str, shift: float
) -> None:
    look = said.look(name)
    points = []
    for row in rows:
        x = labels.index(row.label) + shift
        kept = [v for v in row.errors if math.isfinite(v) and v > 0]
        axes.plot(
            [x] * len(kept),
            kept,
            linestyle="none",
            marker="o",
            markersize=2,
            alpha=0.5,
            color=look["color"],
            markeredgewidth=0,
        )
        if math.isfinite(row.median) and row.median > 0:
            points.append((x, row.median))
            if math.isfinite(row.high) and row.low > 0:
                axes.plot([x, x], [row.low, row.high], color=look["color"], linewidth=1.4)
    axes.plot(
        [x for x, _ in points], [y for _, y in points], **{**look, "linewidth": 1.0}, markersize=4.5
    )
