"""The paper's Figures 3 and 4, and a map of where along layers and positions the shift sits."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter

from robustssm.reporting import looks, probes, style
from robustssm.reporting.cells import MINUS, Group

PROBE = "feature_shift"
METRICS = {"kl_change": "KL", "mse_change": "MSE"}
COMPONENTS = {
    "ssm": "SSM",
    "ads": "AdS",
    "linear": "linear",
    "attention": "attention",
    "gate": "gate",
    "activation": "activation",
    "norm": "norm",
    "residual": "residual",
    "feed_forward": "feed-forward",
    "convolution": "convolution",
    "projection": "projection",
    "layer": "whole layer",
}
SPLITS = ("train", "test")
HATCH = "/////"
BINS, SHADES = 64, 6
_WIDTH = 9.2
_LINEAR_TO = 3.0  # largest change that a linear axis shows beside small ones

Bars = Mapping[tuple[str, str, str], tuple[float, ...]]
"""(structure, component, split) to the change of every seed, the mean over layers."""


def changes(groups: Sequence[Group], metric: str) -> Bars:
    """Relative changes across components, averaged over layers; of every seed.

    Args:
        groups: Cells of one method.
        metric: Name of a quantity with axes split, layer and component.
    """
    made: dict[tuple[str, str, str], tuple[float, ...]] = {}
    for group in groups:
        for run in group.runs:
            found = probes.quantity(run, PROBE, metric)
            for component in probes.labels(found, "component") if found else ():
                for split in SPLITS:
                    assert found is not None, "it has labels"
                    places = {"split": split, "component": component}
                    value = probes.average(probes.select(found, **places))
                    if value is not None:
                        key = (group.structure, component, split)
                        made[key] = (*made.get(key, ()), value)
    return made


def components(bars: Sequence[Bars]) -> list[str]:
    """Components that any structure has, in the order of the figures."""
    there = dict.fromkeys(component for each in bars for _, component, _ in each)
    order = list(COMPONENTS)
    return sorted(there, key=lambda c: (order.index(c) if c in order else len(order), c))


def bars(groups: Sequence[Group], family: Sequence[str]) -> str:
    """One group of bars per component and in it a pair per structure: KL above MSE, as SVG.

    Args:
        groups: Cells of one data set, threat and method.
        family: Structures that are drawn if there are cells of them; their places are colours.
    """
    structures = [name for name in family if any(g.structure == name for g in groups)]
    chosen = [group for group in groups if group.structure in structures]
    panels = {metric: changes(chosen, metric) for metric in METRICS}
    panels = {metric: made for metric, made in panels.items() if made}
    parts = components(list(panels.values()))

    def fill(figure: Figure) -> None:
        grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, (metric, made) in zip(grid, panels.items(), strict=True):
            _bars(axes, made, parts, structures, family)
            axes.set_title(f"{METRICS[metric]}: relative change across the component")
        splits = [_key(split, style.MUTED, split) for split in SPLITS]
        keys = [_key(name, looks.colour(family.index(name)), "train") for name in structures]
        legend = [*looks.columns(keys, _WIDTH, beside=1.0), splits]
        style.margins(figure, rows=len(panels), entries=max(map(len, legend)))
        figure.subplots_adjust(left=0.095)
        style.legend(figure, legend)

    return style.draw(fill, width=_WIDTH, height=0.95 + 2.15 * len(panels))


def heat(groups: Sequence[Group], methods: Sequence[str]) -> str:
    """Layers down and positions across, for every structure and method; darker: more shift; as SVG.

    Args:
        groups: Cells of one data set and threat.
        methods: Display names of the methods, one column each.
    """
    maps = {(g.structure, g.method): made for g in groups if (made := shift_map(g))}
    rows = list(dict.fromkeys(structure for structure, _ in maps))
    values = [v for made in maps.values() for row in made.values() for v in probes.finite(row)]
    edges = _edges(values)
    layers = max(len(made) for made in maps.values())

    def fill(figure: Figure) -> None:
        grid = figure.subplots(len(rows), len(methods), squeeze=False)
        for i, row in enumerate(rows):
            for j, method in enumerate(methods):
                axes, made = grid[i][j], maps.get((row, method))
                if made is None:
                    looks.blank(axes, "no probe")
                else:
                    _map(axes, made, edges)
                    axes.set_ylabel("layer" if j == 0 else "")
                    axes.tick_params(labelleft=j == 0)
                    axes.set_xlabel("position" if i == len(rows) - 1 else "")
                axes.set_title(style.shortened(f"{row} · {method}", 34), fontsize=8.5)
        shades = [
            Patch(color=style.ADVERSARIAL, alpha=_shade(at), linewidth=0) for at in range(SHADES)
        ]
        for at, patch in enumerate(shades):
            ends = (probes.digits(edge, 2) for edge in edges[at : at + 2])
            patch.set_label(" to ".join(ends))
        entries = looks.columns(shades, float(figure.get_figwidth()))
        style.margins(figure, rows=len(rows), columns=len(methods), entries=max(map(len, entries)))
        style.legend(figure, entries)

    each = 0.66 + 0.14 * layers
    return style.draw(fill, width=max(5.2, 2.9 * len(methods)), height=1.1 + each * len(rows))


def shift_map(group: Group) -> dict[str, tuple[float | None, ...]]:
    """Layer to the shift of every position on test data, mean over seeds of the same length."""
    rows: dict[str, list[tuple[float | None, ...]]] = {}
    for run in group.runs:
        found = probes.quantity(run, PROBE, "shift_map")
        for layer in probes.labels(found, "layer") if found else ():
            assert found is not None, "it has labels"
            row = probes.along(found, "position", split="test", layer=layer)
            same = rows.setdefault(layer, [])
            if row and len(row) in (len(row), *map(len, same[:1])):
                same.append(row)
    return {
        layer: tuple(probes.average(at) for at in zip(*same, strict=True))
        for layer, same in rows.items()
        if same
    }


def _key(label: str, colour: str, split: str) -> Patch:
    hatched = split == "test"
    return Patch(
        facecolor=style.PAPER if hatched else colour,
        edgecolor=colour,
        hatch=HATCH if hatched else None,
        linewidth=0.8,
        label=style.shortened(label, 26),
    )


def _bars(
    axes: Axes,
    made: Bars,
    parts: Sequence[str],
    structures: Sequence[str],
    family: Sequence[str],
) -> None:
    width = 0.86 / (2 * len(structures))
    for (structure, component, split), seeds in made.items():
        values = probes.finite(seeds)
        if not values:
            continue
        place = 2 * structures.index(structure) + SPLITS.index(split)
        x = parts.index(component) - 0.43 + (place + 0.5) * width
        colour, hatched = looks.colour(family.index(structure)), split == "test"
        axes.bar(
            x,
            mean(values),
            width=0.86 * width,
            facecolor=style.PAPER if hatched else colour,
            edgecolor=colour,
            hatch=HATCH if hatched else None,
            linewidth=0.8,
        )
        if len(values) > 1:
            axes.plot([x, x], [min(values), max(values)], color=style.INK, linewidth=1.0)
    axes.axhline(0, color=style.MUTED, linewidth=0.8)
    axes.set_xlim(-0.5, len(parts) - 0.5)
    axes.set_xticks(range(len(parts)), [COMPONENTS.get(part, part) for part in parts])
    axes.tick_params(axis="x", length=0, labelcolor=style.INK)
    axes.grid(visible=False, axis="x")
    for at in range(1, len(parts)):
        axes.axvline(at - 0.5, color=style.GRID, linewidth=0.7)
    _change_axis(axes, [value for seeds in made.values() for value in probes.finite(seeds)])


def _change_axis(axes: Axes, values: Sequence[float]) -> None:
    """Percent; logarithmic beyond 100 % where values span decades."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    if max(-low, high) <= _LINEAR_TO:
        room = 0.06 * (max(high, 0) - min(low, 0)) or 0.5
        axes.set_ylim(min(low, 0) - room, max(high, 0) + room)
        return
    axes.set_yscale("symlog", linthresh=1.0, linscale=0.8)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    decades = math.ceil(math.log10(max(-low, high)))
    powers = [10.0**at for at in range(0, decades + 1, 1 + decades // 5)]
    ticks = [0.0, *powers, *(-p for p in powers if p == 1 or p <= -low)]
    axes.set_yticks(sorted(ticks))
    axes.minorticks_off()
    below = -1.15 if low >= -1 else 1.6 * low
    axes.set_ylim(below if low < 0 else -0.15, max(1.2, 1.6 * high))


def _short(change: float) -> str:
    if abs(change) >= 1000:
        size = probes.power(round(math.log10(abs(change))) + 2)
        return f"{'+' if change > 0 else MINUS}{size}\N{NO-BREAK SPACE}%"
    return probes.percent(change)


def _edges(values: Sequence[float]) -> list[float]:
    """Limits of the shades: equal steps, of the logarithm where values span decades."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high / low > 30:
        return [low * (high / low) ** (at / SHADES) for at in range(SHADES + 1)]
    low = min(low, 0.0)
    return [low + (high - low or 1.0) * at / SHADES for at in range(SHADES + 1)]


def _shade(at: int) -> float:
    return 0.06 + 0.94 * at / (SHADES - 1)


def _map(axes: Axes, made: Mapping[str, Sequence[float | None]], edges: Sequence[float]) -> None:
    """One path per shade: neighbours of the same shade are one rectangle."""
    shapes: dict[int, list[tuple[float, float, float]]] = {}
    length = max(map(len, made.values()))
    for y, row in enumerate(made.values()):
        step = -(-len(row) // BINS)
        before: tuple[int | None, float] = (None, 0.0)
        for start in range(0, len(row) + step, step):
            value = probes.finite(row[start : start + step])
            at = _level(mean(value), edges) if value else None
            if at != before[0] or start >= len(row):
                if before[0] is not None:
                    shapes.setdefault(before[0], []).append((before[1], min(start, len(row)), y))
                before = (at, start)
    for at in sorted(shapes):
        vertices, codes = [], []
        for left, right, y in shapes[at]:
            low, high = y - 0.46, y + 0.46
            vertices += [(left, low), (right, low), (right, high), (left, high), (left, low)]
            codes += [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY]
        shape = Path(vertices, codes)
        axes.add_patch(PathPatch(shape, facecolor=style.ADVERSARIAL, alpha=_shade(at), linewidth=0))
    axes.set(xlim=(0, length), ylim=(len(made) - 0.45, -0.55))
    axes.set_yticks(range(len(made)), list(made))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)


def _level(value: float, edges: Sequence[float]) -> int:
    return min(SHADES - 1, sum(value >= edge for edge in edges[1:]))
