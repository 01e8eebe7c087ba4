"""Writes a report: one HTML page that stands alone, and Markdown with its figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustssm.records import write_bytes
from robustssm.reporting import html, markdown
from robustssm.reporting.base import Report
from robustssm.reporting.load import load
from robustssm.reporting.overview import Overview


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """Where a report lies."""

    html: Path
    markdown: Path


def write_report(runs: Sequence[Path], out: Path, *, report: Report | None = None) -> ReportPaths:
    """Writes report.html, report.md and figures/*.svg; the same runs give the same bytes.

    Args:
        runs: Run directories, or directories that hold them at any depth.
        out: Directory to write to; made if it is not there.
        report: What to show; the overview with its defaults if None.

    Raises:
        ValueError: If a path is no directory, or no finished run is left.
        OSError: If `out` cannot be written.
    """
    document = (report or Overview()).render(load(runs))
    paths = ReportPaths(html=out / "report.html", markdown=out / "report.md")
    for name, svg in markdown.drawings(document).items():
        write_bytes(out / markdown.FIGURES / name, svg.encode())
    write_bytes(paths.markdown, markdown.page(document).encode())
    write_bytes(paths.html, html.page(document).encode())
    return paths
