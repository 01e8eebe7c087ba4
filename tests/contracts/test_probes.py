"""Every registered probe, with all samples of its settings, keeps the contract; it can fail."""

import pytest
import torch

from robustssm.core.config import lookup, names
from robustssm.diagnostics.base import Probe
from robustssm.diagnostics.capture import layers_of
from robustssm.records import Axis, ProbeResult, Quantity
from robustssm.testing.probes import check_probe


def samples():
    return [
        pytest.param(probe, id=f"{name}-{number}")
        for name in names("probe")
        for number, probe in enumerate(lookup("probe", name).samples())
    ]


@pytest.mark.parametrize("probe", samples())
def test_probe_keeps_the_contract(probe):
    check_probe(probe)


def quantity(name="q", **more):
    return Quantity(name=name, text="A number.", values=(1.0,), **more)


def result(*quantities):
    return ProbeResult(probe="made", settings={}, quantities=quantities)


class Made(Probe):
    """A probe that is not registered, and does what it is told."""

    name = "made"

    def __init__(self, act):
        self.act = act
        self.calls = 0

    def to_dict(self):
        return {"name": "made"}

    def measure(self, subject):
        layers_of(subject.model)
        self.calls += 1
        return self.act(self, subject)


def writing(probe, subject):
    next(subject.model.parameters()).data.add_(1)
    return result(quantity())


def switching(probe, subject):
    subject.model.eval()
    return result(quantity())


def drawing(probe, subject):
    torch.ones(3).uniform_()
    return result(quantity())


def counting(probe, subject):
    return result(Quantity(name="q", text="A number.", values=(float(probe.calls),)))


def exceeding(probe, subject):
    upper = Quantity(name="b", text="A bound.", values=(0.5,), bounds="q", side="upper")
    return result(quantity(), upper)


def widening(probe, subject):
    labels = (str(float(subject.x.sum())),)
    return result(quantity(axes=(Axis(name="sum", labels=labels),)))


@pytest.mark.parametrize(
    "act, says",
    [
        (writing, "must be left alone"),
        (switching, "must be left alone"),
        (drawing, "must be left alone"),
        (counting, "must give the same values"),
        (exceeding, "b at"),
        (widening, "must not depend on examples"),
    ],
)
def test_what_the_contract_finds(act, says, monkeypatch):
    probe = Made(act)
    monkeypatch.setattr("robustssm.testing.probes.from_dict", lambda kind, data: probe)
    before = torch.random.get_rng_state()
    with pytest.raises(AssertionError, match=says):
        check_probe(probe)
    torch.random.set_rng_state(before)


def test_a_good_probe_passes(monkeypatch):
    probe = Made(lambda self, subject: result(quantity()))
    monkeypatch.setattr("robustssm.testing.probes.from_dict", lambda kind, data: probe)
    check_probe(probe)
