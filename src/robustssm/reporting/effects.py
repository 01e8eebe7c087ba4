"""What the released code does otherwise than the paper says, cell by cell; and one bug at a time.

A tier of recipes whose name ends in "_released" is compared with the same one ending in "_paper",
or else without an ending; single bugs are cells of the paper's tier with settings changed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from robustssm.reporting import cells, variants
from robustssm.reporting.base import MISSING, Block, Cell, Paragraph, Row, RowGroup, Table
from robustssm.reporting.cells import CLEAN, Group, signed, spread
from robustssm.reporting.comparable import apart
from robustssm.reporting.evidence import Tier, autoattack, changes, tiers
from robustssm.reporting.intervals import of_mean
from robustssm.reporting.notes import Marks
from robustssm.reporting.pairs import paired
from robustssm.reporting.runs import Run
from robustssm.reporting.verdicts import same_examples

_RELEASED = "_released"
_IDLE = {"seed", "log_every", "keep_every", "evaluation_batch_size"}
METRICS = {
    "clean": "Clean",
    "released": "Released PGD-10",
    "correct": "PGD-10",
    "aa": "AutoAttack",
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same cell as the paper says, and as it was released or with one setting changed."""

    section: tuple[str, str]
    label: str
    before: Group
    after: Group


def blocks(groups: Sequence[Group], *, marks: Marks, level: float) -> Iterator[Block]:
    """The two tables, as far as there are runs for them.

    Args:
        groups: All cells, in order.
        marks: Notes on the checkpoints.
        level: Confidence of the intervals, in (0, 1).
    """
    found = tiers(groups)
    released, bugs = list(both(found)), list(single(found))
    if released or bugs:
        yield Paragraph(
            text=(
                "The released code of qi2024exploring differs from the paper's text: its PGD takes "
                "gradients up to 2 ε away, the GELUs of its blocks are missing, AdS shifts as well "
                "as scales, colour images are read in another order, and free training and YOPO "
                "are other methods. Both are trained and evaluated here on the same data."
            )
        )
    if released:
        yield _table(released, marks, level, ("as in the paper", "as released"))
    if bugs:
        yield _table(bugs, marks, level, ("as in the paper", "with this"))


def both(found: Sequence[Tier]) -> Iterator[Pair]:
    """Cells measured in both tiers.

    Args:
        found: Tiers of cells.
    """
    for tier in found:
        if not tier.tier.endswith(_RELEASED):
            continue
        stem = tier.tier.removesuffix(_RELEASED)
        others = {t.tier: t for t in found if t.section == tier.section}
        other = others.get(f"{stem}_paper") or others.get(stem)
        cells_of = _bases(other) if other else {}
        for cell, after in _bases(tier).items():
            before = cells_of.get(cell)
            if before is not None:
                label = f"{before.runs[0].structure}, {before.method}"
                yield Pair(section=tier.section, label=label, before=before, after=after)


def single(found: Sequence[Tier]) -> Iterator[Pair]:
    """Cells of a tier of the paper's text with settings changed, beside those without.

    Args:
        found: Tiers of cells.
    """
    for tier in found:
        if not tier.tier.endswith("_paper"):
            continue
        bases = _bases(tier)
        for after in (*tier.base, *tier.variants):
            before = bases[_cell(after)]
            if after is not before:
                what = f"{before.runs[0].structure}, {before.method}: {changed(before, after)}"
                yield Pair(section=tier.section, label=what, before=before, after=after)


def _bases(tier: Tier) -> dict[str, Group]:
    """What stands for each recipe; a change may be of the structure, and make a row of its own."""
    found: dict[str, list[Group]] = {}
    for group in (*tier.base, *tier.variants):
        found.setdefault(_cell(group), []).append(group)
    return {cell: min(members, key=changes) for cell, members in found.items()}


def changed(before: Group, after: Group) -> str:
    """What tells two cells of one recipe apart: the label of a grid, or the settings."""
    label = variants.label(after.runs)
    if label:
        return label
    settings = [
        {k: v for k, v in group.runs[0].experiment.items() if k not in _IDLE}
        for group in (before, after)
    ]
    said = [f"{path} = {new}" for path, _, new in apart(settings[0], settings[1])]
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def _cell(group: Group) -> str:
    """The name of the recipe without its tier."""
    return group.runs[0].recipe.rpartition(".")[2]


