"""Smaller drawings: the same shapes in fewer signs."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustssm.reporting import drawing, style
from robustssm.reporting.drawing import Shared

coordinates = st.floats(-999, 999, allow_nan=False).map(lambda x: round(x, 6))
points = st.tuples(coordinates, coordinates)
commands = st.one_of(
    st.tuples(st.sampled_from("ML"), points),
    st.tuples(st.just("Q"), points, points),
    st.tuples(st.just("C"), points, points, points),
    st.just(("z",)),
)


def read(text):
    """A reader of paths for what this writes: absolute points, with the letters."""
    tokens = re.findall(r"[a-z]|-?(?:\d+\.?\d*|\.\d+)", text)
    found, at, here, start, letter = [], 0, (0.0, 0.0), (0.0, 0.0), ""
    while at < len(tokens):
        if tokens[at].isalpha():
            letter = tokens[at]
            at += 1
        if letter == "z":
            here = start
            found.append(("z",))
            continue
        size = {"h": 1, "v": 1, "m": 2, "l": 2, "q": 4, "c": 6}[letter]
        numbers = [float(token) for token in tokens[at : at + size]]
        at += size
        if letter in "hv":
            numbers = [numbers[0], 0.0] if letter == "h" else [0.0, numbers[0]]
        pairs = [(here[0] + x, here[1] + y) for x, y in zip(*[iter(numbers)] * 2, strict=True)]
        here = pairs[-1]
        found.append(({"h": "L", "v": "L"}.get(letter, letter.upper()), *pairs))
        if letter == "m":
            start, letter = here, "l"
    return found


@given(st.lists(commands, max_size=12), points)
def test_a_path_keeps_its_commands_and_its_points(steps, first):
    steps = [("M", first), *steps]
    text = " ".join(
        " ".join([letter, *(f"{x} {y}" for x, y in places)]) for letter, *places in steps
    )
    back = read(drawing.path(text))
    assert [step[0] for step in back] == [step[0] for step in steps]
    for (_, *own), (_, *other) in zip(back, steps, strict=True):
        for p, q in zip(own, other, strict=True):
            assert p == pytest.approx(q, abs=0.00501)  # half a hundredth, however long the path


def drawn(fill):
    svg = style.draw(fill, width=3, height=2)
    shared = Shared()
    return svg, drawing.inline(svg, title='"t" & <u>', shared=shared), shared


def scatter(figure):
    axes = figure.add_subplot()
    axes.plot([0, 1, 2, 4], [1, 3, 2, 8], "o", color=style.CLEAN, clip_on=True)
    axes.set_title("a < b & c")


def test_a_drawing_keeps_its_texts_colours_and_points():
    svg, small, shared = drawn(scatter)
    assert len(small) < len(svg) / 3
    tree = ElementTree.fromstring(re.sub(r"=([\w#]+)(?=[ >])", r'="\1"', small))
    assert "a < b & c" in [element.text for element in tree.iter("text")]
    assert tree.get("aria-label") == '"t" & <u>'
    rules = {name: rule for rule, name in shared.classes.items()}
    (marked,) = [e for e in tree.iter("path") if "marker:url" in rules[e.get("class")]]
    (name,) = re.findall(r"marker:url\(#(\w+)\)", rules[marked.get("class")])
    outer = [e for e in tree.iter("g") if marked in list(e.iter())]
    assert any("clip-path:url(#" in rules[e.get("class")] for e in (*outer, marked))
    raw = [
        (float(use["x"]), float(use["y"]))
        for use in (
            dict(re.findall(r'([\w:]+)="([^"]*)"', tag))
            for tag in re.findall(rf"<use [^>]*stroke: {style.CLEAN}[^>]*>", svg)
        )
    ]
    ours = [step[1] for step in read(marked.get("d"))]
    assert len(raw) == 4
    for p, q in zip(ours, raw, strict=True):
        assert p == pytest.approx(q, abs=0.006)
    assert f"id={name!r}".replace("'", '"') in shared.definitions()
    assert "var(--clean)" in shared.css() and style.CLEAN not in shared.css() + small


def test_what_drawings_refer_to_is_in_the_page_once():
    shared = Shared()
    texts = [
        drawing.inline(style.draw(scatter, width=3, height=2), title="t", shared=shared)
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    asked = set(re.findall(r"href=\"?#(\w+)|url\(#(\w+)\)", "".join(texts) + shared.css()))
    held = re.findall(r' id="(\w+)"', shared.definitions())
    assert len(held) == len(set(held))
    assert {name for pair in asked for name in pair if name} <= set(held)
    assert " id=" not in "".join(texts)


def test_what_cannot_be_seen_is_left_out():
    _, small, _ = drawn(lambda figure: figure.text(0.5, 0.5, " "))
    assert "<path" not in small and "<text" not in small
