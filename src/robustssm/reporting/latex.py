"""The tables of a document as LaTeX, to be input by another; without the folds of the page.

Needs the packages booktabs and, for tables of more rows than a page holds, longtable.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby

from robustssm.reporting.base import Cell, Document, Note, Notes, Row, Table

_WIDE = 12  # columns of numbers, beyond which a table is one per outermost heading
_TALL = 40  # rows, beyond which a table may break over pages
_LONG = 80  # letters of a title, from which on it may take several lines
_HEAD = r"""% Tables of robustssm, to be \input; it needs \usepackage{booktabs,longtable}.
\providecommand{\ssmcell}[2]{\shortstack[r]{#1\\#2}}% a number over its small print
"""
_SIGNS = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after \\ a bracket would be a length
    "\N{MINUS SIGN}": "$-$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{MIDDLE DOT}": r"$\cdot$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
    "\N{NO-BREAK SPACE}": "~",
    "\N{INFINITY}": r"$\infty$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
    "\N{SCRIPT SMALL L}": r"$\ell$",
    "\N{PRIME}": "$'$",
    "\N{GREEK SMALL LETTER EPSILON}": r"$\varepsilon$",
    **{
        chr(code): rf"$\{unicodedata.name(chr(code)).rpartition(' ')[2].lower()}$"
        for code in range(0x3B1, 0x3CA)
        if code not in (0x3B5, 0x3BB, 0x3BF, 0x3C2)
    },
    "\N{GREEK SMALL LETTER LAMDA}": r"$\lambda$",
    **{sign: f"$_{at}$" for at, sign in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    **{sign: f"$^{at}$" for at, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    "\N{SUPERSCRIPT MINUS}": "$^-$",
}


def page(document: Document) -> str:
    """Every table that does not stand in a fold, in the order of the document."""
    blocks = [(section.name, b) for section in document.sections for b in section.blocks]
    notes = {n.label: n for _, b in blocks if isinstance(b, Notes) for n in b.notes}
    parts = [_HEAD]
    numbers: dict[str, int] = {}
    for section, block in blocks:
        if isinstance(block, Table):
            for table in _narrow(block):
                numbers[section] = numbers.get(section, 0) + 1
                parts.append("\n".join(_table(table, f"{section}-{numbers[section]}", notes)))
    return "\n".join(parts)


def escape(text: str) -> str:
    """Text that LaTeX sets as it is; a sign that plain LaTeX lacks is told by its number."""
    return "".join(_SIGNS.get(sign) or _sign(sign) for sign in text)


def _sign(sign: str) -> str:
    if sign.isascii():
        return sign if sign.isprintable() else " "
    base = unicodedata.normalize("NFKD", sign)[0]
    if unicodedata.category(sign).startswith("L") and base.isascii() and base.isalpha():
        return sign if ord(sign) < 0x180 else base  # what LaTeX's own encodings have
    return f"\\texttt{{U+{ord(sign):04X}}}"


def _narrow(table: Table) -> Iterator[Table]:
    """The table, or one per outermost heading if it is too wide for a page."""
    if len(table.columns) <= _WIDE or len(table.columns[0]) == 1:
        yield table
        return
    for top, same in groupby(range(len(table.columns)), key=lambda at: table.columns[at][0]):
        chosen = list(same)
        groups = tuple(
            group.__class__(
                title=group.title,
                rows=tuple(
                    Row(head=row.head, cells=tuple(row.cells[at] for at in chosen))
                    for row in group.rows
                ),
            )
            for group in table.groups
        )
        yield Table(
            caption=f"{top}. {table.caption}",
            corner=table.corner,
            columns=tuple(table.columns[at][1:] for at in chosen),
            groups=groups,
            words=sum(at < table.words for at in chosen),
            notes=table.notes,
        )


def _table(table: Table, label: str, notes: dict[str, Note]) -> Iterator[str]:
    rows = sum(len(group.rows) for group in table.groups)
    # A column of long words gets a width of its own; numbers stand right.
    words = [_width(table, at) for at in range(table.words)]
    spec = "l" + "".join(words) + "r" * (len(table.columns) - table.words)
    caption = rf"\caption{{{escape(table.caption)}}}\label{{tab:{label}}}"
    yield rf"\begingroup\footnotesize\setlength{{\tabcolsep}}{{3pt}}% {label}"
    if rows > _TALL:
        yield rf"\begin{{longtable}}{{{spec}}}"
        yield rf"{caption}\\"
        yield from _headings(table)
        yield r"\endhead"
    else:
        yield r"\begin{table}[htbp]\centering\footnotesize"
        yield caption
        yield rf"\begin{{tabular}}{{{spec}}}"
        yield from _headings(table)
    yield from _body(table)
    yield r"\bottomrule"
    yield rf"\end{{{'longtable' if rows > _TALL else 'tabular'}}}"
    yield from _below(table, notes)
    if rows <= _TALL:
        yield r"\end{table}"
    yield "\\endgroup\n"


def _width(table: Table, at: int) -> str:
    longest = max((len(r.cells[at].value) for g in table.groups for r in g.rows), default=0)
    return "l" if longest < 30 else r"p{0.4\linewidth}"


def _headings(table: Table) -> Iterator[str]:
    yield r"\toprule"
    depth = len(table.columns[0])
    for level in range(depth - 1):
        cells, rules, at = [""], [], 2
        for path, same in groupby(table.columns, key=lambda column: column[: level + 1]):
            span = len(list(same))
            cells.append(rf"\multicolumn{{{span}}}{{c}}{{{escape(path[-1])}}}")
            rules.append(rf"\cmidrule(lr){{{at}-{at + span - 1}}}")
            at += span
        yield _line(cells)
        yield "".join(rules)
    yield _line([escape(table.corner), *(escape(column[-1]) for column in table.columns)])
    yield r"\midrule"


def _body(table: Table) -> Iterator[str]:
    for at, group in enumerate(table.groups):
        if at:
            yield r"\midrule"
        if group.title:
            span = len(table.columns) + 1
            title = rf"\itshape {escape(group.title)}"
            if len(group.title) > _LONG:
                title = rf"\parbox{{\linewidth}}{{\raggedright{title}}}"
            yield rf"\multicolumn{{{span}}}{{l}}{{{title}}}\\"
        for row in group.rows:
            cells = (_cell(cell, words=at < table.words) for at, cell in enumerate(row.cells))
            yield _line([escape(row.head), *cells])


def _cell(cell: Cell, *, words: bool) -> str:
    value = escape(cell.value)
    if cell.state in ("invalid", "suspicious"):
        value = rf"\textit{{{value}}} ({cell.state})"
    if cell.marks:
        value += rf"\textsuperscript{{{escape(','.join(cell.marks))}}}"
    if not cell.details:
        return value
    if words:
        return f"{value} ({escape(', '.join(cell.details))})"
    lines = r"\\".join(rf"\tiny {escape(detail)}" for detail in cell.details)
    return rf"\ssmcell{{{value}}}{{{lines}}}"


def _below(table: Table, notes: dict[str, Note]) -> Iterator[str]:
    """Remarks, and the notes that the table's own numbers bear."""
    marks = dict.fromkeys(m for g in table.groups for r in g.rows for c in r.cells for m in c.marks)
    texts = [escape(note) for note in table.notes]
    texts += [rf"\textsuperscript{{{m}}} {escape(notes[m].text)}" for m in marks if m in notes]
    if texts:
        yield rf"\par\smallskip\raggedright {' '.join(texts)}\par"


def _line(cells: Sequence[str]) -> str:
    return re.sub(" +", " ", " & ".join(cells)).strip() + r" \\"
