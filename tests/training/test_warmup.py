"""The radius rises over the share of training that is asked for, and not otherwise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustssm.attacks.threat import Threat
from robustssm.core.config import from_dict, override, to_dict
from robustssm.training.objective import Objective
from robustssm.training.pgd_training import PGDTraining
from robustssm.training.warmup import ramped

THREAT = Threat(eps=0.2)
SHARES = st.floats(0, 0.99)


@given(st.lists(SHARES, min_size=2, max_size=2, unique=True), st.floats(0, 1))
def test_eps_is_nothing_then_rises_then_stays(span, progress):
    begin, end = sorted(span)
    eps = ramped(THREAT, (begin, end), progress).eps
    if progress <= begin:
        assert eps == 0
    elif progress >= end:
        assert eps == THREAT.eps
    else:
        assert eps == pytest.approx(0.2 * (progress - begin) / (end - begin), rel=1e-12)


@given(SHARES, st.floats(0, 1))
def test_one_share_is_a_rise_from_the_beginning(share, progress):
    eps = ramped(THREAT, share, progress).eps
    assert eps == pytest.approx(0.2 * min(1.0, progress / share) if share else 0.2, rel=1e-12)


def test_both_forms_survive_json_and_overrides():
    base = PGDTraining(threat=THREAT, eps_warmup=0.5)
    held = override(base, {"eps_warmup": "[0.25, 0.75]"})
    assert held.eps_warmup == (0.25, 0.75) and held.at(0.5).threat.eps == pytest.approx(0.1)
    for objective in (base, held):
        assert from_dict(Objective, to_dict(objective)) == objective
    assert override(held, {"eps_warmup": "0.5"}) == base


@pytest.mark.parametrize("wrong", ["[0.7, 0.3]", "[0.3, 0.3]", "[0.5, 1.0]", "[-0.1, 0.5]", "1.0"])
def test_what_is_no_share_is_refused(wrong):
    with pytest.raises(ValueError, match="eps_warmup"):
        override(PGDTraining(threat=THREAT), {"eps_warmup": wrong})
