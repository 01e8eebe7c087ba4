"""A document as one HTML file that needs nothing else: no network, figures and script inline.

The script sorts, filters and changes the colours; whoever has none reads the same page without.
"""

import base64
import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import groupby

import jinja2
from markupsafe import Markup

from robustssm.reporting.base import Block, Cell, Document, Fold, Table
from robustssm.reporting.drawing import Shared, inline
from robustssm.reporting.markdown import figures

_LONG = 60
"""Letters, from which on a caption that repeats is worth a rule of the style sheet."""


def page(document: Document) -> str:
    """The whole page; every text is escaped, and only drawings of our own are not."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"kind": lambda block: type(block).__name__, "headings": headings}
    environment.filters |= {"opens": opens, "look": look, "joined": joined, "verbatim": verbatim}
    template = environment.from_string(_resource("report.html.j2"))
    drawn, shared = _drawings(document)
    captions = Captions(document)
    script = _resource("report.js")
    return template.render(
        document=document,
        drawn=drawn,
        css=Markup(_resource("report.css") + shared.css() + captions.css()),
        said=captions.said,
        parts=Markup(shared.definitions()),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _drawings(document: Document) -> tuple[dict[str, list[Markup]], Shared]:
    """The panels of every figure, by its name, ready to stand in a page; and their styles."""
    shared, drawn = Shared(), {}
    for figure in figures(document):
        drawn[figure.name] = [
            Markup(
                inline(
                    svg,
                    title=figure.title,
                    shared=shared,
                    wide=figure.wide,
                )
            )
            for svg in figure.panels
        ]
    return drawn, shared


def headings(table: Table) -> list[list[tuple[str, int, str]]]:
    """Lines of headings, outermost first: text, columns spanned, and what opens there."""
    opening = opens(table)
    lines = []
    for depth in range(len(table.columns[0])):
        line, at = [], 0
        for path, same in groupby(table.columns, key=lambda column: column[: depth + 1]):
            span = len(list(same))
            line.append((path[-1], span, opening[at]))
            at += span
        lines.append(line)
    return lines


def opens(table: Table) -> list[str]:
    """For every column, whether a group "outer", a group "inner" or nothing opens there."""
    found = []
    for at, column in enumerate(table.columns):
        before = table.columns[at - 1] if at else ("",) * len(column)
        depth = next(
            i for i, (own, left) in enumerate(zip(column, before, strict=True)) if own != left
        )
        found.append({0: "outer", 1: "inner"}.get(depth, "") if depth < len(column) - 1 else "")
    return found


class Captions:
    """Captions of tables; in folds, one that many runs share is written once and then repeated.

    A repetition is text that the style sheet gives, which is shown, read aloud and printed as any.
    """

    def __init__(self, document: Document) -> None:
        """Counts the captions of a document.

        Args:
            document: What the page shows.
        """
        counts = Counter(table.caption for table in tables(document))
        often = [text for text, count in counts.items() if count > 2 and len(text) > _LONG]
        self._classes = {text: f"c{number}" for number, text in enumerate(often, 1)}
        self._written: set[str] = set()

    def css(self) -> str:
        """The rules that hold the repeated texts."""
        return "".join(
            f'.{name}::before{{content:"{_quoted(text)}"}}\n'
            for text, name in self._classes.items()
        )

    def said(self, text: str, folded: bool) -> Markup:
        """The text, or what stands for its repetition.

        Args:
            text: A caption.
            folded: Whether it stands in a fold; elsewhere every text is written in full.
        """
        if folded and text in self._written and text in self._classes:
            return Markup(f"<span class={self._classes[text]}></span>")
        self._written.add(text)
        return Markup("<span>{}</span>").format(text)


def joined(blocks: Sequence[Block]) -> list[Block]:
    """Tables of the same columns that follow each other as one, each under its caption."""
    found: list[Block] = []
    for block in blocks:
        last = found[-1] if found else None
        if not isinstance(block, Table) or not _plain(block):
            found.append(block)
        elif isinstance(last, Table) and not last.caption and _same_columns(last, block):
            group = dataclasses.replace(block.groups[0], title=block.caption)
            found[-1] = dataclasses.replace(last, groups=(*last.groups, group))
        elif isinstance(last, Table) and _plain(last) and _same_columns(last, block):
            groups = [dataclasses.replace(t.groups[0], title=t.caption) for t in (last, block)]
            found[-1] = dataclasses.replace(block, caption="", groups=tuple(groups))
        else:
            found.append(block)
    return found


def _plain(table: Table) -> bool:
    return len(table.groups) == 1 and not table.groups[0].title and not table.notes


def _same_columns(one: Table, other: Table) -> bool:
    keys = ("corner", "columns", "words")
    return all(getattr(one, key) == getattr(other, key) for key in keys)


def tables(document: Document) -> Iterator[Table]:
    """Every table of a document, those in folds too; not in the order of the page."""
    stack = [block for section in document.sections for block in section.blocks]
    for block in stack:
        if isinstance(block, Table):
            yield block
        elif isinstance(block, Fold):
            stack += block.blocks


def _quoted(text: str) -> str:
    """Text inside a string of a style sheet, which nothing in it can end."""
    # The blank that ends a number belongs to it; a blank of the text must not stand in its place.
    return re.sub(r"[^\w .,:;()-]", lambda sign: f"\\{ord(sign[0]):x} ", text)


def verbatim(text: str) -> Markup:
    """Text between tags, where a quotation mark is no mark of HTML."""
    return Markup(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def look(cell: Cell, opening: str, words: bool) -> Markup:
    """The class of a cell, as an attribute; nothing for a plain number, as most cells are.

    Args:
        cell: An entry of a table.
        opening: What opens at its column.
        words: Whether its column holds words.
    """
    state = "" if cell.state == "value" else cell.state
    names = " ".join(name for name in (state, opening, "words" if words else "") if name)
    return Markup(f' class="{names}"') if names else Markup("")


def _resource(name: str) -> str:
    return files("robustssm.reporting").joinpath(name).read_text(encoding="utf-8")
