"""Poisons brewed for classifiers: every arm, the paired differences, how well they match."""

from collections.abc import Callable, Iterator, Sequence
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from robustssm.records.brewing import ArmRecord, BrewingResult, PairedDifference
from robustssm.reporting import poison_names as said
from robustssm.reporting import style
from robustssm.reporting.base import MISSING, Block, Cell, Figure, Paragraph, Row, RowGroup, Table
from robustssm.reporting.looks import columns

ARMS = {
    "clean": "clean",
    "poisoned": "poisoned",
    "noise": "random signs",
    "random": "random signs",
    "duplicated": "duplicated only",
    "duplicate": "duplicated only",
    "unregularised": "poisoned without regulariser",
}
MEASURES = {
    "accuracy": "accuracy off target",
    "target_accuracy": "accuracy on targets",
    "train_loss": "training loss",
}
_ACCURACIES = ("accuracy", "target_accuracy")
_COLOURS = {"clean": style.CLEAN, "poisoned": style.ADVERSARIAL}
_MINUS = "\N{MINUS SIGN}"


def blocks(results: Sequence[tuple[str, BrewingResult]]) -> Iterator[Block]:
    """Everything on brewed poisons.

    Args:
        results: Names of files, and what they hold.
    """
    for place, (name, result) in enumerate(results, 1):
        yield Paragraph(text=_verdict(result))
        yield _arms(name, result)
        yield _differences(result)
        if result.brewed:
            yield _matching(result)
        if result.remarks:
            yield Paragraph(text=" ".join(result.remarks))
        measures = [m for m in MEASURES if any(d.measure == m for d in result.differences)]
        yield Figure(
            name=f"brewing-{place}",
            title=f"Brewed poisons: accuracy by arm and paired differences, {name}",
            caption=(
                f"{name}: accuracy on test examples that are no targets, by arm; a line joins the "
                "arms of one seed. Then the poisoned arm minus each control, a dot per seed, mean "
                "with Student's 95 % interval over seeds."
            ),
            panels=(_accuracies(result), *(_paired(result, measure) for measure in measures)),
        )


def arm(name: str) -> str:
    """An arm in words."""
    return ARMS.get(name, name.replace("_", " "))


def _verdict(result: BrewingResult) -> str:
    """Whether the poison does more harm than each of its controls, in sentences."""
    drops = [d for d in result.differences if (d.arm, d.measure) == ("poisoned", "accuracy")]
    if not drops:
        return "The poisoned arm is compared with no control."
    worse = [arm(d.control) for d in drops if d.high is not None and d.high < 0]
    unsure = [arm(d.control) for d in drops if d.high is None or d.high >= 0]
    parts = []
    if worse:
        parts.append(f"worse than {', '.join(worse)}, the whole interval below zero")
    if unsure:
        parts.append(f"not told apart from, or better than, {', '.join(unsure)}")
    seeds = f"{len(result.seeds)} seed{'' if len(result.seeds) == 1 else 's'}"
    missed = sum(not each.matched for each in result.arms)
    loss = f" Training losses are not matched in {missed} of {len(result.arms)} trainings."
    return (
        f"Off the targets, over {seeds}, the poisoned arm is {'; '.join(parts)}. A drop is that of "
        f"the poison only as far as it exceeds every control.{loss if missed else ''}"
    )


def _arms(name: str, result: BrewingResult) -> Table:
    rows = []
    for each in dict.fromkeys(record.arm for record in result.arms):
        records = result.of(each)
        matched = sum(record.matched for record in records)
        cells = (
            Cell(value=str(len(records))),
            Cell(value=f"{mean(r.examples for r in records):,.0f}"),
            _over(records, lambda r: r.train_loss, said.number),
            _over(records, lambda r: r.shared_loss, said.number),
            Cell(
                value=f"{matched} of {len(records)}",
                state="value" if matched == len(records) else "suspicious",
            ),
            _over(records, lambda r: r.accuracy, _percent),
            _over(records, lambda r: r.target_accuracy, _percent),
            _over(records, lambda r: r.high_loss_accuracy, _percent),
            _over(records, lambda r: r.test_accuracy, _percent),
            _over(records, lambda r: r.tail_energy, said.number),
        )
        rows.append(Row(head=arm(each), cells=cells))
    heads = [("Training", text) for text in ("seeds", "examples", "loss", "shared", "matched")]
    heads += [
        ("Accuracy, %", text) for text in ("off target", "targets", "hard targets", "all test")
    ]
    return Table(
        caption=(
            f"{name}: the arms, mean over seeds with least and largest. Loss is over an arm's own "
            "training examples, shared loss over those that all arms have; matched says that the "
            "loss came down to that of the clean arm."
        ),
        corner="Arm",
        columns=(*heads, ("Poison", "tail energy")),
        groups=(RowGroup(rows=tuple(rows)),),
        notes=(
            "Tail energy is the part of a perturbation at the end of the sequence; one of equal "
            f"size everywhere has {said.number(result.uniform_tail)}.",
            "Targets are test examples that the poison was brewed against; off target are the "
            "others.",
        ),
    )


def _differences(result: BrewingResult) -> Table:
    measures = [m for m in MEASURES if any(d.measure == m for d in result.differences)]
    pairs = list(dict.fromkeys((d.arm, d.control) for d in result.differences))
    made = {(d.arm, d.control, d.measure): d for d in result.differences}
    return Table(
        caption=(
            "Paired differences, seed by seed: mean with Student's 95 % interval. Accuracies in "
            "percentage points; below zero the first arm is worse."
        ),
        corner="Arms",
        columns=tuple((MEASURES[measure],) for measure in measures),
        groups=(
            RowGroup(
                rows=tuple(
                    Row(
                        head=f"{arm(first)} {_MINUS} {arm(control)}",
                        cells=tuple(_difference(made.get((first, control, m))) for m in measures),
                    )
                    for first, control in pairs
                )
            ),
        ),
    )


