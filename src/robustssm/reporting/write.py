"""Writes a report: one HTML page that stands alone, Markdown with its figures, LaTeX and CSV."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustssm.records import write_bytes
from robustssm.reporting import html, latex, markdown, spreadsheet
from robustssm.reporting.base import Document, Report
from robustssm.reporting.load import load
from robustssm.reporting.overview import Overview
from robustssm.reporting.poisoning import Poisoning
from robustssm.reporting.runs import Runs
from robustssm.reporting.versions import refuse_mixed


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """Where a report lies."""

    html: Path
    markdown: Path
    latex: Path
    """The tables, to be read by \\input."""
    tables: Path
    """Folder of the tables as CSV, one file each."""
    results: Path | None = None
    """CSV of every accuracy of every run, if there are runs."""


def write_report(
    runs: Sequence[Path], out: Path, *, report: Report | None = None, mixed: bool = False
) -> ReportPaths:
    """Writes the report in all forms; the same runs give the same bytes.

    report.html, report.md with figures/*.svg, report.tex, tables/*.csv and results.csv.

    Args:
        runs: Run directories and results of poisoning studies, or directories that hold them at
            any depth.
        out: Directory to write to; made if it is not there.
        report: What to show; if None the overview of the runs, and then the poisoning studies, as
            far as there are any.
        mixed: Whether results of several versions of this package may stand in one report.

    Raises:
        ValueError: If a path is neither a directory nor a JSON file, there is nothing to show, or
            versions are mixed unasked.
        OSError: If `out` cannot be written.
    """
    found = load(runs)
    if not mixed:
        refuse_mixed(found)
    document = report.render(found) if report else _everything(found)
    paths = ReportPaths(
        html=out / "report.html",
        markdown=out / "report.md",
        latex=out / "report.tex",
        tables=out / spreadsheet.FOLDER,
        results=out / "results.csv" if found.finished else None,
    )
    for name, svg in markdown.drawings(document).items():
        write_bytes(out / markdown.FIGURES / name, svg.encode())
    for name, text in spreadsheet.tables(document).items():
        write_bytes(paths.tables / name, text.encode())
    if paths.results:
        write_bytes(paths.results, spreadsheet.results(found.finished).encode())
    write_bytes(paths.latex, latex.page(document).encode())
    write_bytes(paths.markdown, markdown.page(document).encode())
    write_bytes(paths.html, html.page(document).encode())
    return paths


def _everything(found: Runs) -> Document:
    """The overview and, below it, the poisoning studies; a report of one kind has its title."""
    if not found.finished:
        return Poisoning().render(found)
    overview = Overview().render(found)
    poisoned = Poisoning().render(found).sections
    return Document(title=overview.title, sections=(*overview.sections, *poisoned))
