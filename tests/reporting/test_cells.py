"""Which runs share a cell, and the numbers and intervals in it."""

import pytest

from robustssm.reporting import cells
from robustssm.reporting.base import MISSING
from robustssm.reporting.load import load
from tests.reporting.synthetic import ATTACKS, result, write_run


def groups(path):
    return cells.groups(load([path]).finished)


def accuracy(runs, key, checkpoint="best"):
    return cells.accuracy(runs, checkpoint, key, level=0.95, marks={})


def test_one_run_has_its_wilson_interval(tmp_path):
    # 180 of 200: centre (0.9 + z^2/400) / (1 + z^2/200), z = 1.959964, worked out by hand.
    write_run(tmp_path / "a", best=result(0.9, {"pgd-10": 0.0}))
    (group,) = groups(tmp_path)
    assert accuracy(group.runs, cells.CLEAN) == cells.Cell(value="90.0", details=("[85.1, 93.4]",))
    assert accuracy(group.runs, "pgd-10").details == ("[0.0, 1.9]",)


def test_seeds_are_averaged_and_counted(tmp_path):
    for seed, rate in enumerate((0.50, 0.53, 0.56)):
        best = result(0.9, {"pgd-10": rate})
        write_run(tmp_path / f"{seed}", seed=seed, best=best, last=result(0.9, {"pgd-10": 0.5}))
    (group,) = groups(tmp_path)
    assert [run.seed for run in group.runs] == [0, 1, 2]
    assert accuracy(group.runs, "pgd-10") == cells.Cell(
        value="53.0", details=("[45.5, 60.5]", "sd 3.0", "3 seeds")
    )
    gap = cells.difference(group.runs, "pgd-10", level=0.95, marks={})
    assert (gap.value, gap.details) == ("+3.0", ("[−4.5, +10.5]", "sd 3.0", "3 seeds"))


def test_a_repeated_seed_is_not_another_seed(tmp_path):
    write_run(tmp_path / "early", provenance={"started": "2026-01-01T00:00:00+00:00"})
    write_run(tmp_path / "late", provenance={"started": "2026-02-01T00:00:00+00:00"})
    (group,) = groups(tmp_path)
    assert [run.name for run in group.runs] == ["late"]
    assert group.repeats == ("early",)


def test_other_settings_are_other_rows(tmp_path):
    write_run(tmp_path / "short", epochs=4)
    write_run(tmp_path / "long", epochs=8)
    write_run(tmp_path / "quiet", epochs=8, seed=1, log_every=100)  # changes no number
    found = {group.structure: [run.name for run in group.runs] for group in groups(tmp_path)}
    assert found == {"S4 (epochs = 4)": ["short"], "S4 (epochs = 8)": ["long", "quiet"]}


def test_a_setting_that_an_older_record_lacks_is_not_another_one(tmp_path):
    write_run(tmp_path / "old", threat={"norm": "linf", "eps": 0.1})
    write_run(tmp_path / "new", threat={"norm": "linf", "eps": 0.1, "window": None}, seed=1)
    (group,) = groups(tmp_path)
    assert [run.name for run in group.runs] == ["old", "new"]
    assert cells.further_differences([group]) == ()


def test_settings_that_do_not_fit_on_the_page_still_tell_rows_apart(tmp_path):
    for number in (1, 2, 3):
        settings = dict.fromkeys(("a", "b", "c"), 0) | {"d": number, "e": number}
        write_run(tmp_path / f"{number}", **{key: settings[key] for key in settings})
    for other in ("x", "y"):
        write_run(tmp_path / other, a=1, b=1, c=1, d=other, e=0)
    rows = [group.structure for group in groups(tmp_path)]
    assert len(set(rows)) == 5


def test_another_threat_is_another_section(tmp_path):
    weak = {"norm": "linf", "eps": 8 / 255, "bounds": [0.0, 1.0]}
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", layer="dss", best=result(0.9, ATTACKS, threat=weak))
    assert [group.section for group in groups(tmp_path)] == [
        ("digits", "ℓ∞, ε = 0.1, inputs in [0, 1]"),
        ("digits", "ℓ∞, ε = 8/255, inputs in [0, 1]"),
    ]


def test_another_restriction_is_another_section(tmp_path):
    window = {"length": 16, "where": "prefix", "stride": 1}
    for name, more in (("a", {}), ("b", {"window": window, "band": None}), ("c", {"window": None})):
        threat = {"norm": "linf", "eps": 0.1, "bounds": [0.0, 1.0]} | more
        write_run(tmp_path / name, layer=name, best=result(0.9, ATTACKS, threat=threat))
    found: dict[str, list[str]] = {}
    for group in groups(tmp_path):
        found.setdefault(group.section[1], []).append(group.structure)
    assert found == {
        "ℓ∞, ε = 0.1, inputs in [0, 1]": ["a", "c"],
        "ℓ∞, ε = 0.1, inputs in [0, 1], first 16 positions": ["b"],
    }


def test_settings_beside_model_and_method_that_differ_are_told(tmp_path):
    write_run(tmp_path / "a", layer="s4", epochs=4)
    write_run(tmp_path / "b", layer="dss", epochs=9)
    assert cells.further_differences(groups(tmp_path)) == ("epochs",)


def test_what_was_not_measured_is_missing(tmp_path):
    write_run(tmp_path / "a", best=result(0.9, {}), last=result(0.8, {}))
    (group,) = groups(tmp_path)
    assert accuracy(group.runs, "pgd-10") == MISSING
    assert accuracy(group.runs, cells.WORST) == MISSING
    assert cells.difference(group.runs, "pgd-10", level=0.95, marks={}) == MISSING
    assert accuracy(group.runs, cells.CLEAN, "epoch_7") == MISSING


def test_best_that_is_last_has_no_uncertain_difference(tmp_path):
    same = result(0.9, ATTACKS)
    write_run(tmp_path / "a", best=same, last=same, epochs=4, best_epoch=4)
    (group,) = groups(tmp_path)
    gap = cells.difference(group.runs, "pgd-10", level=0.95, marks={})
    assert (gap.value, gap.details) == ("0.0", ("same epoch",))


@pytest.mark.parametrize(
    "points, text", [(0.04, "0.0"), (-0.04, "0.0"), (1.26, "+1.3"), (-2.0, "\N{MINUS SIGN}2.0")]
)
def test_signs(points, text):
    assert cells.signed(points) == text


@pytest.mark.parametrize(
    "p, text",
    [(1.0, "p = 1.000"), (0.0312, "p = 0.031"), (0.001, "p = 0.001"), (9e-4, "p < 0.001")],
)
def test_probabilities(p, text):
    assert cells.probability(p) == text


def test_belief_follows_the_gravest_note():
    assert cells.state({}) == cells.state({"w1": ""}) == "value"
    assert cells.state({"w1": "", "w2": "warning"}) == "suspicious"
    assert cells.state({"w1": "warning", "w2": "invalid"}) == "invalid"
