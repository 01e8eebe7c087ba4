"""Tables: the layout of the paper's Table 1, the numbers of one run, and the list of all runs."""

import dataclasses
from collections.abc import Mapping, Sequence

from robustssm.reporting import cells, names, published, verdicts
from robustssm.reporting.base import MISSING, Cell, Row, RowGroup, Table
from robustssm.reporting.cells import CLEAN, WORST, Group
from robustssm.reporting.notes import Marks, below
from robustssm.reporting.runs import Run

_PUBLISHED = ("Published", "Minus published")
_FIRST_ATTACK = "pgd-10"  # as in the paper; the others follow in the order of the evaluation


def headline(groups: Sequence[Group], *, marks: Marks, level: float) -> Table:
    """Data sets and structures down; training methods, metrics and Best, Last, Diff across.

    Args:
        groups: All cells, in order.
        marks: Notes on the checkpoints.
        level: Confidence of the intervals, in (0, 1).
    """
    methods = list(dict.fromkeys(group.method for group in by_method(groups)))
    keys = metrics([run for group in groups for run in group.runs])
    sections = list(dict.fromkeys(group.section for group in groups))
    tiers = dict.fromkeys((group.section, group.tier) for group in groups)
    parts = [(method, key, _printed(groups, method, key)) for method in methods for key in keys]
    columns: list[tuple[str, ...]] = []
    for method in methods:
        for _, key, printed in (part for part in parts if part[0] == method):
            heads = ("Best", "Last", "Diff", *(_PUBLISHED if printed else ()))
            columns += [(method, metric_name(key), head) for head in heads]
        columns.append((method, "Evaluation", "Verdict"))
    return Table(
        caption=_headline_caption(groups, level),
        corner="Structure",
        columns=tuple(columns),
        groups=tuple(
            _section(
                [g for g in groups if (g.section, g.tier) == (section, tier)],
                parts,
                marks,
                level,
                target=f"origins-{sections.index(section) + 1}",
                tier=tier if sum(other == section for other, _ in tiers) > 1 else "",
            )
            for section, tier in tiers
        ),
        notes=below([run for group in groups for run in group.runs], keys),
    )


def of_run(run: Run, *, marks: Marks, level: float) -> Table:
    """Every number of one run, with counts and intervals.

    Args:
        run: A finished run.
        marks: Notes on the checkpoints.
        level: Confidence of the intervals, in (0, 1).
    """
    rows = []
    for key in metrics([run]):
        best, last, gap = _triple([run], key, marks, level, tested=True)
        entries = (_counted(run, "best", key, best), _counted(run, "last", key, last), gap)
        rows.append(Row(head=metric_name(key), cells=entries))
    return Table(
        caption=(
            f"Accuracy in percent, {level:.0%} intervals over examples, and counts. Diff: Best "
            "minus Last, in points, with McNemar's exact p."
        ),
        corner="Under",
        columns=(("Best",), ("Last",), ("Diff",)),
        groups=(RowGroup(rows=tuple(rows)),),
        notes=below([run], metrics([run])),
    )


def index(runs: Sequence[Run], targets: Mapping[str, str], *, marks: Marks, level: float) -> Table:
    """All finished runs, one line each.

    Args:
        runs: Finished runs.
        targets: Name of a run to the name of the fold with its details.
        marks: Notes on the checkpoints.
        level: Confidence of the intervals, in (0, 1).
    """
    rows = []
    for run in runs:
        clean, worst = (_triple([run], key, marks, level)[0] for key in (CLEAN, WORST))
        best = run.checkpoints.get("best")
        words = (run.dataset, run.structure, run.method)
        chosen = "-" if best is None or best.epoch is None else str(best.epoch)
        counts = (str(run.seed), chosen, str(run.epochs[-1].epoch) if run.epochs else "-")
        took = "-" if run.provenance.seconds is None else f"{run.provenance.seconds:.0f}"
        facts = tuple(Cell(value=text) for text in (*counts, took))
        entries = (_verdict(run), *(Cell(value=text) for text in words), *facts, clean, worst)
        rows.append(Row(head=run.name, cells=entries, target=targets[run.name]))
    heads = ("Verdict", "Data", "Structure", "Method", "Seed", "Best epoch", "Epochs", "Seconds")
    return Table(
        caption=(
            "Finished runs. Clean and robust accuracy of the best checkpoint, in percent with "
            f"{level:.0%} intervals; robust: right on the clean example and under every attack. "
            "Verdict: whether the evaluation can be believed, by the worse of its checkpoints."
        ),
        corner="Run",
        columns=tuple((head,) for head in (*heads, "Clean", "Robust")),
        words=4,
        groups=(RowGroup(rows=tuple(rows)),),
        notes=below(runs, metrics(runs)),
    )


