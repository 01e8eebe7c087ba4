"""What `doctor` says of the kernels: active, missing, damaged."""

import pytest

from robustssm.experiment import health
from robustssm.ops.kernels import native, triton_support
from robustssm.ops.kernels.triton_support import Verdict


@pytest.fixture
def seconds(monkeypatch):
    monkeypatch.setattr(health, "_convolution_seconds", lambda: (0.002, 0.01))


def found(monkeypatch, *, level, reason="", refused=()):
    state = native.State(level, 16 if level else 0, reason, refused)
    monkeypatch.setattr(native, "state", lambda: state)
    return [finding for finding in health.kernels() if finding.subject == "cpu kernels"]


def test_active_kernels_have_a_level_and_a_gain(monkeypatch, seconds):
    (finding,) = found(monkeypatch, level="x86_64_v4")
    assert finding.good
    for part in ("x86_64_v4, 16 floats", "2.0 ms with them", "10.0 ms without", "5.0 times"):
        assert part in finding.state


def test_missing_kernels_are_no_fault_and_can_be_mended(monkeypatch):
    reason = native.State(None, 0, "No compiled CPU kernels. Reinstall with a C compiler.").reason
    (finding,) = found(monkeypatch, level=None, reason=reason)
    assert finding.good
    assert reason in finding.state and "torch does their work" in finding.state


def test_a_damaged_library_is_a_fault_even_if_another_runs(monkeypatch, seconds):
    wrong, right = found(monkeypatch, level="generic", refused=("v4.so: it is cut off.",))
    assert not wrong.good and wrong.state == "v4.so: it is cut off."
    assert right.good and "generic" in right.state


def test_the_gain_is_measured():
    with_them, without = health._convolution_seconds()
    assert 0 < with_them < 1 and 0 < without < 1
    if native.state().level is not None:
        assert with_them < without


@pytest.mark.parametrize(
    "reason, said", [("", "ready"), ("no GPU.", "not in use: no GPU.")], ids=["ready", "not"]
)
def test_triton_says_why_not(monkeypatch, seconds, reason, said):
    monkeypatch.setattr(triton_support, "available", lambda: Verdict(reason))
    monkeypatch.setattr(triton_support, "interpreted", lambda: False)
    *_, finding = health.kernels()
    assert (finding.subject, finding.state, finding.good) == ("triton kernels", said, True)
