"""Controls beside what they are compared with, and outside of what claims are about."""

import re
from pathlib import Path

import pytest

from robustssm import recipes
from robustssm.core.config import to_dict
from robustssm.recipes.grids import grid
from robustssm.reporting import cells, controls, evidence, load, names, write_report
from tests.reporting.synthetic import attacked, write_run

PAGE = Path(__file__).parents[2] / "docs" / "controls.md"


def run(root, name, robust, *, seed=0, **settings):
    best = attacked(0.9, (robust, robust - 0.05), attacks={"pgd-10": robust})
    return write_run(
        root / f"{name}_{seed}", recipe=name, seed=seed, best=best, last=best, **settings
    )


def tables(root):
    groups = cells.groups(load.load([root]).finished)
    return [b for b in controls.blocks(groups, marks={}, level=0.95) if hasattr(b, "columns")]


def rows(table):
    heads = [row.head for group in table.groups for row in group.rows]
    entries = [
        dict(zip(table.columns, row.cells, strict=True)) for g in table.groups for row in g.rows
    ]
    return dict(zip(heads, entries, strict=True))


def test_a_control_is_compared_method_by_method_over_shared_seeds(tmp_path):
    bare = {"name": "classifier", "layer": {"name": "s4"}}
    block = {"mixing": "linear", "norm": "pre", "activation": "none", "mixing_activation": "none"}
    for seed, robust in ((0, 0.60), (1, 0.62)):
        run(tmp_path, "digits.s4_pgd", robust, seed=seed, method="pgd_training")
        run(
            *(tmp_path, "digits.s4_affine_pgd", robust - 0.1),
            seed=seed,
            method="pgd_training",
            model={**bare, "block": block},
        )
    run(tmp_path, "digits.s4_affine_trades", 0.9, model={**bare, "block": block})  # no partner
    (table,) = tables(tmp_path)
    ((head, row),) = rows(table).items()
    assert head == "no nonlinearity: S4 \N{RIGHTWARDS ARROW} S4 (affine), PGD-AT"
    gap = row["AutoAttack", "difference"]
    assert gap.value == "\N{MINUS SIGN}10.0" and gap.details[-1] == "2 seeds"
    assert row["PGD-10", "compared with"].value == "61.0"
    assert row["PGD-10", "control"].value == "51.0"
    page = write_report([tmp_path], tmp_path / "out").markdown.read_text()
    assert "What controls say" in page and head in page


def test_the_paper_has_two_gelus_where_small_tiers_have_one(tmp_path):
    run(tmp_path, "digits.s4_pgd", 0.6, method="pgd_training")
    affine = {"mixing": "linear", "norm": "pre", "activation": "none", "mixing_activation": "none"}
    ads = {"name": "adaptive_scaling", "activation": "relu", "form": "scale"}
    model = {"name": "classifier", "layer": {"name": "s4", "scaling": ads}, "block": affine}
    run(tmp_path, "digits.s4_affine_ads_pgd", 0.5, method="pgd_training", model=model)
    head = "GELU instead of AdS: S4 + AdS-ReLU (no GELU) \N{RIGHTWARDS ARROW} S4, PGD-AT"
    assert list(rows(tables(tmp_path)[0])) == [head]
    other = {**model, "layer": {"name": "s4"}, "block": {**affine, "mixing_activation": "gelu"}}
    run(tmp_path, "digits.s4_gelu_pgd", 0.4, method="pgd_training", model=other)
    assert list(rows(tables(tmp_path)[0])) == [head]
    assert rows(tables(tmp_path)[0]).popitem()[1]["PGD-10", "control"].value == "40.0"


def test_cells_without_controls_make_no_section(tmp_path):
    run(tmp_path, "digits.s4_pgd", 0.6, method="pgd_training")
    run(tmp_path, "digits.mega_pgd", 0.6, method="pgd_training", layer="mega")
    assert tables(tmp_path) == []


def test_every_control_has_a_comparison_and_stands_in_the_guide():
    there = {_stem(name) for name in recipes.names()}
    made = {_stem(cell.name) for cell in recipes.controls()}
    named = {name for entry in controls.CONTROLS for name in entry[:2]}
    assert {control for control, _, _ in controls.CONTROLS} == made | {"s4"}
    assert named <= there
    guide = re.findall(r"`(\w+)`", PAGE.read_text())
    assert named <= set(guide)


def _stem(name):
    """A recipe without tier and method."""
    return name.rpartition(".")[2].rpartition("_")[0]


def test_claims_are_not_about_controls():
    found = {
        _stem(entry.recipe): names.model(to_dict(recipes.recipe(entry.recipe))["model"])
        for entry in grid("digits.controls").entries
    }
    kept = {"s4", "s4_ads_relu", "dss", "dss_ads_relu", "mega"}
    assert evidence.controls(found.values()) == {v for k, v in found.items() if k not in kept}


def test_a_form_that_stands_alone_is_no_control():
    assert evidence.controls(["S4 (affine)", "S4 + AdSS-ReLU (no GELU)", "Mega"]) == set()
    assert evidence.controls(["S4 + AdSS-ReLU", "Bidirectional S4", "LRU"]) == set()


@pytest.mark.parametrize("layer, counted", [("s5", True), ("cnn", False), ("attention", False)])
def test_a_baseline_decides_no_claim(tmp_path, layer, counted):
    run(tmp_path, "digits.mega_pgd", 0.6, method="pgd_training", layer="mega")
    run(tmp_path, f"digits.{layer}_pgd", 0.9, method="pgd_training", layer=layer)
    (tier,) = evidence.tiers(cells.groups(load.load([tmp_path]).finished))
    assert len(evidence.Measured(tier).cells()) == 1 + counted
