"""Figures of accuracy over eps, steps and restarts."""

import re
from xml.etree import ElementTree

import pytest

from robustssm.records import Flagged
from robustssm.reporting import cells, curves, html, style
from robustssm.reporting.base import Figure, Fold
from robustssm.reporting.load import load
from robustssm.reporting.overview import Overview
from tests.reporting.synthetic import ATTACKS, curve, result, write_run

SVG = "{http://www.w3.org/2000/svg}"
RADII = curve("eps", (0.0, 0.05, 0.1, 0.2), (0.9, 0.7, 0.55, 0.2))
STEPS = curve("steps", (1, 10, 100), (0.7, 0.6, 0.55), attack="pgd")
RESTARTS = curve("restarts", (1, 5), (0.6, 0.55), attack="pgd-50")


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lines(svg, colour):
    paths = re.findall(rf'<path d="([^"]*)" clip-path="[^"]*" style="[^"]*stroke: {colour}', svg)
    return [path.count("L") + 1 for path in paths]


def bands(svg, colour):
    return len(re.findall(rf'style="fill: {colour}; fill-opacity: 0\.\d', svg))


def with_curves(*found, **more):
    return result(0.9, ATTACKS, curves=found, **more)


@pytest.fixture
def run(tmp_path):
    last = with_curves(curve("eps", RADII.values, (0.88, 0.6, 0.5, 0.1)))
    write_run(tmp_path / "a", best=with_curves(RADII, STEPS, RESTARTS), last=last)
    return load([tmp_path]).finished[0]


def test_a_run_has_a_drawing_per_setting_with_a_band_per_line(run):
    radii, steps, restarts = curves.of_run(run, level=0.95)
    assert lines(radii, style.ADVERSARIAL) == [4]
    assert (bands(radii, style.ADVERSARIAL), bands(radii, style.MUTED)) == (1, 1)
    assert lines(steps, style.ADVERSARIAL) == [3]
    assert (bands(steps, style.ADVERSARIAL), bands(steps, style.MUTED)) == (1, 0)
    assert {"PGD-50x5 by ε", "ε, in the unit of the input", "ε of the tables, 0.1"} <= set(
        texts(radii)
    )
    assert {"best checkpoint", "last checkpoint", "clean accuracy, best"} <= set(texts(radii))
    assert {"PGD by steps", "1", "10", "100"} <= set(texts(steps))
    assert {"PGD-50 by restarts", "1", "5"} <= set(texts(restarts))


def test_steps_stand_at_equal_distances(run):
    steps = curves.of_run(run, level=0.95)[1]
    path = re.findall(
        rf'<path d="([^"]*)" clip-path="[^"]*" style="[^"]*stroke: {style.ADVERSARIAL}', steps
    )[0]
    x = [float(point.split()[0]) for point in re.split("[ML]", path)[1:]]
    assert x[2] - x[1] == pytest.approx(x[1] - x[0])


def test_one_and_the_same_checkpoint_is_drawn_once(tmp_path):
    write_run(tmp_path / "a", best=with_curves(RADII), last=with_curves(RADII))
    (svg,) = curves.of_run(load([tmp_path]).finished[0], level=0.95)
    assert "last checkpoint" not in texts(svg)


def test_structures_with_curves_over_the_same_radii_are_compared(tmp_path):
    sign = Flagged(name="steps", message="more steps find less")
    other = curve("eps", (0.0, 0.3), (0.9, 0.1))
    write_run(tmp_path / "a", layer="s4", best=with_curves(RADII))
    write_run(tmp_path / "b", layer="dss", best=with_curves(RADII, warnings=(sign,)))
    write_run(tmp_path / "c", layer="s5", best=with_curves(other))
    write_run(tmp_path / "d", layer="mega", best=with_curves(STEPS))
    groups = cells.groups(load([tmp_path]).finished)
    found = curves.families(groups)
    assert list(found) == [("pgd-50x5", RADII.values)]
    ((family, members),) = found.items()
    assert [group.structure for group in members] == ["S4", "DSS"]
    svg = curves.comparison(members, family, "TRADES", ["S4", "DSS"], level=0.95)
    assert {"S4", "DSS (suspicious)", "TRADES"} <= set(texts(svg))
    assert [lines(svg, colour) for colour in style.SERIES[:3]] == [[4], [4], []]
    assert [bands(svg, colour) for colour in style.SERIES[:3]] == [1, 1, 0]


def test_the_report_holds_the_figures_with_names_of_their_own(tmp_path):
    for layer in ("s4", "dss"):
        write_run(tmp_path / layer, layer=layer, best=with_curves(RADII, STEPS))
    document = Overview().render(load([tmp_path]))
    stack = [block for section in document.sections for block in section.blocks]
    for block in stack:
        stack += block.blocks if isinstance(block, Fold) else ()
    found = [block.name for block in stack if isinstance(block, Figure)]
    assert len(set(found)) == len(found)
    assert {"radii-1-1", "run-1-attacks", "run-2-attacks"} <= set(found)
    page = html.page(document)
    assert "var(--series-1)" in page and "--series-6" in page
    assert not re.findall(r"(?:fill|stroke): #", "".join(re.findall(r"<svg.*?</svg>", page, re.S)))


def test_one_structure_alone_is_no_comparison(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"{seed}", seed=seed, best=with_curves(RADII))
    assert curves.families(cells.groups(load([tmp_path]).finished)) == {}


def test_seeds_are_one_line_with_their_range(tmp_path):
    for seed, last in enumerate((0.2, 0.4)):
        radii = curve("eps", RADII.values, (0.9, 0.7, 0.55, last))
        write_run(tmp_path / f"{seed}", seed=seed, best=with_curves(radii))
    write_run(tmp_path / "dss", layer="dss", best=with_curves(RADII))
    ((family, members),) = curves.families(cells.groups(load([tmp_path]).finished)).items()
    svg = curves.comparison(members, family, "TRADES", ["S4", "DSS"], level=0.95)
    assert lines(svg, style.SERIES[0]) == [4]


def test_more_structures_than_colours_still_look_different():
    looks = [curves._series(at) for at in range(18)]
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == 18


def test_colours_can_all_be_replaced_by_the_page(run):
    for svg in curves.of_run(run, level=0.95):
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= set(style.VARIABLES)