def metrics(runs: Sequence[Run]) -> tuple[str, ...]:
    """Clean, every attack of the runs and, where there are several, their worst case."""
    labels = list(
        dict.fromkeys(
            label
            for run in runs
            for checkpoint in run.checkpoints.values()
            for label in checkpoint.result.survived
        )
    )
    labels.sort(key=lambda label: label != _FIRST_ATTACK)
    return (CLEAN, *labels, *((WORST,) if len(labels) > 1 else ()))


def metric_name(key: str) -> str:
    """Display name of what `metrics` gives."""
    return {CLEAN: "Clean", WORST: "Worst case"}.get(key, names.attack(key))


def sizes(runs: Sequence[Run]) -> str:
    """Number of evaluated examples, "450", "200 of 10000" or "360 or 2000"."""
    counts = {(c.result.n, run.test_size) for run in runs for c in run.checkpoints.values()}
    counts = sorted({(n, whole if whole and whole > n else 0) for n, whole in counts})
    texts = [f"{n} of {whole}" if whole else f"{n}" for n, whole in counts]
    return " or ".join(texts) if len(texts) < 4 else f"{texts[0]} to {texts[-1]}"


def by_method(groups: Sequence[Group]) -> list[Group]:
    """Cells in the order of the columns."""
    return sorted(groups, key=lambda group: names.rank(names.METHODS, group.method))


def _printed(groups: Sequence[Group], method: str, key: str) -> bool:
    """Whether any of the cells has a published number beside it."""
    own = (group for group in groups if group.method == method)
    return any(published.beside(group, key, "best") is not None for group in own)


def _section(
    groups: Sequence[Group],
    parts: Sequence[tuple[str, str, bool]],
    marks: Marks,
    level: float,
    *,
    target: str,
    tier: str,
) -> RowGroup:
    at = {(group.structure, group.method): group for group in groups}
    labels = set(metrics([run for group in groups for run in group.runs])) - {CLEAN, WORST}
    rows = []
    for structure in dict.fromkeys(group.structure for group in groups):
        row: list[Cell] = []
        for place, (method, key, printed) in enumerate(parts):
            group = at.get((structure, method))
            runs = group.runs if group else ()
            if key == WORST:  # over fewer attacks it would be another number
                runs = tuple(run for run in runs if _attacked_by(run, labels))
            row += _triple(runs, key, marks, level)
            if printed:
                row += _beside(group, runs, key, level)
            if place + 1 == len(parts) or parts[place + 1][0] != method:
                row.append(_judged(group))
        head = structure.replace(f" ({tier})", "").replace(f"({tier}, ", "(") if tier else structure
        rows.append(Row(head=head, cells=tuple(row), target=target))
    dataset, threat = groups[0].section
    size = sizes([run for group in groups for run in group.runs])
    recipes = f"; recipes {tier}" if tier else ""
    return RowGroup(rows=tuple(rows), title=f"{dataset}: {threat}; n = {size}{recipes}")


