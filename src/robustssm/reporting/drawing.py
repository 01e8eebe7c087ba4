"""Drawings in few bytes: what nobody sees is left out, and what repeats is said once.

A page of 84 runs holds 270 drawings. As matplotlib writes them, a tick takes half a kilobyte: names
nobody refers to, groups of one, six decimals of a point, the same style on every element.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from markupsafe import escape

from robustssm.reporting import style

_XLINK = "{http://www.w3.org/1999/xlink}href"
_PLACES = {"x", "y", "x1", "x2", "y1", "y2", "width", "height", "cx", "cy", "r"}
_TOKEN = re.compile(r"[MLCQz]|[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")
_POINTS = {"M": 1, "L": 1, "Q": 2, "C": 3}
_MANY = 3  # points of one look, from which on they are written as one path
_GRID = 100
"""Steps per point, 1/72 inch, that coordinates are rounded to."""


@dataclass(frozen=True)
class Shared:
    """What the drawings of one page have in common: their styles, as classes, and their parts."""

    classes: dict[str, str] = field(default_factory=dict)
    """Rules to class."""
    parts: dict[str, str] = field(default_factory=dict)
    """An element that others refer to, without its name, to its name in the page."""

    def css(self) -> str:
        """The rules for all drawings that were made so far."""
        return "".join(f".{name}{{{rules}}}\n" for rules, name in self.classes.items())

    def definitions(self) -> str:
        """The parts of all drawings so far, as an element of no size; it must not be hidden."""
        parts = "".join(
            re.sub(r"^<\w+", rf'\g<0> id="{name}"', part, count=1)
            for part, name in self.parts.items()
        )
        return f'<svg class="parts" aria-hidden="true" width="0" height="0">{parts}</svg>'

    def look(self, rules: str) -> str:
        """The class with these rules."""
        return self.classes.setdefault(rules, f"s{len(self.classes) + 1}")

    def part(self, text: str) -> str:
        """The name of an element that is written like this."""
        return self.parts.setdefault(text, f"d{len(self.parts) + 1}")


def inline(svg: str, *, title: str, shared: Shared, wide: bool = False) -> str:
    """The drawing as an element of a page; colours are left to the page's style.

    Args:
        svg: What `style.draw` gave.
        title: Read aloud in place of the drawing.
        shared: Takes up the styles of the drawing, and the parts that it refers to.
        wide: Never shrunk below the size at which it can be read.
    """
    root = _reduced(svg)
    width, height = (float(size) for size in root.attrib["viewBox"].split()[2:])
    names = _take_parts(root, shared)
    _gather_points(root, names, shared)
    for element in root.iter():
        _fit(element, names, shared)
    least = f' style="min-width: {width:.0f}px"' if wide else ""
    body = "".join(_written(child) for child in root)
    return (
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width:g} {height:g}"{least}>'
        f"{body}</svg>"
    )


_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def _reduced(svg: str) -> Element:
    """The drawing without names nobody refers to, groups of one, and what cannot be seen."""
    svg = _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", svg)  # matplotlib writes them as they come
    root = ElementTree.fromstring(svg)
    used = set(re.findall(r'href="#([^"]*)"', svg)) | set(re.findall(r"url\(#([^)]*)\)", svg))
    for element in root.iter():
        _clean(element, used)
    _prune(root)
    if len(root) and root[0].get("style") == f"fill:{style.PAPER}":
        del root[0]  # the ground, which the page has too
    return root


def _clean(element: Element, used: set[str]) -> None:
    """One element in its shortest form."""
    element.tag = element.tag.rpartition("}")[2]
    given = element.attrib
    if given.get("id") not in used:
        given.pop("id", None)
    if _XLINK in given:
        given["xlink:href"] = given.pop(_XLINK)
    if re.fullmatch(r"rotate\(-?0(\.0+)? .*\)", given.get("transform", "")):
        del given["transform"]
    if "d" in given:
        given["d"] = path(given["d"])
    for key in _PLACES & set(given) if element.tag != "svg" else ():
        given[key] = _shortest(round(float(given[key]) * _GRID))
    if "style" in given:
        given["style"] = re.sub(r"\s*([:;])\s*", r"\1", given["style"].strip()).rstrip(";")
        if given["style"].startswith("fill:none;stroke:none"):
            given["style"] = "fill:none"
    if element.tag not in ("text", "tspan", "style"):
        element.text = None
    element.tail = element.tail if element.tag == "tspan" else None


def _prune(parent: Element) -> None:
    """Drops the page's `<style>`, invisible shapes and empty groups; opens groups of no effect."""
    kept: list[Element] = []
    for child in list(parent):
        _prune(child)
        if child.tag == "style" or (child.tag in ("g", "defs") and not len(child)):
            continue
        if child.tag == "text" and not "".join(child.itertext()).strip():
            continue
        shape = child.tag == "path" and parent.tag not in ("clipPath", "defs")
        if shape and (not child.get("d") or child.get("style") == "fill:none"):
            continue
        kept += list(child) if child.tag == "g" and not child.attrib else [child]
    parent[:] = kept


