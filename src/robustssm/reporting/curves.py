"""Figures of how robust accuracy falls with eps, steps and restarts, with 95 % Wilson bands."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustssm.records import Curve, EvaluationResult, Flags, wilson
from robustssm.reporting import names, style
from robustssm.reporting.cells import Group
from robustssm.reporting.runs import Run
from robustssm.reporting.verdicts import worst

AXES = {"eps": "ε, in the unit of the input", "steps": "steps", "restarts": "restarts"}
MARKERS = "os^DvP"
_LOOKS: dict[str, dict[str, Any]] = {
    "best": {"color": style.ADVERSARIAL, "marker": "o", "markersize": 4, "linestyle": "-"},
    "last": {"color": style.MUTED, "marker": "s", "markersize": 4, "linestyle": (0, (4, 2))},
}
_CROWD = 12  # of values, beyond which not every one is named on an axis of categories

Family = tuple[str, tuple[float, ...]]
"""An attack and the values of eps: what curves must share to be compared."""


def of_run(run: Run, *, level: float) -> tuple[str, ...]:
    """A drawing per setting that was varied, with a line per checkpoint, as SVG.

    Args:
        run: A finished run.
        level: Confidence of the bands, in (0, 1).
    """
    keys = dict.fromkeys(
        (curve.axis, curve.attack)
        for checkpoint in run.checkpoints.values()
        for curve in checkpoint.result.curves
    )
    return tuple(_single(run, axis, attack, level) for axis, attack in keys)


def families(groups: Sequence[Group]) -> dict[Family, list[Group]]:
    """Curves over the same eps under the same attack, with the cells that have them.

    Only those of at least two structures: one alone has nothing to be compared with.
    """
    found: dict[Family, list[Group]] = {}
    for group in groups:
        for family in dict.fromkeys(f for run in group.runs for f in _families(run)):
            found.setdefault(family, []).append(group)
    return {f: members for f, members in found.items() if len({g.structure for g in members}) > 1}


def comparison(
    groups: Sequence[Group],
    family: Family,
    method: str,
    structures: Sequence[str],
    *,
    level: float,
) -> str:
    """Structures under one method: a line each, the mean where there are several seeds, as SVG.

    Args:
        groups: Cells that have such curves.
        family: Attack and values of eps.
        method: Display name of the training method that is drawn.
        structures: Every structure of the figure, so that each looks the same in all its panels.
        level: Confidence of the bands, in (0, 1).
    """
    members = {group.structure: group for group in groups if group.method == method}

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        handles = []
        for at, structure in enumerate(structures):
            if structure not in members:
                continue
            rows = [c.survived for run in members[structure].runs for c in _curves(run, family)]
            look = _series(at)
            _line(axes, family[1], rows, look, level, band=0.10)
            label = style.shortened(structure, 30) + _doubt(members[structure])
            handles.append(Line2D([], [], label=label, **look))
        _number_axis(axes, AXES["eps"])
        axes.set_title(style.shortened(method, 40), pad=6, fontweight="bold")
        columns = [handles[at::3] for at in range(3)]
        style.margins(figure, entries=len(columns[0]))
        style.legend(figure, columns)

    return style.draw(fill, width=4.6, height=3.0 + 0.06 * len(members))


def _families(run: Run) -> Iterator[Family]:
    if "best" in run.checkpoints:
        for curve in run.checkpoints["best"].result.curves:
            if curve.axis == "eps":
                yield curve.attack, curve.values


def _curves(run: Run, family: Family) -> list[Curve]:
    curves = run.checkpoints["best"].result.curves if "best" in run.checkpoints else ()
    return [c for c in curves if c.axis == "eps" and (c.attack, c.values) == family][:1]


def _doubt(group: Group) -> str:
    """The verdict, where it is not that the numbers can be believed."""
    word = worst([r.verdict_on("best") for r in group.runs if "best" in r.checkpoints])
    return "" if word == "reliable" else f" ({word})"


def _single(run: Run, axis: str, attack: str, level: float) -> str:
    curves = {
        name: curve
        for name, checkpoint in run.checkpoints.items()
        for curve in checkpoint.result.curves
        if (curve.axis, curve.attack) == (axis, attack)
    }
    if curves.get("last") == curves.get("best"):  # one and the same checkpoint
        curves.pop("last")
    values = sorted({value for curve in curves.values() for value in curve.values})

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        handles = []
        for name, curve in curves.items():
            look = _LOOKS.get(name, _LOOKS["last"])
            places = curve.values if axis == "eps" else [values.index(v) for v in curve.values]
            _line(axes, places, [curve.survived], look, level, band=0.18)
            handles.append(Line2D([], [], label=f"{name} checkpoint", **look))
        references = []
        if "best" in run.checkpoints:
            references = _references(axes, run.checkpoints["best"].result, curves, axis)
        if axis == "eps":
            _number_axis(axes, AXES["eps"])
        else:
            _ordered_axis(axes, values, AXES.get(axis, axis))
        title = f"{names.attack(attack)} by {AXES.get(axis, axis).partition(',')[0]}"
        axes.set_title(style.shortened(title, 46), pad=6)
        style.margins(figure, entries=max(len(handles), len(references)))
        style.legend(figure, [handles, references])

    return style.draw(fill, width=4.6, height=3.1)


def _references(
    axes: Axes, result: EvaluationResult, curves: Mapping[str, Curve], axis: str
) -> list[Line2D]:
    """Lines to hold the curve against: clean accuracy of "best", and eps of the evaluation."""
    drawn = []
    curve = curves.get("best")
    if curve is not None and len(curve.survived[0]) == result.n:
        clean = {"color": style.CLEAN, "linestyle": (0, (1, 1.2)), "linewidth": 1.4}
        axes.axhline(100 * result.clean_accuracy, **clean)
        drawn.append(Line2D([], [], label="clean accuracy, best", **clean))
    eps = result.threat.get("eps")
    if axis == "eps" and isinstance(eps, int | float):
        line = {"color": style.MUTED, "linewidth": 0.8}
        axes.axvline(eps, zorder=0.9, **line)
        drawn.append(Line2D([], [], label=f"ε of the tables, {names.radius(eps)}", **line))
    return drawn


def _line(
    axes: Axes,
    places: Sequence[float],
    rows: Sequence[Sequence[Flags]],
    look: Mapping[str, Any],
    level: float,
    *,
    band: float,
) -> None:
    """A curve with its band: Wilson's interval for one run, the range over several."""
    values = [[100 * sum(flags) / len(flags) for flags in row] for row in rows]
    if len(rows) == 1:
        ends = [wilson(sum(flags), len(flags), level=level) for flags in rows[0]]
        low, high = [100 * a for a, _ in ends], [100 * b for _, b in ends]
    else:
        low, high = ([pick(at) for at in zip(*values, strict=True)] for pick in (min, max))
    middle = [sum(at) / len(at) for at in zip(*values, strict=True)]
    axes.fill_between(places, low, high, color=look["color"], alpha=band, linewidth=0)
    axes.plot(places, middle, **look)


def _series(at: int) -> dict[str, Any]:
    """Colour and marker tell the first few apart; a further round has other dashes."""
    dashes = ("-", (0, (4, 2)), (0, (1, 1.2)))
    return {
        "color": style.SERIES[at % len(style.SERIES)],
        "marker": MARKERS[at % len(MARKERS)],
        "linestyle": dashes[at // len(style.SERIES) % len(dashes)],
        "markersize": 4,
    }


def _number_axis(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.set_ylim(-3, 103)
    style.percent_axis(axes.yaxis)


def _ordered_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """Values at equal distances, as what matters is that each is more than the one before."""
    _number_axis(axes, label)
    every = -(-len(values) // _CROWD)
    shown = [at for at in range(len(values)) if at % every == 0 or at == len(values) - 1]
    axes.set_xticks(shown, [f"{values[at]:g}" for at in shown])
    axes.set_xlim(-0.4, len(values) - 0.6)
