"""What theory allows beside what is there, and how an error grows along the sequence."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from robustssm.records import ProbeResult, Quantity
from robustssm.reporting import looks, probes, style

BOUNDS, GROWTH = "error_bounds", "error_growth"
_PRINTED_OF = ("exact_without_skip", "exact")
"""What the printed theorem bounds: it leaves the skip connection out."""
_BESIDE = {"exact": ("measured", "monte_carlo"), "measured": ("exact",)}
TOLERANCE = 1e-6
"""Relative slack for rounding, as in `records.violations`."""
_POINTS = 200  # of a line, at most
_SHARE = "_by_position"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One place: what is there, and what bounds it."""

    target: str
    place: str
    value: float | None
    beside: tuple[str, float | None]
    """Name and value of what should be close to it, where there is such a thing."""
    limits: tuple[tuple[str, str, float], ...]
    """Name, side and value of every bound."""

    def violated(self) -> Iterator[tuple[str, str, float]]:
        """The bounds that do not hold."""
        for name, side, limit in self.limits:
            if self.value is None or (math.isinf(limit) and math.isinf(self.value)):
                continue
            over = self.value - limit if side == "upper" else limit - self.value
            if not over <= TOLERANCE * max(abs(limit), abs(self.value)):
                yield name, side, limit


def printed(name: str) -> bool:
    """Whether a bound is one as the paper prints it, which need not hold."""
    return "printed" in name or "paper" in name


def lines(result: ProbeResult) -> list[Line]:
    """Every place of every quantity that has bounds, in order."""
    names = {each.name: each for each in result.quantities}
    bounded = [(q, *_bounded(q, names)) for q in result.quantities]
    targets = dict.fromkeys(target for _, target, _ in bounded if target in names)
    made = []
    for name in targets:
        target = names[name]
        bounds = [(q, s) for q, to, s in bounded if to == name and q.axes == target.axes]
        near = next((n for n in _BESIDE.get(name, ()) if n in names), "")
        beside = names[near].values if near and names[near].axes == target.axes else ()
        for at, place in enumerate(target.places):
            limits = tuple((q.name, s, v) for q, s in bounds if (v := q.values[at]) is not None)
            if target.values[at] is not None and limits:
                made.append(
                    Line(
                        target=name,
                        place=_named(place),
                        value=target.values[at],
                        beside=(near, beside[at] if beside else None),
                        limits=limits,
                    )
                )
    return made


def _bounded(quantity: Quantity, names: Mapping[str, Quantity]) -> tuple[str, str]:
    """What a quantity bounds and from which side. A printed bound claims it without holding it."""
    side = quantity.name.rpartition("_")[2]
    if quantity.bounds or not printed(quantity.name) or side not in ("upper", "lower"):
        return quantity.bounds, quantity.side
    return next((name for name in _PRINTED_OF if name in names), ""), side


def intervals(rows: Sequence[Line], title: str) -> str:
    """A line per place: bounds, the tightest ones joined, and the value between them, as SVG.

    Args:
        rows: At least one place.
        title: What the drawing is of.
    """
    heads = [f"{row.target.replace('_', ' ')} · {row.place}" for row in rows]
    if len({row.target for row in rows}) == 1:
        heads = [row.place for row in rows]
    low, high = _limits(rows)

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.set(xlim=(low, high), ylim=(len(rows) - 0.4, -0.6))
        for at, row in enumerate(rows):
            _line(axes, row, at, low, high)
        axes.set_yticks(range(len(rows)), [style.shortened(head, 34) for head in heads])
        axes.tick_params(axis="y", length=0, labelcolor=style.INK, pad=9)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(lambda value, _: _power(value))
        axes.set_title(style.shortened(title, 46), pad=6, fontweight="bold")
        style.legend(figure, looks.columns(_handles(rows), 4.6))

    return style.draw(fill, width=4.6, height=1.5 + 0.24 * max(3, len(rows)), fitted=True)


