"""A document as Markdown with tables (as on GitHub); its figures are files beside it."""

import html
import re
from collections.abc import Iterator

from robustssm.reporting.base import (
    Block,
    Cell,
    Code,
    Document,
    Facts,
    Figure,
    Fold,
    Judgements,
    Notes,
    Paragraph,
    Table,
)

FIGURES = "figures"
"""Folder of the figures, relative to the page."""


def page(document: Document) -> str:
    """The whole page."""
    parts = [f"# {escape(document.title)}"]
    for section in document.sections:
        parts += [f"## {escape(section.title)}", *_blocks(section.blocks)]
    return "\n\n".join(parts) + "\n"


def drawings(document: Document) -> dict[str, str]:
    """File name to SVG, for every figure that `page` refers to."""
    return {
        name: svg
        for figure in figures(document)
        for name, svg in zip(_files(figure), figure.panels, strict=True)
    }


def figures(document: Document) -> Iterator[Figure]:
    """Every figure of a document, those in folds too; not in the order of the page."""
    stack = [block for section in document.sections for block in section.blocks]
    for block in stack:
        if isinstance(block, Figure):
            yield block
        elif isinstance(block, Fold):
            stack += block.blocks


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text)


def _blocks(blocks: tuple[Block, ...]) -> Iterator[str]:
    for block in blocks:
        match block:
            case Paragraph():
                yield escape(block.text)
            case Notes():
                yield "\n".join(
                    f"- **{note.label}** ({note.severity}): {escape(note.text)}"
                    for note in block.notes
                )
            case Judgements():
                yield "\n".join(f"- **{i.word}**: {escape(i.text)}" for i in block.items)
            case Table():
                yield from _table(block)
            case Figure():
                yield "\n".join(
                    f"![{escape(block.title)}]({FIGURES}/{name})" for name in _files(block)
                )
                yield escape(block.caption)
            case Facts():
                yield "\n".join(f"- {escape(key)}: {escape(value)}" for key, value in block.items)
            case Code():
                longest = max((len(run) for run in re.findall("`+", block.text)), default=0)
                fence = "`" * max(3, longest + 1)
                yield f"{fence}\n{block.text}\n{fence}"
            case Fold():
                summary = html.escape(block.summary)  # a line of HTML, where no mark is live
                yield f"<details><summary>{summary}</summary>"
                yield from _blocks(block.blocks)
                yield "</details>"


def _table(table: Table) -> Iterator[str]:
    """One grid per outermost heading, as Markdown knows one line of headings and no more."""
    yield escape(table.caption)
    tops = [column[0] if len(column) > 1 else "" for column in table.columns]
    for top in dict.fromkeys(tops):
        chosen = [at for at, own in enumerate(tops) if own == top]
        if top:
            yield f"**{escape(top)}**"
        heads = [" ".join(table.columns[at][1 if top else 0 :]) for at in chosen]
        lines = [_line([table.corner, *heads])]
        lines.append(f"|---|{''.join('---|' if at < table.words else '---:|' for at in chosen)}")
        for group in table.groups:
            if group.title:
                lines.append(f"| **{escape(group.title)}** |{' |' * len(chosen)}")
            for row in group.rows:
                entries = (_cell(row.cells[at]) for at in chosen)
                lines.append(f"| {escape(row.head)} | {' | '.join(entries)} |")
        yield "\n".join(lines)
    if table.notes:
        yield "\n".join(f"- {escape(note)}" for note in table.notes)


def _line(texts: list[str]) -> str:
    return f"| {' | '.join(escape(text) for text in texts)} |"


def _cell(cell: Cell) -> str:
    value = escape(cell.value)
    bold = f"**{value}**" if cell.tone else value
    shown = {"invalid": f"~~{value}~~ invalid", "suspicious": f"{value} suspicious"}
    parts = [shown.get(cell.state, bold)]
    if cell.details:
        opening, *rest = cell.details
        parts.append(escape(", ".join([opening, *rest])))
    if cell.marks:
        parts.append(f"({', '.join(cell.marks)})")
    return " ".join(parts)


def _files(figure: Figure) -> list[str]:
    if len(figure.panels) == 1:
        return [f"{figure.name}.svg"]
    return [f"{figure.name}-{number}.svg" for number in range(1, len(figure.panels) + 1)]
