"""Two runs against each other: the counts and tests of a known table, and what is refused."""

import json

import pytest
from scipy import stats

from robustssm.records import Flagged
from robustssm.reporting.contrast import contrast, over_seeds
from robustssm.reporting.matching import by_recipe, match, read_runs
from robustssm.reporting.pairs import holm, mcnemar, paired
from tests.reporting.synthetic import N, attacked, result, suite, write_run

PGD = {"name": "pgd", "steps": 10, "step_size": 0.25}


def read(path):
    (run,) = read_runs(path)
    return run


def pair(tmp_path, first, second, **settings):
    """Two runs with these results of their best checkpoints."""
    a = write_run(tmp_path / "a", best=first, last=first, **settings.get("a", {}))
    b = write_run(tmp_path / "b", best=second, last=second, **settings.get("b", {}))
    return read(a), read(b)


def test_counts_differences_and_tests_of_a_known_table(tmp_path):
    # Flags of the synthetic runs are nested: the first examples are the easy ones.
    a, b = pair(tmp_path, result(0.9, {"pgd-10": 0.6}), result(0.85, {"pgd-10": 0.3}))
    found = contrast(a, b)
    clean, pgd, worst = found.lines
    assert [line.metric for line in found.lines] == ["clean", "pgd-10", "worst case"]
    assert (clean.n, clean.first, clean.second) == (N, 0.9, 0.85)
    assert (clean.only_first, clean.only_second) == (10, 0)
    assert clean.p == pytest.approx(2 * 0.5**10) == stats.binomtest(10, 10).pvalue
    assert (pgd.only_first, pgd.only_second, pgd.difference) == (60, 0, pytest.approx(0.3))
    assert (worst.first, worst.second) == (0.6, 0.3)
    rows = (a.checkpoints["best"].result.clean, b.checkpoints["best"].result.clean)
    assert clean.interval == paired(*rows) and clean.p == mcnemar(*rows)
    assert tuple(line.p_holm for line in found.lines) == holm([line.p for line in found.lines])


def test_a_run_against_itself_differs_in_nothing(tmp_path):
    a = read(write_run(tmp_path / "a"))
    found = contrast(a, a)
    assert found.settings == ()
    for line in found.lines:
        assert (line.difference, line.only_first, line.only_second, line.p) == (0, 0, 0, 1)
        assert line.interval[0] == -line.interval[1]


def test_turning_the_arguments_turns_the_signs(tmp_path):
    a, b = pair(tmp_path, result(0.9, {"pgd-10": 0.6}), result(0.85, {"pgd-10": 0.3}))
    for there, back in zip(contrast(a, b).lines, contrast(b, a).lines, strict=True):
        assert there.difference == -back.difference and there.p == back.p
        assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]))
        assert (there.only_first, there.only_second) == (back.only_second, back.only_first)


def test_settings_that_differ_are_named(tmp_path):
    same = result(0.9, {"pgd-10": 0.6})
    a, b = pair(tmp_path, same, same, a={"epochs": 4}, b={"layer": "mamba", "epochs": 5})
    assert set(contrast(a, b).settings) == {
        ("epochs", "4", "5"),
        ("model.layer.name", "s4", "mamba"),
    }


def test_the_last_checkpoint_and_a_single_attack(tmp_path):
    a = read(write_run(tmp_path / "a", last=result(0.5, {"pgd-10": 0.2, "pgd-50x5": 0.1})))
    b = read(write_run(tmp_path / "b"))
    found = contrast(a, b, checkpoint="last", attack="pgd-10")
    assert [line.metric for line in found.lines] == ["clean", "pgd-10"]
    assert found.lines[1].first == 0.2
    with pytest.raises(
        ValueError, match=r"No attack of both runs is called 'pgd-11'. Did you mean"
    ):
        contrast(a, b, attack="pgd-11")
    with pytest.raises(ValueError, match=r"No checkpoint of A \(a\) is called 'first'"):
        contrast(a, b, checkpoint="first")


@pytest.mark.parametrize(
    "other, reason",
    [
        (result(0.9, {"pgd-10": 0.6}, threat={"norm": "linf", "eps": 0.2}), "threat.eps: 0.1 in A"),
        (result(0.9, {"pgd-10": 0.6}, n=100), "test examples: 200 in A, 100 in B"),
        (result(0.9, {"pgd-10": 0.6}, planned=500), "B is partial: 200 of 500"),
        (result(0.9, {"pgd-10": 0.6}, data_hash="ef"), "the test examples themselves"),
    ],
)
def test_what_is_not_about_the_same_is_refused(tmp_path, other, reason):
    a, b = pair(tmp_path, result(0.9, {"pgd-10": 0.6}, data_hash="ab"), other)
    with pytest.raises(ValueError, match=reason):
        contrast(a, b)


def test_another_data_set_is_refused(tmp_path):
    same = result(0.9, {"pgd-10": 0.6})
    a, b = pair(tmp_path, same, same, b={"dataset": "mnist"})
    with pytest.raises(ValueError, match="of digits in A, of MNIST in B"):
        contrast(a, b)


def test_attacks_that_differ_are_left_out_and_named(tmp_path):
    evaluated = result(0.9, {"pgd-10": 0.6, "fgsm": 0.7})
    fgsm = {"name": "fgsm"}
    a, b = pair(
        tmp_path,
        evaluated,
        evaluated,
        a={"attacks": [PGD, fgsm]},
        b={"attacks": [PGD | {"step_size": 0.5}, fgsm]},
    )
    found = contrast(a, b)
    assert [line.metric for line in found.lines] == ["clean", "fgsm", "worst case"]
    assert found.lines[2].first == 0.7, "over what was compared"
    assert "PGD-10 is left out, as its settings differ: pgd-10.step_size: 0.25" in found.remarks[0]
    assert any("worst case is that over the attacks compared" in text for text in found.remarks)
    with pytest.raises(ValueError, match=r"pgd-10.step_size: 0.25 in A, 0.5 in B"):
        contrast(a, b, attack="pgd-10")


