"""A document as one HTML file that needs nothing else: no network, no script, figures inline."""

import re
from importlib.resources import files
from itertools import groupby

import jinja2
from markupsafe import Markup

from robustssm.reporting import style
from robustssm.reporting.base import Document, Figure, Table


def page(document: Document) -> str:
    """The whole page; every text is escaped, and only drawings of our own are not."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "kind": lambda block: type(block).__name__,
        "headings": headings,
        "opens": opens,
        "drawings": drawings,
    }
    template = environment.from_string(_resource("report.html.j2"))
    return template.render(document=document, css=Markup(_resource("report.css")))


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


def drawings(figure: Figure) -> list[Markup]:
    """The figure's panels, ready to stand inside a page beside others."""
    return [
        Markup(inline(svg, name=f"{figure.name}-{number}", title=figure.title, wide=figure.wide))
        for number, svg in enumerate(figure.panels, 1)
    ]


def inline(svg: str, *, name: str, title: str, wide: bool = False) -> str:
    """An SVG file as an element of a page: names made unique, colours left to the page's style.

    Args:
        svg: What `style.draw` gave. Its tags hold no text of others except in escaped form.
        name: Letters, digits and dashes; unique in the page.
        title: Read aloud in place of the drawing.
        wide: Never shrunk below the size at which it can be read.
    """
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert found is not None, "matplotlib gives every drawing a viewBox"
    width, height = float(found[1]), float(found[2])
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", lambda tag: _fitted(tag[0], name), body)
    least = f' style="min-width: {width:.0f}px"' if wide else ""
    label = Markup.escape(title)
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}"{least}>{body}'


def _fitted(tag: str, name: str) -> str:
    tag = re.sub(r'(\sid=")', rf"\1{name}-", tag)
    tag = re.sub(r'(\s(?:xlink:)?href="#|url\(#)', rf"\1{name}-", tag)
    for colour, variable in style.VARIABLES.items():
        tag = tag.replace(colour, f"var({variable})")
    return tag


def _resource(name: str) -> str:
    return files("robustssm.reporting").joinpath(name).read_text(encoding="utf-8")
