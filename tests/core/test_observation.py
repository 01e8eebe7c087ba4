"""Who listens is told of every part; who does not costs nothing and is told nothing."""

import threading

import pytest
import torch
from torch import nn

from robustssm.core.observation import backwards, observe, observed, observing
from robustssm.core.rng import Noise

MODULE = nn.Identity()
X = Noise(0).normal(2, 5, 3)


def report():
    return observe(MODULE, "ssm", X, X + 1)


def test_the_part_goes_on_with_what_it_made():
    after = X + 1
    assert observe(MODULE, "gate", X, after) is after
    with observing(lambda *told: None):
        assert observe(MODULE, "gate", X, after) is after


def test_a_listener_is_told_while_it_listens():
    seen = []
    report()
    with observing(lambda *told: seen.append(told)):
        assert observed()
        report()
    report()
    ((module, part, before, after),) = seen
    assert module is MODULE and part == "ssm" and not observed()
    assert torch.equal(before, X) and torch.equal(after, X + 1)


def test_the_inner_listener_hears_alone_and_errors_give_the_ear_back():
    outer, inner = [], []
    with observing(lambda *told: outer.append(told)):
        with pytest.raises(ZeroDivisionError), observing(lambda *told: inner.append(told)):
            report()
            raise ZeroDivisionError
        report()
    assert len(inner) == len(outer) == 1 and not observed()


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_reversed_sequences_are_told_in_the_order_of_time(turns):
    def turned(times):
        if not times:
            return report()
        with backwards():
            return turned(times - 1)

    seen = []
    with observing(lambda *told: seen.append(told)):
        assert torch.equal(turned(turns), X + 1), "what the part made is not turned"
        report()
    (_, _, before, after), (_, _, forward, _) = seen
    expected = X.flip(1) if turns % 2 else X
    assert torch.equal(before, expected) and torch.equal(after, expected + 1)
    assert torch.equal(forward, X)


def test_nobody_listens_backwards():
    with backwards():
        assert not observed()
        report()


def test_another_thread_is_not_heard():
    seen = []
    with observing(lambda *told: seen.append(told)):
        thread = threading.Thread(target=report)
        thread.start()
        thread.join()
    assert not seen