def growth(result: ProbeResult, title: str, *, shares: bool = False) -> str:
    """Every quantity over positions, a line per layer, as SVG.

    Args:
        result: With quantities that have an axis "position".
        title: What the drawing is of.
        shares: Whether the shares by cause are drawn, or the sizes.
    """
    found = _growing(result, shares=shares)
    layers = list(dict.fromkeys(layer for q in found for layer in probes.labels(q, "layer")))

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        drawn: list[float] = []
        for at, each in enumerate(found):
            for depth, layer in enumerate(probes.labels(each, "layer") or ("",)):
                values = probes.along(each, "position", split="test", layer=layer)
                step = -(-len(values) // _POINTS)
                kept = [
                    (x, v if v is not None and math.isfinite(v) else math.nan)
                    for x, v in enumerate(values)
                    if x % step == 0 or x == len(values) - 1
                ]
                drawn += [v for _, v in kept if not math.isnan(v)]
                look = looks.line(at, every=max(1, len(kept) // 4))
                fade = 1 - 0.65 * depth / max(1, len(layers) - 1)
                axes.plot(*zip(*kept, strict=True), **look, alpha=fade)
        _size_axis(axes, drawn)
        axes.set_xlabel("position")
        axes.set_title(style.shortened(title, 46), pad=6, fontweight="bold")
        words = [each.name.removesuffix(_SHARE).replace("_", " ") for each in found]
        entries = looks.columns(looks.handles(words, 22), 4.6)
        style.margins(figure, entries=max(map(len, entries)))
        figure.subplots_adjust(left=0.15)
        style.legend(figure, entries)

    return style.draw(fill, width=4.6, height=3.1)


def grows(result: ProbeResult, *, shares: bool = False) -> bool:
    """Whether there is something to draw over positions; shares only where causes differ."""
    found = _growing(result, shares=shares)
    if shares:
        found = [q for q in found if q.name != f"frozen{_SHARE}" and any(probes.finite(q.values))]
    return any(probes.finite(each.values) for each in found)


def _growing(result: ProbeResult, *, shares: bool) -> list[Quantity]:
    found = [q for q in result.quantities if probes.labels(q, "position") and not q.bounds]
    return [q for q in found if q.name.endswith(_SHARE) == shares]


def _named(place: Mapping[str, str]) -> str:
    words = [f"layer {v}" if name == "layer" else v for name, v in place.items()]
    return " · ".join(words) or "whole model"


def _limits(rows: Sequence[Line]) -> tuple[float, float]:
    """Ends of the axis: all positive values, with room; what is 0 stands on the left end."""
    values = [v for row in rows for v in (row.value, row.beside[1], *(x for _, _, x in row.limits))]
    positive = [value for value in probes.finite(values) if value > 0] or [1.0]
    return min(positive) / 3, max(positive) * 3


def _line(axes: Axes, row: Line, at: int, low: float, high: float) -> None:
    def inside(value: float) -> float:
        return min(max(value, low), high)

    proper = [limit for limit in row.limits if not printed(limit[0])]
    ends = [max((v for _, s, v in proper if s == "lower"), default=None)]
    ends.append(min((v for _, s, v in proper if s == "upper"), default=None))
    if None not in ends:
        span = [inside(end) for end in ends if end is not None]
        axes.plot(span, [at, at], color=style.GRID, linewidth=5, solid_capstyle="butt", zorder=1)
    broken = {name for name, _, _ in row.violated()}
    for name, side, value in row.limits:
        if not math.isnan(value):
            look = _look(side, paper=printed(name), broken=name in broken)
            axes.plot([inside(value)], [at], **look, zorder=3, clip_on=False)
    near = row.beside[1]
    if near is not None and math.isfinite(near):
        axes.plot([inside(near)], [at], **_NEAR, zorder=4)
    if row.value is not None and math.isfinite(row.value):
        axes.plot([inside(row.value)], [at], **_VALUE, zorder=5)


_VALUE: dict[str, Any] = {"marker": "o", "color": style.CLEAN, "markersize": 5, "linestyle": "none"}
_NEAR = {**_VALUE, "markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.0}


def _look(side: str, *, paper: bool, broken: bool) -> dict[str, Any]:
    """Upper bounds point left and lower ones right, towards what they bound."""
    colour = style.ADVERSARIAL if paper else style.MUTED
    return {
        "marker": "<" if side == "upper" else ">",
        "color": colour,
        "markerfacecolor": colour if broken or not paper else style.PAPER,
        "markersize": 7 if paper else 4.5,
        "markeredgewidth": 1.0,
        "linestyle": "none",
    }


def _handles(rows: Sequence[Line]) -> list[Line2D]:
    made = [Line2D([], [], label="value", **_VALUE)]
    near = dict.fromkeys(name for row in rows for name, value in [row.beside] if value is not None)
    if near:
        made.append(Line2D([], [], label=" or ".join(near).replace("_", " "), **_NEAR))
    kinds: dict[tuple[str, bool, bool], None] = {}
    for row in rows:
        broken = {name for name, _, _ in row.violated()}
        for name, side, _ in row.limits:
            kinds[side, printed(name), name in broken] = None
    for side, paper, broken in sorted(kinds, key=lambda k: (k[1], k[2], k[0])):
        label = f"{side} {'as printed' if paper else 'bound'}{', violated' if broken else ''}"
        made.append(Line2D([], [], label=label, **_look(side, paper=paper, broken=broken)))
    return made


def _size_axis(axes: Axes, values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) / min(values) > 30:
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 1.3, max(values) * 1.3)
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(lambda value, _: _power(value))
    elif values and min(values) >= 0:
        axes.set_ylim(0, 1.08 * max(values) or 1.0)


def _power(value: float) -> str:
    """A power of ten, in full where that is short."""
    return f"{value:g}" if 1e-3 <= value < 1e5 else probes.power(round(math.log10(value)))
