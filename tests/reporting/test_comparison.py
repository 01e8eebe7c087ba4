"""Paired comparisons: structures against the best one, released against correct attacks."""

import pytest
from scipy.stats import binomtest

from robustssm.records import EvaluationResult, Flagged
from robustssm.reporting import cells, comparison, inflation
from robustssm.reporting.base import MISSING
from robustssm.reporting.load import load
from tests.reporting.synthetic import ATTACKS, THREAT, attacked, result, write_run

GRAVE = Flagged(name="masking", message="gradients vanish", severity="invalid")


def flags(*runs):
    """Flags in runs of equal ones: (3, True), (2, False) -> 3 that hold, then 2 that do not."""
    return tuple(value for count, value in runs for _ in range(count))


def evaluated(row, **more):
    return EvaluationResult(
        clean=(True,) * len(row), survived={"pgd-10": row}, threat=THREAT, **more
    )


def made(path, kind=comparison):
    return kind.table(cells.groups(load([path]).finished), marks={}, level=0.95)


def shown(table, group=0):
    return {row.head: [cell.value for cell in row.cells] for row in table.groups[group].rows}


def test_structures_are_compared_with_the_best_on_the_same_examples(tmp_path):
    write_run(tmp_path / "a", layer="s4", best=evaluated(flags((60, True), (40, False))))
    write_run(
        tmp_path / "b", layer="dss", best=evaluated(flags((10, False), (70, True), (20, False)))
    )
    write_run(
        tmp_path / "c", layer="s5", best=evaluated(flags((5, False), (45, True), (50, False)))
    )
    table = made(tmp_path)
    s4, s5 = binomtest(10, 30, 0.5).pvalue, binomtest(5, 35, 0.5).pvalue
    assert 3 * s5 < 0.001 < s4 < 0.1
    corrected = s4  # the largest of three: multiplied by one
    assert shown(table) == {
        "S4": ["0", "60.0", "−10.0", "20 / 10", f"{corrected:.3f}", f"{corrected:.3f}"],
        "DSS": ["0", "70.0", "the best", *[MISSING.value] * 3],
        "S5": ["0", "45.0", "−25.0", "30 / 5", "< 0.001", "< 0.001"],
    }
    assert "two trained models, of one seed each, not two methods" in table.caption
    assert "corrected for all pairs" in table.caption
    assert table.groups[0].title.endswith("TRADES; n = 100; attacks: PGD-10")


def test_the_worst_case_is_what_is_compared(tmp_path):
    write_run(tmp_path / "a", layer="s4", best=result(0.9, {"pgd-10": 0.6, "square": 0.3}))
    write_run(tmp_path / "b", layer="dss", best=result(0.9, {"pgd-10": 0.5, "square": 0.4}))
    assert {head: row[1:3] for head, row in shown(made(tmp_path)).items()} == {
        "S4": ["30.0", "−10.0"],
        "DSS": ["40.0", "the best"],
    }


