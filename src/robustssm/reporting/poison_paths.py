"""How |a|, effective rank and gamma move during training, ordinary beside special."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustssm.records.poisoning import Path, PoisonResult
from robustssm.reporting import poison_names as said
from robustssm.reporting import style
from robustssm.reporting.looks import columns

ARMS = ("ordinary", "special")
STATES = 7
"""So many of the largest |a| are drawn."""


def middle_seed(result: PoisonResult) -> int | None:
    """The seed whose poisoned error is nearest to the median, of those with whole paths."""
    paths = {run.seed: run for run in result.of("special") if run.path is not None}
    both = {run.seed for run in result.of("ordinary") if run.path is not None}
    kept = [run for seed, run in sorted(paths.items()) if not both or seed in both]
    if not kept:
        return None
    found = [run.error[str(result.horizon)] for run in kept]
    order = sorted(range(len(kept)), key=lambda at: found[at])
    return kept[order[(len(order) - 1) // 2]].seed


def over_time(result: PoisonResult, seed: int) -> str:
    """|a|, effective rank and gamma over training; ordinary beside special, as SVG.

    Args:
        result: With paths.
        seed: Whose path is drawn whole; of the others, the rank alone.
    """
    flow = result.study == "theory"

    def fill(figure: Figure) -> None:
        grid = figure.subplots(3, 2, sharex="col", squeeze=False)
        for column, arm in enumerate(ARMS):
            paths = {run.seed: run.path for run in result.of(arm) if run.path is not None}
            chosen = paths.pop(seed, None)
            grid[0][column].set_title(f"{said.condition(arm)} sequences", fontweight="bold")
            if chosen is not None and chosen.steps:
                _moduli(grid[0][column], chosen, flow)
                _ranks(grid[1][column], chosen, list(paths.values()), flow)
                _gammas(grid[2][column], chosen, flow)
                _time_axis(grid[2][column], chosen, flow)
        for row, label in enumerate(("|a|", "effective rank", "gamma")):
            grid[row][0].set_ylabel(label)
        for row in (0, 1):
            _same_height(list(grid[row]))
        style.legend(figure, columns(_time_handles(), 7.8))

    return style.draw(fill, width=7.8, height=6.0, fitted=True)


def _moduli(axes: Axes, path: Path, flow: bool) -> None:
    last = path.moduli[-1]
    chosen = sorted(range(len(last)), key=lambda j: -_finite(last[j]))[:STATES]
    for rank, state in enumerate(chosen):
        values = [row[state] for row in path.moduli]
        colour = style.SERIES[rank % len(style.SERIES)]
        axes.plot(_times(path, flow), values, color=colour, linewidth=1.2)


def _ranks(axes: Axes, chosen: Path, others: Sequence[Path], flow: bool) -> None:
    if not flow:  # each flow has points of its own, so that only one is on an axis without scale
        for path in others:
            axes.plot(path.steps, path.effective_rank, color=style.MUTED, linewidth=0.5)
    times = _times(chosen, flow)
    axes.plot(times, chosen.effective_rank, color=style.CLEAN)
    axes.plot(times, chosen.contribution_rank, color=style.ADVERSARIAL, linestyle=(0, (4, 2)))


def _gammas(axes: Axes, path: Path, flow: bool) -> None:
    for order in range(len(path.gamma[0]) - 1, -1, -1):
        axes.plot(
            _times(path, flow),
            [row[order] for row in path.gamma],
            color=style.MUTED if order else style.ADVERSARIAL,
            linewidth=0.6 if order else 1.8,
        )


def _times(path: Path, flow: bool) -> Sequence[float]:
    """Steps; for gradient flow the numbers of the points, as its time is still and then sudden."""
    return range(len(path.steps)) if flow else path.steps


def _time_axis(axes: Axes, path: Path, flow: bool) -> None:
    axes.set_xlabel("time of gradient flow, not to scale" if flow else "steps")
    if flow:
        last = len(path.steps) - 1
        shown = sorted({round(last * part / 4) for part in range(5)})
        axes.set_xticks(shown, [said.number(path.steps[at]) for at in shown])


def _same_height(pair: Sequence[Axes]) -> None:
    ends = [axes.get_ylim() for axes in pair]
    for axes in pair:
        axes.set_ylim(min(0.0, *(low for low, _ in ends)), max(high for _, high in ends))


def _time_handles() -> list[Line2D]:
    return [
        Line2D([], [], color=style.SERIES[0], label=f"{STATES} largest |a|"),
        Line2D([], [], color=style.CLEAN, label="rank of |a|"),
        Line2D([], [], color=style.ADVERSARIAL, linestyle=(0, (4, 2)), label="rank of parts"),
        Line2D([], [], color=style.MUTED, linewidth=0.5, label="other seeds, other gammas"),
        Line2D([], [], color=style.ADVERSARIAL, linewidth=1.8, label="gamma 0"),
    ]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
