"""Eigenvalues on the unit disc and gain over frequency, before and after training."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from robustssm.records import ProbeResult, Quantity
from robustssm.reporting import probes, style

PROBE = "spectrum"
SCALARS = ("spectral_radius", "memory_horizon", "effective_rank", "unstable")
CHECKPOINTS = ("initial", "best", "last")
DOTS = 300
"""Eigenvalues in one panel and state of a run, at most; of more, evenly spaced ones are drawn."""

_LOOKS: dict[str, dict[str, Any]] = {
    "initial": {"color": style.MUTED, "marker": "o", "markerfacecolor": "none", "markersize": 4.2},
    "best": {"color": style.ADVERSARIAL, "marker": "D", "markersize": 2.2},
    "last": {"color": style.CLEAN, "marker": "+", "markersize": 4},
}
_DASHES = {"initial": (0, (4, 2)), "best": "-", "last": (0, (1, 1.2))}


def has_eigenvalues(result: ProbeResult) -> bool:
    """Whether there are points for the disc."""
    return bool(_dots(result))


def disc(results: Sequence[tuple[str, ProbeResult]], across: int) -> str:
    """A unit disc for each result, with all eigenvalues of every layer, as SVG.

    Args:
        results: Title and result, in reading order.
        across: Discs beside each other.
    """
    down = -(-len(results) // across)

    def fill(figure: Figure) -> None:
        grid = figure.subplots(down, across, squeeze=False)
        states: dict[str, None] = {}
        for axes in list(grid.flat)[len(results) :]:
            axes.set_visible(False)
        for at, (title, result) in enumerate(results):
            axes = grid[at // across][at % across]
            dots = _dots(result)
            states |= dict.fromkeys(dots)
            axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor=style.MUTED, linewidth=0.8))
            for state, (real, imaginary) in dots.items():
                axes.plot(real, imaginary, linestyle="none", markeredgewidth=0.7, **_LOOKS[state])
            ends = [abs(v) for pair in dots.values() for each in pair for v in each]
            end = 1.08 * max(1.0, *ends)
            axes.set(xlim=(-end, end), ylim=(-end, end), aspect="equal")
            axes.set_xticks([-1, 0, 1])
            axes.set_yticks([-1, 0, 1])
            axes.tick_params(labelleft=at % across == 0)
            axes.set_title(style.shortened(title, 26), fontsize=8.5)
        legend = [
            [Line2D([], [], linestyle="none", label=_state(name), **_LOOKS[name])]
            for name in CHECKPOINTS
            if name in states
        ]
        style.margins(figure, rows=down, columns=across, entries=1)
        style.legend(figure, legend)

    return style.draw(fill, width=max(4.6, 2.05 * across), height=0.8 + 2.25 * down)


def has_gain(result: ProbeResult) -> bool:
    """Whether there is a gain over frequency."""
    found = _gain(result)
    return found is not None and bool(
        probes.labels(found, "frequency") and probes.finite(found.values)
    )


def gain(result: ProbeResult, title: str) -> str:
    """Gain over frequency, a line per layer and state of the run, as SVG.

    Args:
        result: With a quantity "gain" over an axis "frequency".
        title: What the drawing is of.
    """
    found = _gain(result)
    assert found is not None, "`has_gain` was asked"
    places = _numbers(probes.labels(found, "frequency"))
    layers = probes.labels(found, "layer") or ("",)
    states = [name for name in CHECKPOINTS if name in probes.labels(found, "checkpoint")]

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        drawn: list[float] = []
        for state in states or ["best"]:
            for depth, layer in enumerate(layers):
                values = probes.along(found, "frequency", layer=layer, checkpoint=state)
                pairs = list(zip(places, values, strict=True))
                kept = [(x, v) for x, v in pairs if v is not None and math.isfinite(v) and v > 0]
                drawn += [v for _, v in kept]
                if kept:
                    axes.plot(
                        *zip(*kept, strict=True),
                        color=_LOOKS[state]["color"],
                        linestyle=_DASHES[state],
                        linewidth=1.2,
                        alpha=1 - 0.6 * depth / max(1, len(layers) - 1),
                    )
        _gain_axis(axes, drawn)
        axes.set_title(style.shortened(title, 46), pad=6, fontweight="bold")
        legend = [
            [Line2D([], [], color=_LOOKS[s]["color"], linestyle=_DASHES[s], label=_state(s))]
            for s in states
        ]
        style.margins(figure, entries=1)
        style.legend(figure, legend)

    return style.draw(fill, width=4.6, height=2.7)


def _gain_axis(axes: Axes, values: Sequence[float]) -> None:
    axes.set_xlabel("frequency, as a part of half the sampling rate")
    if values and max(values) / min(values) > 8:
        axes.set_ylim(min(values) / 1.2, max(values) * 1.2)
        style.logarithmic(axes)
    elif values:
        axes.set_ylim(0, 1.08 * max(values))


def _dots(result: ProbeResult) -> dict[str, tuple[list[float], list[float]]]:
    """State of the run to real and imaginary parts; one alone is as good as no point."""
    real, imaginary = _named(result, "eigenvalue_real"), _named(result, "eigenvalue_imag")
    if real is None or imaginary is None or real.axes != imaginary.axes:
        return {}
    states = probes.labels(real, "checkpoint") or ("best",)
    made = {}
    for state in [name for name in CHECKPOINTS if name in states]:
        both = (probes.select(part, checkpoint=state) for part in (real, imaginary))
        pairs = [
            (a, b)
            for a, b in zip(*both, strict=True)
            if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)
        ]
        pairs = pairs[:: -(-len(pairs) // DOTS) or 1]
        if pairs:
            made[state] = ([a for a, _ in pairs], [b for _, b in pairs])
    return made


def _gain(result: ProbeResult) -> Quantity | None:
    """The largest gain over inputs and outputs, where there are several."""
    return _named(result, "gain_max") or _named(result, "gain")


def _named(result: ProbeResult, name: str) -> Quantity | None:
    return next((each for each in result.quantities if each.name == name), None)


def _numbers(labels: Sequence[str]) -> list[float]:
    """Labels as numbers if all are, else their places."""
    try:
        return [float(label) for label in labels]
    except ValueError:
        return [float(at) for at in range(len(labels))]


def _state(name: str) -> str:
    return {"initial": "before training", "best": "best checkpoint"}.get(name, f"{name} checkpoint")