OTHERS = {
    "other attacks": {"best": result(0.9, {"pgd-20": 0.5})},
    "fewer examples": {"best": result(0.9, ATTACKS, n=100)},
    "other data": {"best": result(0.9, ATTACKS, data_hash="f00")},
    "another test set": {"best": result(0.9, ATTACKS), "dataset": {"name": "digits", "test": 7}},
    "other files": {"best": result(0.9, ATTACKS), "data": {"files": {"x": "sha256:1"}}},
    "another method": {"best": result(0.9, ATTACKS), "method": "standard"},
    "another threat": {"best": result(0.9, ATTACKS, threat=THREAT | {"eps": 0.2})},
    "unreliable": {"best": result(0.9, ATTACKS, warnings=(GRAVE,))},
    "partial": {"best": result(0.9, ATTACKS, planned=1000)},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_is_not_comparable_is_not_compared(tmp_path, other):
    write_run(tmp_path / "a", layer="s4", best=result(0.9, ATTACKS))
    write_run(tmp_path / "b", **{"layer": "dss"} | other)
    assert len(load([tmp_path]).finished) == 2
    assert made(tmp_path) is None


def test_who_is_left_out_is_said_with_the_reason(tmp_path):
    for name, more in (("s4", {}), ("dss", {}), ("s5", {"warnings": (GRAVE,)})):
        write_run(tmp_path / name, layer=name, best=result(0.9, ATTACKS, **more))
    write_run(tmp_path / "mega", layer="mega", best=result(0.9, ATTACKS, planned=300))
    write_run(tmp_path / "mamba", layer="mamba", best=result(0.9, {"pgd-10": 0.8}))
    table = made(tmp_path)
    assert list(shown(table)) == ["S4", "DSS"]
    assert sorted(table.notes) == [
        "Not compared, as a time limit ended the evaluation: Mega, TRADES.",
        "Not compared, as no other structure was attacked in the same way on the same examples: "
        "Mamba, TRADES.",
        "Not compared, as the evaluation is unreliable: S5, TRADES.",
    ]


@pytest.mark.parametrize(
    "one, two",
    [
        ({"data_hash": "f00"}, {"data_hash": "f00", "seed": 3}),
        ({"files": {"here": "1"}}, {"files": {"elsewhere": "1"}}),
        ({"validation": 50}, {"validation": 60}),
    ],
    ids=["same hash", "moved file", "other validation"],
)
def test_the_same_examples_are_recognised(tmp_path, one, two):
    for name, settings in (("s4", one), ("dss", two)):
        write_run(
            tmp_path / name,
            layer=name,
            best=result(0.9, ATTACKS, data_hash=settings.get("data_hash")),
            data={"files": settings.get("files", {})},
            dataset={
                "name": "arrays",
                "path": "".join(settings.get("files", ["p"])),
                "validation": settings.get("validation", 1),
            },
        )
    runs = load([tmp_path]).finished
    assert len({run.examples for run in runs}) == 1


def test_one_seed_that_all_have_stands_for_several(tmp_path):
    for layer, seeds in (("s4", (0, 1, 2)), ("dss", (1, 2))):
        for seed in seeds:
            write_run(tmp_path / f"{layer}{seed}", layer=layer, seed=seed)
    assert [row[0] for row in shown(made(tmp_path)).values()] == ["1", "1"]


def test_what_the_released_attack_overstates(tmp_path):
    attacks = {"pgd_released-10": 0.7, "pgd-10": 0.6, "fgsm": 0.1}
    best = attacked(0.9, (0.5, 0.45, 0.45, 0.45), attacks=attacks)
    write_run(tmp_path / "a", best=best)
    write_run(tmp_path / "b", layer="dss", best=result(0.9, ATTACKS))
    table = made(tmp_path, inflation)
    assert shown(table) == {"S4, TRADES, 10 steps": ["70.0", "60.0", "45.0", "+10.0", "+25.0"]}
    gap = table.groups[0].rows[0].cells[3]
    assert gap.details == ("[+5.7, +14.1]", "p < 0.001")  # 20 of 200, all on one side
    assert table.groups[0].title == "digits, ℓ∞, ε = 0.1, inputs in [0, 1]"


def test_without_a_correct_attack_of_as_many_steps_that_column_is_empty(tmp_path):
    write_run(tmp_path / "a", best=result(0.9, {"pgd_released-10": 0.7, "pgd-50x5": 0.5}))
    row = shown(made(tmp_path, inflation))["S4, TRADES, 10 steps"]
    assert row == ["70.0", MISSING.value, "50.0", MISSING.value, "+20.0"]


@pytest.mark.parametrize("attacks", [{"pgd-10": 0.6}, {"pgd_released-10": 0.7}, {}])
def test_without_both_attacks_there_is_no_table(tmp_path, attacks):
    write_run(tmp_path / "a", best=result(0.9, attacks), last=result(0.9, {}))
    assert made(tmp_path, inflation) is None


def test_several_seeds_are_averaged_where_they_overstate(tmp_path):
    for seed, rate in enumerate((0.7, 0.8)):
        best = result(0.9, {"pgd_released-10": rate, "pgd-10": 0.6})
        write_run(tmp_path / f"{seed}", seed=seed, best=best)
    (row,) = made(tmp_path, inflation).groups[0].rows
    assert row.cells[3].value == "+15.0"
    assert row.cells[3].details[1:] == ("sd 7.1", "2 seeds")