def test_settings_of_a_recipe_that_was_evaluated_otherwise_are_not_taken_for_the_attacks(tmp_path):
    listed = {"attacks": [PGD, PGD | {"steps": 50}]}
    a, b = pair(
        tmp_path,
        result(0.9, {"fgsm": 0.7, "pgd-10": 0.6}),
        result(0.9, {"pgd-10": 0.6, "pgd-50": 0.5}),
        a=listed,
        b=listed,
    )
    found = contrast(a, b)
    assert [line.metric for line in found.lines] == ["clean", "pgd-10", "worst case"]
    assert "Only in A: FGSM." in found.remarks and "Only in B: PGD-50." in found.remarks


def test_settings_of_the_evaluation_itself_come_before_those_of_the_recipe(tmp_path):
    plain = result(0.9, {"pgd-10": 0.6}, settings={"pgd-10": PGD})
    finer = result(0.9, {"pgd-10": 0.6}, settings={"pgd-10": PGD | {"step_size": 0.1}})
    a, b = pair(tmp_path, plain, finer, a={"attacks": [PGD]}, b={"attacks": [PGD]})
    found = contrast(a, b)
    assert [line.metric for line in found.lines] == ["clean"]
    assert "pgd-10.step_size: 0.25 in A, 0.1 in B" in found.remarks[0]


def test_suites_of_other_stages_are_left_out(tmp_path):
    label = "autoattack_standard"
    full = attacked(0.9, (0.5, 0.45, 0.45, 0.4))
    short = result(0.9, {label: 0.45}, suites={label: suite(0.9, (0.5, 0.45))})
    a, b = pair(tmp_path, full, short)
    found = contrast(a, b)
    assert [line.metric for line in found.lines] == ["clean"]
    assert "AutoAttack is left out" in found.remarks[0]


def test_numbers_in_doubt_are_said_to_be(tmp_path):
    bad = Flagged(name="zero_gradients", message="none", severity="invalid")
    a, b = pair(tmp_path, result(0.9, {"pgd-10": 0.6}, warnings=(bad,)), result(0.9, {"pgd-10": 1}))
    assert "The numbers of a are unreliable" in contrast(a, b).remarks[0]


def rates(seed, *, up):
    clean = 0.8 + 0.01 * seed
    return result(clean + (0.02 * seed if up else 0), {"pgd-10": 0.5 + (0.1 if up else 0)})


def both_sides(tmp_path, seeds):
    for side, up, layer in (("a", True, "s4"), ("b", False, "mamba")):
        for seed in seeds:
            best = rates(seed, up=up)
            write_run(tmp_path / side / f"s{seed}", best=best, last=best, layer=layer, seed=seed)
    return read_runs(tmp_path / "a"), read_runs(tmp_path / "b")


def test_seeds_are_paired_and_averaged(tmp_path):
    matched = match(*both_sides(tmp_path, (0, 1, 2)))
    assert [(a.seed, b.seed) for a, b in matched.pairs] == [(0, 0), (1, 1), (2, 2)]
    (family,) = by_recipe(matched.pairs)
    clean, pgd, _ = over_seeds([contrast(a, b) for a, b in family])
    assert clean.differences == pytest.approx((0, 0.02, 0.04))
    expected = stats.t.interval(0.95, 2, loc=0.02, scale=stats.sem([0, 0.02, 0.04]))
    assert clean.mean == pytest.approx(0.02) and clean.spread == pytest.approx(0.02)
    assert clean.interval == pytest.approx(expected)
    assert pgd.mean == pytest.approx(0.1) and pgd.spread == pytest.approx(0, abs=1e-12)


def test_two_seeds_give_no_interval(tmp_path):
    pairs = match(*both_sides(tmp_path, (0, 1))).pairs
    found = over_seeds([contrast(a, b) for a, b in pairs])
    assert {each.interval for each in found} == {None}
    assert all(each.spread is not None for each in found)
    json.dumps([each.to_dict() for each in found])


def test_runs_without_a_partner_are_named(tmp_path):
    first, second = both_sides(tmp_path, (0, 1, 2))
    matched = match(first[:2], second[1:])
    assert [a.seed for a, _ in matched.pairs] == [1]
    assert matched.alone == ("A: s0", "B: s2")
    with pytest.raises(
        ValueError, match=r"paired by recipe and seed.*A has - seed 0, B has - seed 1"
    ):
        match(first[:1], second[1:])


def test_several_recipes_are_paired_by_recipe(tmp_path):
    for side in ("a", "b"):
        for layer in ("s4", "mamba"):
            write_run(tmp_path / side / layer, layer=layer)
    matched = match(read_runs(tmp_path / "a"), read_runs(tmp_path / "b"))
    assert [(a.name, b.name) for a, b in matched.pairs] == [("mamba", "mamba"), ("s4", "s4")]
    assert len(by_recipe(matched.pairs)) == 2


def test_repetitions_have_no_single_partner(tmp_path):
    first, second = both_sides(tmp_path, (0, 1))
    with pytest.raises(ValueError, match=r"A has two of recipe digits\.s4_trades with seed 0"):
        match((*first, first[0]), second)