def _matching(result: BrewingResult) -> Table:
    rows = []
    for name, by_seed in result.brewed.items():
        groups = [group for groups in by_seed for group in groups]
        if groups:
            cells = (
                Cell(value=str(len(groups))),
                Cell(value=said.number(mean(g.poisons for g in groups))),
                Cell(value=_signed(mean(g.similarity_before for g in groups))),
                Cell(value=_signed(mean(g.similarity for g in groups))),
            )
            rows.append(Row(head=arm(name), cells=cells))
    heads = ("groups", "poisons a group", "cosine before", "cosine after")
    return Table(
        caption=(
            "How well the gradient of the poisons matches the wanted one, mean over groups and "
            "seeds: its cosine for the base examples before, and for the poisons after."
        ),
        corner="Arm",
        columns=tuple((head,) for head in heads),
        groups=(RowGroup(rows=tuple(rows)),),
    )


def _accuracies(result: BrewingResult) -> str:
    names = list(dict.fromkeys(record.arm for record in result.arms))

    def fill(figure: Canvas) -> None:
        axes = figure.add_subplot()
        for seed in result.seeds:
            pairs = [(names.index(r.arm), 100 * r.accuracy) for r in result.arms if r.seed == seed]
            x, y = [p for p, _ in sorted(pairs)], [v for _, v in sorted(pairs)]
            axes.plot(x, y, color=style.MUTED, linewidth=0.6, zorder=1)
        for at, name in enumerate(names):
            values = [100 * record.accuracy for record in result.of(name)]
            colour = _COLOURS.get(name, style.SERIES[0])
            axes.plot([at] * len(values), values, "o", markersize=4, color=colour)
            axes.plot([at - 0.22, at + 0.22], [mean(values)] * 2, color=colour, linewidth=2.4)
        axes.set_xticks(range(len(names)), [arm(n).replace(" without", "\nwithout") for n in names])
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.tick_params(axis="x", labelsize=7.5, labelrotation=20)
        axes.set_ylabel("accuracy off target, %")
        axes.set_title("Accuracy by arm", pad=6, fontweight="bold")
        dot: dict[str, Any] = {
            "linestyle": "none",
            "marker": "o",
            "markersize": 4,
            "color": style.MUTED,
        }
        bar: dict[str, Any] = {"color": style.MUTED, "linewidth": 2.4, "label": "mean"}
        style.legend(figure, [[Line2D([], [], label="one seed", **dot)], [Line2D([], [], **bar)]])

    return style.draw(fill, width=4.6, height=3.3, fitted=True)


def _paired(result: BrewingResult, measure: str) -> str:
    made = [d for d in result.differences if d.measure == measure and d.arm == "poisoned"]
    scale = 100.0 if measure in _ACCURACIES else 1.0
    colour = style.ADVERSARIAL

    def fill(figure: Canvas) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=style.INK, linewidth=0.8, zorder=1)
        for at, each in enumerate(made):
            values = [scale * value for value in each.differences]
            axes.plot(values, [at] * len(values), "o", markersize=3.6, color=colour, alpha=0.6)
            if each.low is not None and each.high is not None:
                ends = [scale * each.low, scale * each.high]
                axes.plot(ends, [at + 0.24] * 2, color=colour, linewidth=1.6)
            axes.plot([scale * each.mean], [at + 0.24], "D", markersize=4.5, color=colour)
        _rows(axes, [f"{_MINUS} {arm(each.control)}" for each in made])
        unit = ", percentage points" if scale > 1 else ""
        axes.set_xlabel(f"difference{unit}")
        axes.set_title(f"Poisoned, {MEASURES[measure]}", pad=6, fontweight="bold")
        dot: dict[str, Any] = {"linestyle": "none", "color": colour}
        handles = [
            Line2D([], [], marker="o", markersize=3.6, label="one seed", **dot),
            Line2D([], [], marker="D", markersize=4.5, color=colour, label="mean and its interval"),
        ]
        style.legend(figure, columns(handles, 4.6))

    return style.draw(fill, width=4.6, height=1.2 + 0.42 * max(1, len(made)), fitted=True)


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_ylim(len(labels) - 0.4, -0.5)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0, labelcolor=style.INK)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}".replace("-", _MINUS))
    )


def _over(
    records: Sequence[ArmRecord],
    read: Callable[[ArmRecord], float | None],
    show: Callable[[float], str],
) -> Cell:
    values = [value for record in records if (value := read(record)) is not None]
    if not values:
        return MISSING
    ends = (f"{show(min(values))} to {show(max(values))}",) if len(values) > 1 else ()
    return Cell(value=show(mean(values)), details=ends)


def _difference(made: PairedDifference | None) -> Cell:
    if made is None:
        return MISSING
    if made.measure not in _ACCURACIES:
        ends = () if made.low is None else (f"[{_signed(made.low)}, {_signed(made.high or 0.0)}]",)
        return Cell(value=_signed(made.mean), details=ends)
    details = [f"lost {made.lost}, gained {made.gained}"]
    if made.low is not None and made.high is not None:
        details.insert(0, f"[{_points(made.low)}, {_points(made.high)}]")
    return Cell(value=_points(made.mean), details=tuple(details))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", _MINUS)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", _MINUS)
