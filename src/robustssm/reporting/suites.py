"""Suites of attacks, stage by stage: who was left after each, and what it cost."""

from collections.abc import Iterator, Mapping
from typing import Any

from robustssm.records import SuiteRecord, wilson
from robustssm.reporting import names
from robustssm.reporting.base import MISSING, Cell, Row, RowGroup, Table
from robustssm.reporting.cells import state
from robustssm.reporting.notes import Marks, below
from robustssm.reporting.runs import Run

PASSES = {"calls": "Calls", "forwards": "Forwards", "backwards": "Backwards"}


def of_run(run: Run, *, marks: Marks, level: float) -> Iterator[Table]:
    """A table per suite of the run.

    Args:
        run: A finished run.
        marks: Notes on the checkpoints.
        level: Confidence of the intervals, in (0, 1).
    """
    labels = dict.fromkeys(
        label for checkpoint in run.checkpoints.values() for label in checkpoint.result.suites
    )
    for label in labels:
        yield _table(run, label, marks, level)


def _table(run: Run, label: str, marks: Marks, level: float) -> Table:
    heads_of: dict[str, str] = {}
    suites = {
        name: checkpoint.result.suites[label]
        for name, checkpoint in run.checkpoints.items()
        if label in checkpoint.result.suites
    }
    if "last" in suites and suites.get("best") == suites["last"]:
        suites = {name: suite for name, suite in suites.items() if name != "last"}
        heads_of = {"best": "Best, which is Last"}
    stages = list(dict.fromkeys(stage for suite in suites.values() for stage in suite.stages))
    columns: list[tuple[str, str]] = []
    entries: list[list[Cell]] = [[] for _ in range(len(stages) + 2)]
    for name, suite in suites.items():
        clean = run.checkpoints[name].result.clean
        heads = ("Still right", "Broke", *PASSES.values())
        columns += [(heads_of.get(name, name.capitalize()), head) for head in heads]
        rows = _rows(suite, clean, stages, marks.get((run.name, name), {}), level)
        for line, row in zip(entries, rows, strict=True):
            line += row
    shown = ["Clean", *(names.attack(stage) for stage in stages), "Whole suite"]
    return Table(
        caption=(
            f"{names.attack(label)}, stage by stage: each attacks only what all before it left "
            f"right. Still right: percent with its {level:.0%} interval, and count. Broke: "
            "examples lost there. Calls of the model, and examples that went forwards and "
            "backwards through it."
        ),
        corner="Stage",
        columns=tuple(columns),
        groups=(
            RowGroup(
                rows=tuple(
                    Row(head=head, cells=tuple(line))
                    for head, line in zip(shown, entries, strict=True)
                )
            ),
        ),
        notes=below([run], [label]),
    )


def _rows(
    suite: SuiteRecord,
    clean: tuple[bool, ...],
    stages: list[str],
    marks: Mapping[str, str],
    level: float,
) -> Iterator[list[Cell]]:
    """Cells of one checkpoint: without attack, after each stage, and in all."""
    nothing = [MISSING] * len(PASSES)
    yield [_share(clean, {}, level), MISSING, *nothing]
    before, last = sum(clean), clean
    for stage in stages:
        if stage not in suite.stages:
            yield [MISSING, MISSING, *nothing]
            continue
        last = suite.stages[stage]
        broke = Cell(value=f"{before - sum(last):,}")
        spent = suite.passes.get(stage, {})
        yield [_share(last, marks, level), broke, *(_number(spent.get(key)) for key in PASSES)]
        before = sum(last)
    sums = [_sum([row.get(key) for row in suite.passes.values()]) for key in PASSES]
    broke = Cell(value=f"{sum(clean) - before:,}")
    yield [_share(last, marks, level), broke, *(_number(total) for total in sums)]


def _share(flags: tuple[bool, ...], marks: Mapping[str, str], level: float) -> Cell:
    count, n = sum(flags), len(flags)
    low, high = (100 * end for end in wilson(count, n, level=level))
    return Cell(
        value=f"{100 * count / n:.1f}",
        details=(f"[{low:.1f}, {high:.1f}]", f"{count} of {n}"),
        marks=tuple(marks),
        state=state(marks),
    )


def _sum(values: list[Any]) -> int | None:
    known = [value for value in values if isinstance(value, int)]
    return sum(known) if known else None


def _number(value: Any) -> Cell:
    return Cell(value=f"{value:,}") if isinstance(value, int) else MISSING
