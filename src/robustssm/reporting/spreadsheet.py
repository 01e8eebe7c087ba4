"""CSV: every accuracy with its count, one line each, from the records; and the tables as they are.

Numbers stand unrounded, with a point and an ASCII minus; texts from files cannot act as formulas.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence

from robustssm.records import wilson
from robustssm.reporting import names
from robustssm.reporting.base import Cell, Document, Table
from robustssm.reporting.cells import CLEAN, WORST, flags
from robustssm.reporting.runs import Checkpoint, Run
from robustssm.reporting.tables import metrics

FOLDER = "tables"
"""Folder of the tables, relative to the page."""
COLUMNS = (
    *("run", "dataset", "threat", "structure", "method", "seed", "checkpoint", "epoch", "metric"),
    *("value", "low", "high", "n", "correct", "planned", "verdict", "warnings"),
    *("version", "commit", "recipe", "overrides", "command"),
)
"""Of `results`. `value`, `low` and `high` are shares, from 0 to 1; the ends are Wilson's."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def results(runs: Iterable[Run], *, level: float = 0.95) -> str:
    """One line per run, checkpoint and metric: clean, each attack, and the worst case over all.

    Args:
        runs: Finished runs.
        level: Confidence of the intervals, in (0, 1).
    """
    return _file(
        [COLUMNS, *(line for run in runs for line in _lines(run, level))],
    )


def tables(document: Document) -> dict[str, str]:
    """Name of a file to its contents, for every table that does not stand in a fold."""
    files = {}
    for section in document.sections:
        found = [block for block in section.blocks if isinstance(block, Table)]
        for number, table in enumerate(found, 1):
            files[f"{section.name}-{number}.csv"] = _file(_rows(table))
    return files


def safe(text: str) -> str:
    """Text that no spreadsheet takes for a formula: numbers stay, other openings get a quote."""
    if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def _lines(run: Run, level: float) -> Iterator[list[object]]:
    origin = run.provenance
    for name, checkpoint in run.checkpoints.items():
        result = checkpoint.result
        where = (run.name, run.dataset, names.threat(result.threat), run.structure, run.method)
        signs = ";".join(dict.fromkeys(warning.name for warning in result.warnings))
        settings = ";".join(f"{key}={value}" for key, value in run.overrides.items())
        belief = (result.planned, run.verdict_on(name), signs)
        source = (origin.version, origin.commit, run.recipe, settings, origin.command)
        for metric in _metrics(run, checkpoint):
            row = flags(checkpoint, metric)
            assert row is not None, "only what was measured is asked for"
            right, n = sum(row), len(row)
            ends = wilson(right, n, level=level)
            yield [
                *(*where, run.seed, name, checkpoint.epoch, metric),
                *(right / n, *ends, n, right, *belief, *source),
            ]


def _metrics(run: Run, checkpoint: Checkpoint) -> list[str]:
    """Clean, the attacks in the order of the page, and the worst case, even over one attack."""
    labels = [key for key in metrics([run]) if key in checkpoint.result.survived]
    return [CLEAN, *labels, *([WORST] if labels else [])]


def _rows(table: Table) -> Iterator[Sequence[str]]:
    """A line of headings, then the rows; small print and notes get columns of their own."""
    heads, parts = ["Group", table.corner], []
    for at, column in enumerate(table.columns):
        cells = [row.cells[at] for group in table.groups for row in group.rows]
        name = " / ".join(column)
        kinds = ["value"]
        kinds += ["details"] if any(cell.details for cell in cells) else []
        kinds += ["notes"] if any(_remarks(cell) for cell in cells) else []
        heads += [name if kind == "value" else f"{name} ({kind})" for kind in kinds]
        parts.append(kinds)
    yield heads
    for group in table.groups:
        for row in group.rows:
            entries = [
                _entry(cell, kind)
                for cell, kinds in zip(row.cells, parts, strict=True)
                for kind in kinds
            ]
            yield [group.title, row.head, *entries]


def _entry(cell: Cell, kind: str) -> str:
    if kind == "details":
        return _ascii(", ".join(cell.details))
    if kind == "notes":
        return _remarks(cell)
    return "" if cell.state == "missing" else _ascii(cell.value)


def _remarks(cell: Cell) -> str:
    state = [cell.state] if cell.state in ("invalid", "suspicious") else []
    return " ".join([*state, *cell.marks])


def _ascii(text: str) -> str:
    """Signs of numbers as programs read them, and no separators of thousands in a number."""
    plain = text.replace("\N{MINUS SIGN}", "-")
    joined = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain)
    return joined if _NUMBER.fullmatch(joined) else plain


def _file(rows: Iterable[Sequence[object]]) -> str:
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerows([safe(e) if isinstance(e, str) else e for e in row] for row in rows)
    return target.getvalue()
