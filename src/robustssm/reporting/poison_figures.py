"""Figures of one poisoning study: errors by seed, impulse responses, errors at equal loss."""

import math
from collections.abc import Sequence
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from robustssm.records.poisoning import PoisonResult, PoisonRun
from robustssm.reporting import poison_names as said
from robustssm.reporting import style
from robustssm.reporting.looks import columns

ARMS = ("ordinary", "special")
_BESIDE = 30.0  # times beyond the levels of equal loss that the axis reaches
_CUT = 4.0  # times the teacher's largest response, beyond which a student's is cut off


def errors(result: PoisonResult, horizon: int) -> str:
    """One dot per seed and the median with its interval, by condition, as SVG.

    Args:
        result: With runs.
        horizon: Of the errors; intervals are known at the headline horizon alone.
    """
    names = [summary.condition for summary in result.summaries]
    drawn = {n: [(r, r.error.get(str(horizon))) for r in result.of(n)] for n in names}
    values = [v for pairs in drawn.values() for _, v in pairs if v is not None]

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        said.logarithmic(axes, values, axis="x")
        right = axes.get_xlim()[1]
        for at, summary in enumerate(result.summaries):
            look = said.look(summary.condition)
            kept = [(run, v) for run, v in drawn[summary.condition] if v is not None and v > 0]
            for place, (run, value) in enumerate(kept):
                shift = 0.22 * (place / max(1, len(kept) - 1) - 0.5) if len(kept) > 1 else 0.0
                beyond = not math.isfinite(value)
                axes.plot(
                    [right if beyond else value],
                    [at + shift],
                    linestyle="none",
                    marker=">" if beyond else "o",
                    markersize=3.4,
                    color=look["color"],
                    markerfacecolor=look["color"] if run.converged else style.PAPER,
                    markeredgewidth=0.8,
                    clip_on=False,
                )
            _middle(axes, [v for _, v in kept], at + 0.3, look["color"])
            if horizon == result.horizon and 0 < summary.low and math.isfinite(summary.high):
                axes.plot([summary.low, summary.high], [at + 0.3] * 2, color=look["color"])
        axes.set_ylim(len(names) - 0.4, -0.5)
        axes.set_yticks(range(len(names)), [said.condition(name) for name in names])
        axes.tick_params(axis="y", length=0, labelcolor=style.INK)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("generalisation error")
        axes.set_title(f"Error over {horizon} lags", pad=6, fontweight="bold")
        stuck = any(not run.converged for run in result.runs)
        _error_legend(figure, intervals=horizon == result.horizon, stuck=stuck)

    return style.draw(fill, width=4.6, height=1.15 + 0.4 * len(names), fitted=True)


def responses(result: PoisonResult, arm: str, seed: int) -> str:
    """Impulse responses of all students of a condition beside the teacher's, as SVG.

    Args:
        result: With responses.
        arm: Condition.
        seed: Whose student is drawn thick.
    """
    first, teacher = first_lag(result), result.teacher_response
    bound = _CUT * max(map(abs, teacher[first:]), default=1.0)

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        look = said.look(arm)
        for run in result.of(arm):
            shown = [max(-1.5 * bound, min(1.5 * bound, v)) for v in run.response[first:]]
            thick = run.seed == seed
            axes.plot(
                range(first, first + len(shown)),
                [v if not math.isnan(v) else 1.5 * bound for v in shown],
                color=look["color"],
                linewidth=1.6 if thick else 0.6,
                alpha=1.0 if thick else 0.55,
                zorder=3 if thick else 2,
            )
        lags = range(first, len(teacher))
        axes.plot(lags, teacher[first:], color=style.INK, linestyle=(0, (1, 1.2)), zorder=4)
        _window(axes, _drawn(result, first), bound)
        for lag in result.excited_lags.get(arm, ()):
            axes.axvspan(lag - 0.4, lag + 0.4, color=style.MUTED, alpha=0.22, linewidth=0)
        axes.set_xlabel("lag")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_title(said.condition(arm), pad=6, fontweight="bold")
        handles = [
            Line2D([], [], color=look["color"], label="student (thin: other seeds)"),
            Line2D([], [], color=style.INK, linestyle=(0, (1, 1.2)), label="teacher"),
            Patch(color=style.MUTED, alpha=0.22, linewidth=0, label="lags in training"),
        ]
        made = columns(handles, 4.6)
        style.margins(figure, entries=max(map(len, made)))
        style.legend(figure, made)

    return style.draw(fill, width=4.6, height=3.1)