def _beside(group: Group | None, runs: Sequence[Run], key: str, level: float) -> tuple[Cell, Cell]:
    """The published best, and ours minus it, in points; nothing where nothing is printed."""
    value = published.beside(group, key, "best") if group else None
    own = [cells.flags(r.checkpoints["best"], key) for r in runs if "best" in r.checkpoints]
    there = [flags for flags in own if flags]
    if value is None:
        return MISSING, MISSING
    printed = Cell(value=f"{value:.2f}")
    if not there:
        return printed, MISSING
    mean, (low, high) = cells.centre(there, level=level)
    ends = f"[{cells.signed(low - value)}, {cells.signed(high - value)}]"
    return printed, Cell(value=cells.signed(mean - value), details=(ends,))


def _judged(group: Group | None) -> Cell:
    """The worst verdict on the evaluations of a cell, and on how many runs where they differ."""
    if group is None:
        return MISSING
    word = verdicts.worst([run.verdict for run in group.runs])
    number = sum(run.verdict == word for run in group.runs)
    details = () if number == len(group.runs) else (f"{number} of {len(group.runs)} seeds",)
    return Cell(value=word, details=details, tone=word)


def _attacked_by(run: Run, labels: set[str]) -> bool:
    return all(labels <= set(c.result.survived) for c in run.checkpoints.values())


def _triple(
    runs: Sequence[Run], key: str, marks: Marks, level: float, *, tested: bool = False
) -> tuple[Cell, Cell, Cell]:
    if not runs:
        return MISSING, MISSING, MISSING
    on: dict[str, dict[str, str]] = {"best": {}, "last": {}}
    if key != CLEAN:
        for run in runs:
            for checkpoint, found in on.items():
                found.update(marks.get((run.name, checkpoint), {}))
    return (
        cells.accuracy(runs, "best", key, level=level, marks=on["best"]),
        cells.accuracy(runs, "last", key, level=level, marks=on["last"]),
        cells.difference(runs, key, level=level, marks=on["best"] | on["last"], tested=tested),
    )


def _verdict(run: Run) -> Cell:
    """The worst verdict; which checkpoint it is on where the other has a better one; if partial."""
    word = run.verdict
    which = [name for name in run.checkpoints if run.verdict_on(name) == word]
    details = () if len(which) == len(run.checkpoints) else (" and ".join(which),)
    if any(verdicts.partial(c.result) for c in run.checkpoints.values()):
        details += ("partial",)
    return Cell(value=word, details=details, tone=word)


def _counted(run: Run, checkpoint: str, key: str, cell: Cell) -> Cell:
    if cell.state == "missing":
        return cell
    row = cells.flags(run.checkpoints[checkpoint], key)
    assert row is not None, "a cell with a value has flags"
    return dataclasses.replace(cell, details=(*cell.details, f"{sum(row)} of {len(row)}"))


def _headline_caption(groups: Sequence[Group], level: float) -> str:
    runs = [run for group in groups for run in group.runs]
    several = any(len(group.runs) > 1 for group in groups)
    text = [
        "Accuracy in percent. Best is one checkpoint for all its columns, chosen by the rule "
        "stated above; Last is the final epoch; Diff is Best minus Last, in points.",
        f"Brackets: {level:.0%} interval; of one run over test examples (accuracies: Wilson; Diff: "
        f"paired on the same examples), n = {sizes(runs)}"
        f"{_SEEDS if several else '.'}",
    ]
    if any(published.beside(g, key, "best") is not None for g in groups for key in metrics(runs)):
        text.append(
            "Published: best of version 1 of qi2024exploring, one run, where data, radius, size "
            "and epochs are the same; Minus published: ours minus it, our interval only."
        )
    if WORST in metrics(runs):
        text.append("Worst case: right on the clean example and under every attack.")
    text.append("Verdict: whether the evaluations can be believed, the worst over seeds.")
    text.append("\N{EN DASH}: no finished run measured this.")
    return " ".join(text)


_SEEDS = "; of several seeds over these, Student's around their mean, with standard deviation (sd)."
