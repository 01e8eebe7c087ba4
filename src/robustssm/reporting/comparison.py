"""Structures against the best one, example by example: is the difference more than chance?"""

from collections.abc import Iterator, Sequence
from itertools import combinations

from robustssm.records import Flags
from robustssm.reporting import cells
from robustssm.reporting.base import MISSING, Cell, Row, RowGroup, Table
from robustssm.reporting.cells import WORST, Group
from robustssm.reporting.names import attack
from robustssm.reporting.notes import Marks, below
from robustssm.reporting.pairs import discordant, holm, mcnemar
from robustssm.reporting.runs import Run
from robustssm.reporting.verdicts import partial

Contender = tuple[str, Run, Flags]
"""A structure, the run that stands for it, and its flags in the worst case."""


_UNRELIABLE = "the evaluation is unreliable"
_PARTIAL = "a time limit ended the evaluation"
_ALONE = "no other structure was attacked in the same way on the same examples"


def table(groups: Sequence[Group], *, marks: Marks, level: float) -> Table | None:
    """Every structure against the best of its data set, threat and method.

    Args:
        groups: All cells, in order.
        marks: Notes on the checkpoints.
        level: Confidence of the intervals, in (0, 1).

    Returns:
        The table, or None if no two structures can be compared.
    """
    made, shown = [], []
    alone: dict[str, list[str]] = {}  # reason to whom the table leaves out
    for title, members in _fields(groups, alone):
        fit = [m for m in members if m[1].verdict_on("best") != "unreliable"]
        for structure, run, _ in members:
            if run.verdict_on("best") == "unreliable":
                alone.setdefault(_UNRELIABLE, []).append(f"{structure}, {run.method}")
            elif len(fit) == 1:
                alone.setdefault(_ALONE, []).append(f"{structure}, {run.method}")
        if len(fit) > 1:
            made.append(RowGroup(rows=_rows(fit, marks, level), title=title))
            shown += [run for _, run, _ in fit]
    if not made:
        return None
    best = [run.checkpoints["best"].result for run in shown]
    notes = below(shown, list(dict.fromkeys(k for result in best for k in result.survived)))
    notes += tuple(f"Not compared, as {why}: {'; '.join(who)}." for why, who in alone.items())
    return Table(
        caption=(
            "Each structure against the best one of its group: best checkpoints, accuracy in "
            "percent in the worst case over all attacks of the group, on the same test examples. "
            f"Difference in points with its {level:.0%} interval. Discordant: examples on which "
            "only the best, and only this one, is right. p: McNemar's exact test, two-sided; "
            "p (Holm) is corrected for all pairs of structures in the group, as the best was "
            "found by looking at them. This compares two trained models, of one seed each, not two "
            "methods: other seeds may turn it round."
        ),
        corner="Structure",
        columns=tuple(
            (head,)
            for head in ("Seed", "Worst case", "Minus the best", "Discordant", "p", "p (Holm)")
        ),
        groups=tuple(made),
        notes=notes,
    )


def _fields(
    groups: Sequence[Group], alone: dict[str, list[str]]
) -> Iterator[tuple[str, list[Contender]]]:
    """Those that can be compared: same section, method, attacks, examples and number of them."""
    fields: dict[tuple[object, ...], dict[str, list[Contender]]] = {}
    for group in groups:
        for run in group.runs:
            if "best" not in run.checkpoints:
                continue
            if partial(run.checkpoints["best"].result):
                alone.setdefault(_PARTIAL, []).append(f"{group.structure}, {run.method}")
                continue
            flags = cells.flags(run.checkpoints["best"], WORST)
            if flags is not None:
                labels = frozenset(run.checkpoints["best"].result.survived)
                key = (group.section, group.method, labels, run.examples, len(flags))
                contender = (group.structure, run, flags)
                fields.setdefault(key, {}).setdefault(group.structure, []).append(contender)
    for (section, method, *_), members in fields.items():
        chosen = _one_each(list(members.values()))
        _, run, flags = chosen[0]
        attacks = ", ".join(attack(k) for k in run.checkpoints["best"].result.survived)
        place = ", ".join(map(str, section)) if isinstance(section, tuple) else ""
        yield f"{place}; {method}; n = {len(flags)}; attacks: {attacks}", chosen


def _one_each(structures: Sequence[Sequence[Contender]]) -> list[Contender]:
    """One run per structure: of the lowest seed that all have, else of the lowest of each."""
    seeds = set.intersection(*({run.seed for _, run, _ in members} for members in structures))
    wanted = min(seeds, default=None)
    return [
        min((m for m in members if wanted in (None, m[1].seed)), key=lambda m: m[1].seed)
        for members in structures
    ]


def _rows(members: Sequence[Contender], marks: Marks, level: float) -> tuple[Row, ...]:
    pairs = list(combinations(range(len(members)), 2))
    tests = [mcnemar(members[i][2], members[j][2]) for i, j in pairs]
    plain = dict(zip(pairs, tests, strict=True))
    corrected = dict(zip(pairs, holm(tests), strict=True))
    best = max(range(len(members)), key=lambda at: sum(members[at][2]))
    rows = []
    for at, (structure, run, flags) in enumerate(members):
        on = marks.get((run.name, "best"), {})
        own = (Cell(value=str(run.seed)), cells.share([flags], level=level, marks=on))
        if at == best:
            against = (Cell(value="the best"), *[MISSING] * 3)
        else:
            other = members[best][2]
            pair = (min(at, best), max(at, best))
            only = " / ".join(map(str, discordant(other, flags)))
            both = {**on, **marks.get((members[best][1].name, "best"), {})}
            against = (
                cells.points([(flags, other)], level=level, marks=both),
                Cell(value=only),
                Cell(value=_number(plain[pair])),
                Cell(value=_number(corrected[pair])),
            )
        rows.append(Row(head=structure, cells=(*own, *against)))
    return tuple(rows)


def _number(p: float) -> str:
    return cells.probability(p).removeprefix("p ").removeprefix("= ")
