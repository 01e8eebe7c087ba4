"""Writes a report: one HTML page that stands alone, and Markdown with its figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustssm.records import write_bytes
from robustssm.reporting import html, markdown
from robustssm.reporting.base import Document, Report
from robustssm.reporting.load import load
from robustssm.reporting.overview import Overview
from robustssm.reporting.poisoning import Poisoning
from robustssm.reporting.runs import Runs


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """Where a report lies."""

    html: Path
    markdown: Path


def write_report(runs: Sequence[Path], out: Path, *, report: Report | None = None) -> ReportPaths:
    """Writes report.html, report.md and figures/*.svg; the same runs give the same bytes.

    Args:
        runs: Run directories and results of poisoning studies, or directories that hold them at
            any depth.
        out: Directory to write to; made if it is not there.
        report: What to show; if None the overview of the runs, and then the poisoning studies, as
            far as there are any.

    Raises:
        ValueError: If a path is neither a directory nor a JSON file, or there is nothing to show.
        OSError: If `out` cannot be written.
    """
    found = load(runs)
    document = report.render(found) if report else _everything(found)
    paths = ReportPaths(html=out / "report.html", markdown=out / "report.md")
    for name, svg in markdown.drawings(document).items():
        write_bytes(out / markdown.FIGURES / name, svg.encode())
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