def _table(pairs: Sequence[Pair], marks: Marks, level: float, heads: tuple[str, str]) -> Table:
    shown = [
        key
        for key in METRICS
        if any(_label(run, key) for p in pairs for run in (*p.before.runs, *p.after.runs))
    ]
    made: dict[str, list[Row]] = {}
    for pair in pairs:
        entries = tuple(cell for key in shown for cell in _triple(pair, key, marks, level))
        made.setdefault(", ".join(pair.section), []).append(Row(head=pair.label, cells=entries))
    seeds = sorted({len(_shared(pair)) for pair in pairs})
    return Table(
        caption=(
            f"The same cells {heads[0]} and {heads[1]}: accuracy of the best checkpoints in "
            f"percent, and the difference in points over the seeds that both have "
            f"({' or '.join(map(str, seeds))}). Brackets: {level:.0%} interval over seeds; one "
            "seed: over examples. Released PGD-10 takes its gradients elsewhere and overstates "
            "robustness; believe PGD-10 and AutoAttack."
        ),
        corner="Cell" if heads[1] == "as released" else "Cell, and what is changed",
        columns=tuple((METRICS[key], head) for key in shown for head in (*heads, "difference")),
        groups=tuple(RowGroup(rows=tuple(rows), title=title) for title, rows in made.items()),
    )


def _triple(pair: Pair, key: str, marks: Marks, level: float) -> tuple[Cell, Cell, Cell]:
    before, after = (_accuracy(g, key, marks, level) for g in (pair.before, pair.after))
    return before, after, _difference(pair, key, marks, level)


def _label(run: Run, key: str) -> str | None:
    """The label of a number of the best checkpoint, or None if it was not measured."""
    if "best" not in run.checkpoints:
        return None
    if key == "aa":
        return autoattack(run, "best")
    wanted = {"clean": CLEAN, "released": "pgd_released-10", "correct": "pgd-10"}[key]
    return wanted if cells.flags(run.checkpoints["best"], wanted) else None


def _noted(runs: Sequence[Run], key: str, marks: Marks) -> Mapping[str, str]:
    noted: dict[str, str] = {}
    for run in runs if key != "clean" else ():
        noted |= marks.get((run.name, "best"), {})
    return noted


def _accuracy(group: Group, key: str, marks: Marks, level: float) -> Cell:
    runs = [run for run in group.runs if _label(run, key)]
    rows = [
        f for run in runs if (f := cells.flags(run.checkpoints["best"], _label(run, key) or ""))
    ]
    return cells.share(rows, level=level, marks=_noted(runs, key, marks)) if rows else MISSING


def _shared(pair: Pair) -> list[tuple[Run, Run]]:
    after = {run.seed: run for run in pair.after.runs}
    return [(run, after[run.seed]) for run in pair.before.runs if run.seed in after]


def _difference(pair: Pair, key: str, marks: Marks, level: float) -> Cell:
    """After minus before, by seed: other trainings, so examples are paired for one seed only."""
    runs = [(a, b) for a, b in _shared(pair) if _label(a, key) and _label(b, key)]
    flags = [
        tuple(cells.flags(run.checkpoints["best"], _label(run, key) or "") or () for run in both)
        for both in runs
    ]
    if not flags:
        return MISSING
    values = [100 * (sum(b) / len(b) - sum(a) / len(a)) for a, b in flags]
    details: tuple[str, ...] = ()
    if len(values) > 1:
        low, high = of_mean(values, level=level)
        details = (f"[{signed(low)}, {signed(high)}]", *spread(values))
    elif same_examples(*(run.checkpoints["best"].result for run in runs[0])):
        low, high = paired(flags[0][1], flags[0][0], level=level)
        details = (f"[{signed(100 * low)}, {signed(100 * high)}]", "1 seed")
    noted = _noted([run for both in runs for run in both], key, marks)
    mean = sum(values) / len(values)
    return Cell(value=signed(mean), details=details, marks=tuple(noted), state=cells.state(noted))