def path(text: str) -> str:
    """The same path, in steps from point to point, on a grid of hundredths."""
    tokens = _TOKEN.findall(text)
    written: list[str] = []
    at, here, start = 0, (0, 0), (0, 0)
    command = ""
    while at < len(tokens):
        if tokens[at] in "MLCQz":
            command = tokens[at]
            at += 1
        if command == "z":
            written.append("z")
            here = start
            continue
        size = 2 * _POINTS[command]
        numbers = [round(float(token) * _GRID) for token in tokens[at : at + size]]
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        at += size
        written.append(_step(command, here, points, before=written))
        here = points[-1]
        if command == "M":
            start, command = here, "L"
    return "".join(written)


def _step(
    command: str, here: tuple[int, int], points: list[tuple[int, int]], *, before: list[str]
) -> str:
    """One command in relative form; its letter is left out where it repeats."""
    steps = [(x - here[0], y - here[1]) for x, y in points]
    flat = [number for step in steps for number in step]
    letter = command.lower()
    if letter == "l" and 0 in steps[0]:
        letter, flat = ("v", [steps[0][1]]) if steps[0][0] == 0 else ("h", [steps[0][0]])
    numbers = ""
    for number in flat:
        text = _shortest(number)
        numbers += text if not numbers or text[0] == "-" else f" {text}"
    last = next((c for step in reversed(before) for c in step if c.isalpha()), "")
    if letter in ("l", "c", "q", "h", "v") and last == letter:
        return numbers if numbers[0] == "-" else f" {numbers}"
    return letter + numbers


def _shortest(hundredths: int) -> str:
    """A number of hundredths in decimals: "1.5", ".05", "-3"."""
    text = f"{abs(hundredths) / _GRID:.2f}".rstrip("0").rstrip(".")
    text = text.removeprefix("0") or "0"
    return f"-{text}" if hundredths < 0 else text


def _take_parts(root: Element, shared: Shared) -> dict[str, str]:
    """Moves what other elements refer to out of the drawing; own name to name in the page."""
    names = {}
    for parent in list(root.iter()):
        for defs in [child for child in parent if child.tag == "defs"]:
            for part in defs:
                own = part.attrib.pop("id", "")
                for element in part.iter():
                    _fit(element, {}, shared)
                names[own] = shared.part(_written(part))
            parent.remove(defs)
    return names


def _gather_points(parent: Element, names: dict[str, str], shared: Shared) -> None:
    """Many points of one look become a path with a marker at each of its corners."""
    gathered: list[Element] = []
    for key, same in groupby(parent, key=_kind_of_point):
        points = list(same)
        if key is None or len(points) < _MANY:
            gathered += points
            continue
        own, rules, clip = key
        point = Element("use", {"xlink:href": own, "style": rules})
        _fit(point, names, shared)
        marker = Element("marker", {"markerUnits": "userSpaceOnUse", "overflow": "visible"})
        marker.append(point)
        name = shared.part(_written(marker))
        places = [f"{point.get('x', '0')} {point.get('y', '0')}" for point in points]
        drawn = {"d": path(f"M{'L'.join(places)}"), "style": f"fill:none;marker:url(#{name})"}
        names[name] = name  # as it is called in the page already
        gathered.append(Element("path", drawn | ({"clip-path": clip} if clip else {})))
    parent[:] = gathered
    for child in parent:
        _gather_points(child, names, shared)


def _kind_of_point(element: Element) -> tuple[str, str, str] | None:
    """What points must share to be gathered, or None if this is no point."""
    if element.tag != "use" or set(element.attrib) - {"x", "y", "xlink:href", "style", "clip-path"}:
        return None
    given = element.attrib
    return given["xlink:href"], given.get("style", ""), given.get("clip-path", "")


def _fit(element: Element, names: dict[str, str], shared: Shared) -> None:
    """Names and colours of the page, styles as its classes."""
    given = element.attrib
    if "xlink:href" in given:
        given["href"] = "#" + names[given.pop("xlink:href")[1:]]
    rules = given.pop("style", "")
    if "clip-path" in given:
        rules = f"{rules};clip-path:{given.pop('clip-path')}".lstrip(";")
    if rules:
        rules = re.sub(r"url\(#([^)]*)\)", lambda found: f"url(#{names[found[1]]})", rules)
        for colour, variable in style.VARIABLES.items():
            rules = rules.replace(colour, f"var({variable})")
        rules = re.sub(r"font-family:[^;]*;?|stroke-dashoffset:0;?", "", rules).rstrip(";")
        given["class"] = shared.look(rules)


def _written(element: Element) -> str:
    given = "".join(
        f" {key}={value}" if value.isalnum() else f' {key}="{escape(value)}"'
        for key, value in element.attrib.items()
    )
    inside = "".join(_contents(element))
    return (
        f"<{element.tag}{given}>{inside}</{element.tag}>" if inside else f"<{element.tag}{given} />"
    )


def _contents(element: Element) -> Iterator[str]:
    yield str(escape(element.text or ""))
    for child in element:
        yield _written(child)
        yield str(escape(child.tail or ""))
