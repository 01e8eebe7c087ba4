"""What every report is: runs in, a document out; and what a document is made of.

A document knows nothing of HTML or Markdown, and a report writes neither: it fills these values,
and `html.py` and `markdown.py` know how each is shown.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from robustssm.core.config import Named
from robustssm.reporting.runs import Runs
from robustssm.reporting.verdicts import Verdict


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Note:
    """A remark on numbers: `label` is what the cells it concerns refer to."""

    label: str
    text: str
    severity: Literal["warning", "invalid"] = "warning"


@dataclass(frozen=True, kw_only=True)
class Notes:
    """Remarks that stand above the numbers they concern."""

    notes: tuple[Note, ...]
    repeated: bool = False
    """Whether the same notes, to which marks lead, stand elsewhere too."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Whether numbers can be believed, or are all there, in a word; and why."""

    word: Verdict | Literal["partial"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """Verdicts that stand above the numbers they concern."""

    items: tuple[Judgement, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of a table: a value, its uncertainty in small print, and the notes on it."""

    value: str
    details: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    """Labels of the notes that concern this value."""
    state: Literal["value", "missing", "suspicious", "invalid"] = "value"
    """"invalid" where the number must not be believed, "missing" where there is none."""
    tone: Verdict | Literal[""] = ""
    """The verdict that the value is, if it is one."""


MISSING = Cell(value="\N{EN DASH}", state="missing")
"""The entry where no finished run says anything."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table; `target` names the fold that the head leads to."""

    head: str
    cells: tuple[Cell, ...]
    target: str = ""


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Lines that belong together, under a title of their own if it is not empty."""

    rows: tuple[Row, ...]
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under columns; a column is the path of its headings from the outermost inwards."""

    caption: str
    corner: str
    """Heading of the column of row heads."""
    columns: tuple[tuple[str, ...], ...]
    groups: tuple[RowGroup, ...]
    words: int = 0
    """The first so many columns hold words, the others numbers."""
    notes: tuple[str, ...] = ()
    """Remarks below the table."""

    def __post_init__(self) -> None:
        depths = {len(column) for column in self.columns}
        widths = {len(row.cells) for group in self.groups for row in group.rows}
        assert len(depths) == 1, "every column has the same number of headings"
        assert widths <= {len(self.columns)}, "every row has one cell per column"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One or several drawings (SVG text) with one caption; small screens stack them."""

    name: str
    """Letters, digits and dashes; unique in the document."""
    title: str
    caption: str
    panels: tuple[str, ...]
    wide: bool = False
    """A single large drawing, which small screens scroll instead of shrinking."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and their values."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Code:
    """Text as it stands in a file."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Detail that is shown on demand."""

    name: str
    """Letters, digits and dashes; unique in the document."""
    summary: str
    blocks: tuple["Block", ...]


Block = Paragraph | Notes | Judgements | Table | Figure | Facts | Code | Fold


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    name: str
    """Letters, digits and dashes; unique in the document."""
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report."""

    title: str
    sections: tuple[Section, ...]


class Report(Named, ABC):
    """Turns the records of runs into a document. Settings only: reads no file and no clock."""

    kind: ClassVar[str] = "report"

    @abstractmethod
    def render(self, runs: Runs) -> Document:
        """The document; the same runs give the same document.

        Args:
            runs: At least one finished run, and the runs that were left out, with reasons.
        """
