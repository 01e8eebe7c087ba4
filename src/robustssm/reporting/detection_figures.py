"""Figures of detectors and defences: ROC curves, errors under defences, scores of an audit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from robustssm.reporting import poison_names as said
from robustssm.reporting import style
from robustssm.reporting.looks import MARKERS, columns

ATTACKS = {
    "none": "no poison",
    "published": "published poison",
    "stealthy": "stealthy",
    "stealthy in noise": "stealthy in noise",
    "hidden": "hidden among others",
}
_LOOKS = {
    "none": (style.CLEAN, "o"),
    "published": (style.ADVERSARIAL, "D"),
    "stealthy": (style.SERIES[3], "v"),
    "stealthy in noise": (style.SERIES[4], "P"),
    "hidden": (style.SERIES[1], "^"),
}
_NAMED = 6  # flagged sequences that the figure names
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.2)))


@dataclass(frozen=True, kw_only=True)
class Roc:
    """One detector against one attacker."""

    name: str
    false_positives: tuple[float, ...]
    """Rates in [0, 1], rising."""
    recall: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Errors of one arm over seeds, with their median."""

    errors: tuple[float, ...]
    median: float
    low: float | None = None
    high: float | None = None


def roc(title: str, detectors: Sequence[Roc], every: Sequence[str]) -> str:
    """Recall over false positives, a line per detector, as SVG.

    Args:
        title: The attacker.
        detectors: Those that were scored against it.
        every: All detectors of the figure, so that each looks the same in all its panels.
    """

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=style.MUTED, linewidth=0.8)
        axes.axhline(0.95, color=style.MUTED, linewidth=0.6, linestyle=(0, (1, 1.2)))
        handles = []
        for each in detectors:
            look = _series(every.index(each.name))
            axes.plot(each.false_positives, each.recall, linewidth=1.5, **look)
            handles.append(Line2D([], [], label=style.shortened(each.name, 24), **look))
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
        axes.set_xlabel("false positives, share of the ordinary")
        axes.set_ylabel("recall")
        axes.set_title(style.shortened(title, 46), pad=6, fontweight="bold")
        handles.append(
            Line2D([], [], color=style.MUTED, linewidth=0.6, linestyle=_DASHES[2], label="95 %")
        )
        style.legend(figure, columns(handles, 4.6))

    rows = -(-(len(detectors) + 1) // 2)
    return style.draw(fill, width=4.6, height=3.2 + 0.19 * rows, fitted=True)


def effects(
    rows: Sequence[str],
    arms: Mapping[str, Mapping[str, Spread]],
    *,
    title: str,
    reference: float | None,
) -> str:
    """Errors by defence, a colour per attacker, as SVG.

    Args:
        rows: Defences, from top to bottom.
        arms: Attacker to defence to its errors.
        title: What the errors are.
        reference: Twice the median error of the clean arm, drawn as a line.
    """
    spreads = [spread for found in arms.values() for spread in found.values()]
    values = [v for s in spreads for v in (*s.errors, s.median)]
    values += [] if reference is None else [reference]

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        said.logarithmic(axes, values, axis="x")
        right = axes.get_xlim()[1]
        handles = []
        for place, (arm, found) in enumerate(arms.items()):
            look = _attacker(arm, place)
            shift = 0.62 * ((place + 0.5) / len(arms) - 0.5)
            for at, row in enumerate(rows):
                if row in found:
                    _spread(axes, found[row], at + shift, look, right)
            handles.append(
                Line2D(
                    [], [], linestyle="none", markersize=4.5, label=ATTACKS.get(arm, arm), **look
                )
            )
        if reference is not None:
            line = {"color": style.INK, "linewidth": 0.8, "linestyle": _DASHES[1]}
            axes.axvline(reference, zorder=1, **line)
            handles.append(Line2D([], [], label="twice the clean median", **line))
        for at in range(1, len(rows)):
            axes.axhline(at - 0.5, color=style.GRID, linewidth=0.6)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [style.shortened(row, 34) for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=style.INK)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("generalisation error")
        axes.set_title(title, pad=6, fontweight="bold")
        style.legend(figure, columns(handles, 7.4))

    height = 1.3 + (0.14 + 0.1 * max(1, len(arms))) * max(1, len(rows))
    return style.draw(fill, width=7.4, height=height, fitted=True)


def findings(
    places: Sequence[int], scores: Sequence[float], *, count: int, threshold: float | None
) -> str:
    """Scores of the flagged sequences by their place in the file, as SVG.

    Args:
        places: Rows of the file, from 0.
        scores: One each; infinite ones stand at the upper edge.
        count: Sequences of the file.
        threshold: From which on a sequence is flagged.
    """
    finite = [v for v in scores if math.isfinite(v) and v > 0]
    edge = 2 * max([*finite, threshold or 1.0], default=1.0)
    shown = [v if math.isfinite(v) else edge for v in scores]

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        said.logarithmic(axes, [*shown, *([threshold] if threshold else [])])
        endless: dict[str, Any] = {**_flag(), "marker": "^"}
        for look, beyond in ((_flag(), False), (endless, True)):
            kept = [at for at, v in enumerate(scores) if math.isinf(v) is beyond]
            axes.plot(
                [places[at] for at in kept], [shown[at] for at in kept], linestyle="none", **look
            )
        for at in _named(places, shown, count):
            axes.annotate(
                str(places[at]),
                (places[at], shown[at]),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=7.5,
                color=style.MUTED,
            )
        handles = [Line2D([], [], linestyle="none", label="flagged, with its row", **_flag())]
        if any(map(math.isinf, scores)):
            handles.append(Line2D([], [], linestyle="none", label="infinite", **endless))
        if threshold:
            line: dict[str, Any] = {"color": style.INK, "linewidth": 0.8, "linestyle": _DASHES[1]}
            axes.axhline(threshold, **line)
            handles.append(Line2D([], [], label="threshold", **line))
        axes.set_xlim(-0.03 * count, 1.06 * count)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel("row of the file")
        axes.set_ylabel("largest z")
        axes.set_title("Flagged sequences", pad=6, fontweight="bold")
        style.legend(figure, columns(handles, 4.6))

    return style.draw(fill, width=4.6, height=2.8, fitted=True)


def where(rows: Sequence[tuple[int, Sequence[int]]], *, length: int) -> str:
    """The lags that make sequences suspicious, a line per sequence, as SVG.

    Args:
        rows: Row of the file, and its lags, the most unusual first.
        length: Of the sequences.
    """

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        hollow = {**_flag(), "markerfacecolor": style.PAPER, "markersize": 3.2}
        for at, (_, found) in enumerate(rows):
            axes.plot(found[:1], [at] * len(found[:1]), linestyle="none", **_flag())
            axes.plot(found[1:], [at] * len(found[1:]), linestyle="none", **hollow)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [f"row {index}" for index, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=style.INK)
        axes.set_xlim(-0.5, max(1, length) - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel("lag: positions before the last one")
        axes.set_title("Suspicious lags", pad=6, fontweight="bold")
        handles = [
            Line2D([], [], linestyle="none", label="most unusual", **_flag()),
            Line2D([], [], linestyle="none", label="unusual too", **hollow),
        ]
        style.legend(figure, columns(handles, 4.6))

    return style.draw(fill, width=4.6, height=1.2 + 0.19 * max(4, len(rows)), fitted=True)


def lags(values: Sequence[float], flagged: Sequence[bool], *, title: str, label: str) -> str:
    """One value per lag, from lag 0; flagged lags in colour, as SVG.

    Args:
        values: At least 0; zero is drawn at the bottom.
        flagged: Whether the audit names the lag.
        title: What the values are.
        label: Of the y axis.
    """
    positive = [v for v in values if v > 0 and math.isfinite(v)]

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        said.logarithmic(axes, positive)
        bottom = axes.get_ylim()[0]
        for mark, look in ((False, _plain()), (True, _flag())):
            kept = [at for at in range(len(values)) if flagged[at] is mark]
            heights = [values[at] if values[at] > 0 else bottom for at in kept]
            axes.vlines(kept, bottom, heights, color=look["color"], linewidth=1.0)
            axes.plot(kept, heights, linestyle="none", clip_on=False, **look)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel("lag: positions before the last one")
        axes.set_ylabel(label)
        axes.set_title(title, pad=6, fontweight="bold")
        handles = [
            Line2D([], [], label="lag", **_plain()),
            Line2D([], [], label="flagged lag", **_flag()),
        ]
        style.legend(figure, columns(handles, 4.6))

    return style.draw(fill, width=4.6, height=2.8, fitted=True)


def _named(places: Sequence[int], scores: Sequence[float], count: int) -> list[int]:
    """The highest ones that get their name: not two so near that their names would overlap."""
    chosen: list[int] = []
    for at in sorted(range(len(places)), key=lambda at: -scores[at]):
        near = any(abs(places[at] - places[other]) < 0.08 * count for other in chosen)
        if not near and len(chosen) < _NAMED:
            chosen.append(at)
    return chosen


def _spread(axes: Axes, spread: Spread, at: float, look: Mapping[str, Any], right: float) -> None:
    for value in spread.errors:
        beyond = not math.isfinite(value)
        axes.plot(
            [right if beyond else value],
            [at],
            linestyle="none",
            marker=">" if beyond else "o",
            markersize=2.4,
            alpha=0.55,
            color=look["color"],
            markeredgewidth=0,
            clip_on=False,
        )
    if spread.low is not None and spread.high is not None and math.isfinite(spread.high):
        axes.plot([spread.low, spread.high], [at, at], color=look["color"], linewidth=1.4)
    if math.isfinite(spread.median):
        axes.plot([spread.median], [at], linestyle="none", markersize=4.5, zorder=4, **look)


def _attacker(name: str, place: int) -> dict[str, Any]:
    colour, marker = _LOOKS.get(
        name, (style.SERIES[place % len(style.SERIES)], MARKERS[place % len(MARKERS)])
    )
    return {"color": colour, "marker": marker}


def _series(at: int) -> dict[str, Any]:
    turn, place = divmod(at, len(style.SERIES))
    return {"color": style.SERIES[place], "linestyle": _DASHES[turn % len(_DASHES)]}


def _plain() -> dict[str, Any]:
    return {"color": style.MUTED, "marker": "o", "markersize": 2.6, "markeredgewidth": 0}


def _flag() -> dict[str, Any]:
    return {"color": style.ADVERSARIAL, "marker": "D", "markersize": 4.2}