def first_lag(result: PoisonResult) -> int:
    """The first lag that is drawn: 1 where lag 0 is not learned and dwarfs the rest."""
    teacher = [abs(value) for value in result.teacher_response]
    return int(len(teacher) > 1 and teacher[0] > 2 * max(teacher[1:]))


def has_matched(result: PoisonResult) -> bool:
    """Whether errors were read at equal training losses."""
    return any(v is not None for run in result.runs for v in run.matched.values())


def matched(result: PoisonResult) -> str:
    """Error against training loss: read at equal losses, and where each run stopped, as SVG."""
    names = [n for n in dict.fromkeys(r.condition for r in result.runs) if "_" not in n]
    runs = [run for run in result.runs if run.condition in names]

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        losses, seen = [], []
        for name in names:
            look = said.look(name)
            points = _matched(result.of(name))
            for run in result.of(name):
                own = sorted((float(k), v) for k, v in run.matched.items() if v is not None)
                axes.plot(*_unzipped(own), color=look["color"], linewidth=0.5, alpha=0.4)
                seen += [v for _, v in own]
            axes.plot(*_unzipped(points), markersize=5, zorder=4, **look)
            losses += [level for level, _ in points]
        ends = (min(losses) / _BESIDE, max(losses) * _BESIDE)
        seen += [_stop(axes, run, run.error[str(result.horizon)], ends) for run in runs]
        said.logarithmic(axes, ends, axis="x")
        said.logarithmic(axes, seen)
        axes.invert_xaxis()
        axes.set_xlabel("train MSE, further trained to the right")
        axes.set_title(f"Error over {result.horizon} lags", pad=6, fontweight="bold")
        marks = Line2D(
            [], [], linestyle="none", marker="x", color=style.MUTED, label="where a run stopped"
        )
        made = columns([*said.handles(names), marks], 4.6)
        style.margins(figure, entries=max(map(len, made)))
        style.legend(figure, made)

    return style.draw(fill, width=4.6, height=3.5)


def _matched(runs: Sequence[PoisonRun]) -> list[tuple[float, float]]:
    levels = sorted({level for run in runs for level in run.matched}, key=float)
    found = {
        level: [v for run in runs if (v := run.matched.get(level)) is not None] for level in levels
    }
    return [(float(level), median(values)) for level, values in found.items() if values]


def _stop(axes: Axes, run: PoisonRun, error: float, ends: tuple[float, float]) -> float:
    """A cross where a run stopped, a tip at the edge if that is outside; gives back its error."""
    loss = run.train_mse
    if math.isfinite(error) and error > 0 and not math.isnan(loss):
        marker = ">" if loss < ends[0] else ("<" if loss > ends[1] else "x")
        axes.plot(
            [min(max(loss, ends[0]), ends[1])],
            [error],
            linestyle="none",
            marker=marker,
            markersize=4,
            color=said.look(run.condition)["color"],
            markeredgewidth=1.0,
        )
    return error


def _unzipped(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _middle(axes: Axes, values: Sequence[float], at: float, colour: str) -> None:
    if values and math.isfinite(middle := median(values)):
        axes.plot([middle], [at], marker="D", markersize=4.5, color=colour, zorder=4)


def _error_legend(figure: Figure, *, intervals: bool, stuck: bool) -> None:
    grey = {"color": style.MUTED, "linestyle": "none", "markersize": 3.4}
    text = "median and its interval" if intervals else "median"
    middle = {**grey, "linestyle": "-" if intervals else "none", "markersize": 4.5}
    seeds = [Line2D([], [], marker="o", label="one seed", **grey)]
    if stuck:
        hollow = {**grey, "markerfacecolor": style.PAPER}
        seeds.append(Line2D([], [], marker="o", label="one seed, not converged", **hollow))
    style.legend(figure, [seeds, [Line2D([], [], marker="D", label=text, **middle)]])


def _drawn(result: PoisonResult, first: int) -> list[float]:
    students = [v for run in result.runs if run.condition in ARMS for v in run.response[first:]]
    return [v for v in (*students, *result.teacher_response[first:]) if math.isfinite(v)]


def _window(axes: Axes, values: Sequence[float], bound: float) -> None:
    """The same for both arms, and no more than some times the teacher's response."""
    low, high = max(-bound, min(values, default=0.0)), min(bound, max(values, default=1.0))
    room = 0.06 * (high - low or 1.0)
    axes.set_ylim(min(0.0, low) - room, high + room)
