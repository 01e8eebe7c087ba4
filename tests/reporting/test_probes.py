"""Probe files: read, refused with their reason, and listed in the fold of their run."""

import dataclasses
import json
import math

import pytest

from robustssm.records import Quantity, violations
from robustssm.reporting import html, probes, write_report
from robustssm.reporting.base import Fold, Table
from robustssm.reporting.load import load
from robustssm.reporting.overview import Overview
from tests.reporting import probed
from tests.reporting.synthetic import write_run
from tests.reporting.test_html import HOSTILE, Page

NEW = {"overfitting", "attribution", "bounds", "growth", "spectrum", "relation", "left-out"}


def tables(blocks):
    stack = list(blocks)
    for block in stack:
        stack += block.blocks if isinstance(block, Fold) else ()
    return [block for block in stack if isinstance(block, Table)]


def test_results_are_read_as_they_were_written(tmp_path):
    written = probed.all_probes("s4", 2.0)
    probed.write_probes(write_run(tmp_path / "a"), written)
    (run,) = load([tmp_path]).finished
    assert list(run.probes) == sorted(each.probe for each in written)
    assert all(run.probes[each.probe] == each for each in written)
    assert run.damaged == ()


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda data: data.pop("quantities"), "quantities"),
        (lambda data: data["quantities"][0]["values"].pop(), "one value for each"),
        (lambda data: data["quantities"][0].update(name=3), "must be words; got 3"),
        (lambda data: data["quantities"][0]["values"].__setitem__(0, "many"), "many"),
        (lambda data: data["quantities"][0].update(axes=7), "TypeError"),
        (lambda data: data["quantities"][0].update(side="upper"), "both `bounds` and `side`"),
        (lambda data: data.update(settings=[]), "settings must be an object"),
        (lambda data: data["quantities"].append(data["quantities"][0]), "each quantity once"),
        (None, "spectrum.json"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(tmp_path, damage, reason):
    path = probed.write_probes(write_run(tmp_path / "a"), probed.all_probes("s4", 1.0))
    file = path / "probes" / "spectrum.json"
    if damage is None:
        file.write_text(file.read_text()[:200])
    else:
        data = json.loads(file.read_text())
        damage(data)
        file.write_text(json.dumps(data))
    (run,) = load([tmp_path]).finished
    assert list(run.probes) == ["error_bounds", "error_growth", "feature_shift"]
    (left_out,) = run.damaged
    assert left_out.name == "a/probes/spectrum.json"
    assert reason in left_out.reason and "probes/spectrum.json" in left_out.reason
    assert str(tmp_path) not in left_out.reason


def test_damaged_files_are_listed_and_the_run_stays(tmp_path):
    path = probed.write_probes(write_run(tmp_path / "a"), [probed.feature_shift(("ssm",))])
    (path / "probes" / "spectrum.json").write_text("{")
    document = Overview().render(load([tmp_path]))
    section = document.sections[-1]
    assert (section.name, section.title) == ("left-out", "Damaged files")
    (table,) = section.blocks
    assert table.groups[0].rows[0].head == "a/probes/spectrum.json"
    assert {"runs", "attribution"} <= {each.name for each in document.sections}


def test_without_probes_the_report_is_what_it_was(tmp_path):
    path = write_run(tmp_path / "runs" / "a")
    before = write_report([tmp_path / "runs"], tmp_path / "one")
    names = {s.name for s in Overview().render(load([tmp_path / "runs"])).sections}
    assert not NEW & names
    (path / "probes").mkdir()
    after = write_report([tmp_path / "runs"], tmp_path / "two")
    assert before.html.read_bytes() == after.html.read_bytes()
    assert before.markdown.read_bytes() == after.markdown.read_bytes()


def test_a_whole_grid_is_a_page_with_names_of_its_own_and_the_same_bytes(tmp_path):
    for layer in ("s4", "mamba"):
        path = write_run(tmp_path / "runs" / layer, layer=layer, splits=("train", "test"))
        probed.write_probes(path, probed.all_probes(layer, 1.0))
    first = Overview().render(load([tmp_path / "runs"]))
    page = Page(html.page(first))
    assert len(page.ids) == len(set(page.ids))
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert {s.name for s in first.sections} >= {
        "overfitting",
        "attribution",
        "bounds",
        "growth",
        "spectrum",
    }
    assert first == Overview().render(load([tmp_path / "runs"]))


def test_every_quantity_is_in_the_fold_of_its_run(tmp_path):
    extra = Quantity(name="loudness", text="How loud", values=(1234.5,), unit="dB")
    none = Quantity(
        name="nothing", text="t", values=(math.inf, None), axes=(probed.axis("layer", 2),)
    )
    written = (*probed.all_probes("s4", 1.0), probed.of("own_probe", extra, none))
    probed.write_probes(write_run(tmp_path / "a"), written)
    (run,) = load([tmp_path]).finished
    folds = list(probes.of_run(run, "run-1"))
    assert [fold.name for fold in folds] == [f"run-1-probe-{at}" for at in range(1, 6)]
    shown = tables(folds)
    captions = " ".join(t.caption for t in shown)
    heads = [row.head for t in shown for g in t.groups for row in g.rows]
    for each in written:
        for quantity in each.quantities:
            assert f"{quantity.name}: " in captions or quantity.name in heads
    assert "How loud. Unit: dB." in [
        row.cells[0].value for t in shown for g in t.groups for row in g.rows
    ]
    last = next(t for t in shown if t.caption.startswith("nothing")).groups[0].rows[0].cells
    assert [cell.value for cell in last] == ["∞", "–"]
    (long,) = (t for t in shown if t.caption.startswith("shift_map"))
    assert len(long.groups[0].rows) == 4  # splits by layers
    assert [column[0] for column in long.columns] == ["First", "Least", "Median", "Largest", "Last"]


def test_places_are_picked_by_name():
    axes = (probed.axis("split", ("train", "test")), probed.axis("layer", 3))
    values = (1.0, 2.0, None, 4.0, 5.0, 9.0)
    quantity = Quantity(name="q", text="t", values=values, axes=axes)
    assert probes.select(quantity, split="test") == (4.0, 5.0, 9.0) == quantity.where(split="test")
    assert probes.select(quantity, split="test", checkpoint="best") == (4.0, 5.0, 9.0)
    assert probes.select(quantity, split="validation") == ()
    assert probes.along(quantity, "layer") == (2.5, 3.5, 9.0)
    assert probes.average(probes.select(quantity, split="train")) == 1.5
    assert probes.average([None]) is None


def test_texts_of_probes_are_escaped(tmp_path):
    quantity = Quantity(
        name=HOSTILE, text=HOSTILE, values=(1.0,), axes=(probed.axis(HOSTILE, (HOSTILE,)),)
    )
    shift = probed.feature_shift(("ssm",))
    parts = probed.axis("component", (HOSTILE,))
    shift = dataclasses.replace(
        shift,
        quantities=(
            Quantity(name="kl_change", text=HOSTILE, values=(1.0,), axes=(parts,)),
            quantity,
        ),
        remarks=(HOSTILE,),
    )
    probed.write_probes(write_run(tmp_path / "runs" / "a"), {"feature_shift": shift, "x": shift})
    paths = write_report([tmp_path / "runs"], tmp_path / "out")
    page = Page(paths.html.read_text())
    assert "img" not in {tag for tag, _ in page.tags}
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]  # ours
    assert not {"\u202e", "\x00"} & set(paths.html.read_text())
    assert violations(shift) == ()


@pytest.mark.parametrize(
    ("change", "text"),
    [(0.5, "+50"), (-0.00086, "−0.086"), (0.994, "+99"), (0.996, "+100"), (15.94, "+1,594")],
)
def test_percent(change, text):
    assert probes.percent(change) == f"{text}\N{NO-BREAK SPACE}%"
