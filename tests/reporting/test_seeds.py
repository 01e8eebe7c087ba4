"""Verdicts over seeds: against scipy's t test, and by what words must mean."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robustssm.reporting import seeds
from robustssm.reporting.seeds import Part

NUMBERS = st.lists(st.integers(-500, 500).map(lambda n: n / 10), min_size=2, max_size=9)


@given(values=NUMBERS, beyond=st.sampled_from([-3.0, 0.0, 2.0]))
def test_p_is_that_of_scipys_t_test(values, beyond):
    p = seeds.p_of_mean(values, beyond)
    if len(set(values)) == 1:
        assert p == (1.0 if values[0] == beyond else 0.0)
    else:
        assert p == pytest.approx(stats.ttest_1samp(values, beyond).pvalue, rel=1e-6, abs=1e-12)


@given(values=NUMBERS.filter(lambda v: len(set(v)) > 1))
def test_intervals_and_p_agree_for_a_single_comparison(values):
    (part,) = seeds.corrected([Part(label="a", values=tuple(values))])
    low, high = part.interval(0.95)
    assert (part.word(0.95) == "cannot tell") == (low < 0 < high)


@given(values=NUMBERS, beyond=st.sampled_from([0.0, 3.0]))
def test_turning_the_claim_round_turns_the_verdict(values, beyond):
    (part,) = seeds.corrected([Part(label="a", values=tuple(values), beyond=beyond)])
    turned = dataclasses.replace(part, sign=-1)
    words = {"holds": "fails", "fails": "holds", "cannot tell": "cannot tell"}
    assert turned.word(0.95) == words[part.word(0.95)]


def test_one_seed_decides_nothing_but_a_count_does():
    assert seeds.corrected([Part(label="a", values=(9.0,))])[0].word(0.95) == "cannot tell"
    assert Part(label="a", values=(9.0,), certain=True).word(0.95) == "holds"
    assert Part(label="a", values=(0.0,), certain=True).word(0.95) == "fails"  # not above 0


def test_p_is_corrected_for_all_comparisons():
    parts = seeds.corrected([Part(label="a", values=(1.0, 2.0, 3.0))] * 3)
    p = stats.ttest_1samp((1.0, 2.0, 3.0), 0.0).pvalue
    assert [part.adjusted for part in parts] == pytest.approx([3 * p] * 3)
    assert parts[0].p == pytest.approx(p)


def test_a_claim_about_all_holds_if_every_one_does_and_fails_if_one_does():
    up, flat = (5.0, 5.2, 5.4), (-1.0, 1.2, 0.1)
    above = [Part(label="a", values=up), Part(label="b", values=up)]
    assert seeds.together(seeds.corrected(above), 0.95) == "holds"
    mixed = [*above, Part(label="c", values=flat)]
    assert seeds.together(seeds.corrected(mixed), 0.95) == "cannot tell"
    down = [*mixed, Part(label="d", values=(-50.0, -50.1, -50.2))]
    assert seeds.together(seeds.corrected(down), 0.95) == "fails"
    assert seeds.together((), 0.95) == "cannot tell"


def test_many_comparisons_do_not_fail_a_claim_by_chance():
    weak = Part(label="a", values=(-1.0, -1.2, -1.9))  # p = 0.04 by itself
    assert seeds.together(seeds.corrected([weak]), 0.95) == "fails"
    others = [Part(label=f"{n}", values=(1.0, -1.1, 0.2)) for n in range(9)]
    assert seeds.together(seeds.corrected([weak, *others]), 0.95) == "cannot tell"


@pytest.mark.parametrize(
    "ends, word", [((1.1, 9.0), "holds"), ((0.2, 0.9), "fails"), ((0.5, 2.0), "cannot tell")]
)
def test_an_interval_found_elsewhere_decides(ends, word):
    assert Part(label="a", values=(1.5,), beyond=1.0, ends=ends).word(0.95) == word


def test_the_average_is_over_comparisons_seed_by_seed():
    parts = [Part(label="a", values=(1.0, 3.0)), Part(label="b", values=(3.0, 5.0))]
    assert seeds.average(parts).values == (2.0, 4.0)
    assert seeds.average([*parts, Part(label="c", values=(1.0,))]) is None
