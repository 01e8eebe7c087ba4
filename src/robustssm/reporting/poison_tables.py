"""Tables of poisoning studies: conditions, comparisons at equal training loss, sweeps."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from robustssm.records.poisoning import Contrast, PoisonResult, PoisonRun, Summary
from robustssm.reporting import poison_names as said
from robustssm.reporting.base import MISSING, Cell, Row, RowGroup, Table

FEW = 8
"""Seeds below which intervals are said to be coarse."""


def conditions(result: PoisonResult, marks: Mapping[str, tuple[str, ...]]) -> Table:
    """One row per condition: how it ended, how well it extrapolates, what it became.

    Args:
        result: With summaries.
        marks: Condition to the labels of the notes that concern it.
    """
    further = [h for h in _horizons(result) if h != result.horizon]
    known = {s.condition: said.published(result, s.condition) for s in result.summaries}
    shown = any(value is not None for value in known.values())
    heads = [("Training", text) for text in ("seeds", "converged", "train MSE", "steps")]
    heads += [("Generalisation error", f"{h} lags") for h in (result.horizon, *further)]
    heads.append(("Generalisation error", "mean"))
    if shown:
        heads.append(("Generalisation error", "published"))
    heads += [("Student", text) for text in ("rank of |a|", "rank of parts", "largest |a|")]
    rows = []
    for summary in result.summaries:
        runs = result.of(summary.condition)
        cells = [*_ends(summary), _error(summary, marks.get(summary.condition, ()))]
        cells += [_further(runs, horizon) for horizon in further]
        cells.append(Cell(value=said.number(summary.mean)))
        if shown:
            cells.append(_cell(known[summary.condition]))
        cells += [
            Cell(value=f"{summary.effective_rank:.2f}"),
            Cell(value=f"{summary.contribution_rank:.2f}"),
            Cell(
                value=said.number(summary.max_modulus, 4),
                state="suspicious" if summary.max_modulus > UNSTABLE else "value",
            ),
        ]
        rows.append(Row(head=said.condition(summary.condition), cells=tuple(cells)))
    notes = [f"Intervals: {result.interval}. The mean is of the first error column."]
    if shown:
        notes.append(
            "Published means are over four seeds that their authors chose; those of the theorem's "
            "setting can be compared seed by seed, the others as distributions."
        )
    notes.append(
        "Ranks are effective ranks, exp of an entropy: of |a| alone, and of each state's part in "
        "the output. Steps: of descent, or units of time of gradient flow."
    )
    return Table(
        caption=(
            f"{said.study(result)}: training and generalisation by condition. Generalisation error "
            f"{_measure(result)}. Medians over seeds; train MSE is a mean, largest |a| of all."
        ),
        corner="Trained on",
        columns=tuple(heads),
        groups=(RowGroup(rows=tuple(rows)),),
        notes=tuple(notes),
    )


_MIXED = "Only at equal training loss is it not mixed with how far each arm was trained."
UNSTABLE = 1.0 + 1e-6
"""Beyond this modulus a student explodes over long sequences."""


def contrasts(result: PoisonResult) -> Table | None:
    """Ratios of medians, where the arms stopped and at equal training loss."""
    places = list(dict.fromkeys(each.place for each in result.contrasts))
    pairs = list(dict.fromkeys((each.above, each.below) for each in result.contrasts))
    if not pairs:
        return None
    made = {(each.above, each.below, each.place): each for each in result.contrasts}
    rows = tuple(
        Row(
            head=f"{said.condition(above)} / {said.condition(below)}",
            cells=tuple(_ratio(made.get((above, below, place))) for place in places),
        )
        for above, below in pairs
    )
    return Table(
        caption=(
            "Ratio of the median errors of two conditions, with its interval; 1× is no effect. "
            + ("Every arm ends at the same training loss." * (result.study == "theory"))
            + (_MIXED * (result.study != "theory"))
        ),
        corner="Conditions",
        columns=tuple(
            ("where each stopped" if place == "stop" else f"train MSE {place}",) for place in places
        ),
        groups=(RowGroup(rows=rows),),
    )


def glance(results: Sequence[PoisonResult]) -> Table | None:
    """Every study in one line: its effect, its controls."""
    order = list(said.STUDIES)
    kept = [result for result in results if result.contrasts]
    kept.sort(key=lambda r: (order.index(r.study) if r.study in order else 99, r.length))
    levels = sorted(
        {c.place for r in kept for c in r.contrasts if c.place != "stop"}, key=float, reverse=True
    )
    if not kept:
        return None
    columns = [("Median error", "ordinary"), ("Median error", "special")]
    columns += [("Special / ordinary", "at the stop")]
    columns += [("Special / ordinary", f"MSE {level}") for level in levels]
    columns += [("Controls", "placebo"), ("Controls", "plain start")]
    made: dict[str, list[Row]] = {}
    for result in kept:
        stop = find(result, "special", "ordinary", "stop")
        cells = [
            _cell(stop.below_median if stop else None),
            _cell(stop.above_median if stop else None),
            _ratio(stop),
            *(_ratio(find(result, "special", "ordinary", level)) for level in levels),
            _ratio(find(result, "placebo", "ordinary", "stop")),
            _ratio(control(result)),
        ]
        kind, _, rest = said.study(result).partition(", length")
        made.setdefault(kind, []).append(Row(head=f"length{rest}", cells=tuple(cells)))
    return Table(
        caption=(
            "Generalisation error with special sequences over that without: where the arms "
            "stopped, at equal training loss (all arms of the theorem's setting end at one), and "
            "beside two controls. Placebo: as many more "
            "ordinary sequences, over none. Plain start: special over ordinary without what the "
            "published start adds to a random one, the tie of the two largest entries in the "
            "theorem's setting, and in a network one random stream for all layers."
        ),
        corner="Study",
        columns=tuple(columns),
        groups=tuple(RowGroup(title=kind, rows=tuple(rows)) for kind, rows in made.items()),
    )


def control(result: PoisonResult) -> Contrast | None:
    """The comparison without what the published initialisation adds, if there is one."""
    for ending in said.ENDINGS:
        found = find(result, f"special{ending}", f"ordinary{ending}", "stop")
        if found is not None:
            return found
    return None


def find(result: PoisonResult, above: str, below: str, place: str) -> Contrast | None:
    """One comparison, if it was made."""
    try:
        return result.contrast(above, below, place)
    except KeyError:
        return None


def seeds(result: PoisonResult) -> Table:
    """Every run."""
    horizons = _horizons(result)
    rows = tuple(_seed(run, horizons) for run in result.runs)
    return Table(
        caption=f"{said.study(result)}: every run.",
        corner="Condition, seed",
        columns=(
            ("ended",),
            ("train MSE",),
            *((f"error, {horizon} lags",) for horizon in horizons),
            ("rank of |a|",),
            ("rank of parts",),
            ("largest |a|",),
            ("steps",),
        ),
        groups=(RowGroup(rows=rows),),
        words=1,
    )


def sweep(result: PoisonResult) -> Table:
    """Every row of a sweep."""
    rows = tuple(
        Row(
            head=f"{each.label}, {said.condition(each.condition)}",
            cells=(
                Cell(value=said.number(each.median), details=(said.interval(each.low, each.high),)),
                Cell(value=said.number(each.mean)),
                Cell(value=str(len(each.errors))),
                _converged(each.convergence_rate),
                Cell(value=said.number(each.worst_train_mse)),
                Cell(value=f"{each.effective_rank:.2f}"),
                Cell(value=said.number(each.max_modulus, 4)),
            ),
        )
        for each in result.sweep
    )
    heads = ("error, median", "error, mean", "seeds", "converged", "worst train MSE")
    return Table(
        caption=f"{said.study(result)}: error over {result.horizon} lags.",
        corner="Value, condition",
        columns=tuple((head,) for head in (*heads, "rank of |a|", "largest |a|")),
        groups=(RowGroup(rows=rows),),
        notes=(f"Intervals: {result.interval}.", *result.remarks),
    )


def _horizons(result: PoisonResult) -> list[int]:
    known = {int(h) for run in result.runs for h in run.error}
    rest = sorted({40, 2 * result.length} & known - {result.horizon})
    return [result.horizon, *rest]


def _measure(result: PoisonResult) -> str:
    if result.study == "network" or result.settings.get("in_network") is True:
        return (
            "in a network is the relative ℓ2 error over sequences of that length with N(0, 1) "
            "entries everywhere"
        )
    return (
        "is the largest error of the impulse response over so many lags, as a part of the "
        "teacher's largest response; predicting 0 scores 1"
    )


def _ends(summary: Summary) -> Iterator[Cell]:
    yield Cell(value=str(summary.seeds))
    yield _converged(summary.convergence_rate)
    yield Cell(value=said.number(summary.train_mse))
    yield Cell(value=said.number(summary.steps))


def _converged(rate: float) -> Cell:
    return Cell(value=f"{rate:.0%}", state="value" if rate == 1 else "suspicious")


def _error(summary: Summary, marks: tuple[str, ...]) -> Cell:
    details = [said.interval(summary.low, summary.high)]
    if summary.convergence_rate < 1 and summary.converged_median is not None:
        details.append(f"converged runs {said.number(summary.converged_median)}")
    return Cell(value=said.number(summary.median), details=tuple(details), marks=marks)


def _further(runs: Sequence[PoisonRun], horizon: int) -> Cell:
    found = [run.error[str(horizon)] for run in runs if str(horizon) in run.error]
    return _cell(median(found) if found else None)


def _cell(value: float | None) -> Cell:
    return MISSING if value is None else Cell(value=said.number(value))


def _ratio(made: Contrast | None) -> Cell:
    if made is None:
        return MISSING
    reached = f"{made.above_seeds} and {made.below_seeds} runs"
    if made.ratio is None:
        return Cell(value="\N{EN DASH}", details=(f"{reached} got there",), state="missing")
    return Cell(value=said.ratio(made.ratio), details=(said.interval(made.low, made.high), reached))


def _seed(run: PoisonRun, horizons: Sequence[int]) -> Row:
    ended = "diverged" if run.diverged else ("converged" if run.converged else "not converged")
    errors = (_cell(run.error.get(str(horizon))) for horizon in horizons)
    return Row(
        head=f"{said.condition(run.condition)}, {run.seed}",
        cells=(
            Cell(value=ended, state="value" if run.converged else "suspicious"),
            Cell(value=said.number(run.train_mse)),
            *errors,
            Cell(value=f"{run.effective_rank:.2f}"),
            Cell(value=f"{run.contribution_rank:.2f}"),
            Cell(value=said.number(run.max_modulus, 4)),
            Cell(value=said.number(run.steps)),
        ),
    )
