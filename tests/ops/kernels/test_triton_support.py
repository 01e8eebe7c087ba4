"""Where kernels can run is said before they are called, with or without Triton."""

import subprocess
import sys

import pytest
import torch

from robustssm.ops.kernels import triton_support
from robustssm.ops.kernels.triton_support import Verdict, available, blocks, placed, power_of_two

MODULES = ("convolution", "scan", "selective_scan", "state_space")
PROBE = """
import importlib, sys
if {blocked}:
    sys.modules["triton"] = None
for name in {modules}:
    module = importlib.import_module("robustssm.ops.kernels.triton_" + name)
    assert bool(module.available()) is False, name
print("triton" in sys.modules and sys.modules["triton"] is not None)
print(module.available().reason)
"""


@pytest.fixture
def asked_anew():
    available.cache_clear()
    yield
    available.cache_clear()


@pytest.mark.parametrize("blocked, reason", [(True, "not installed"), (False, "")])
def test_modules_can_be_imported_without_triton_and_do_not_import_it(blocked, reason, monkeypatch):
    if not blocked and torch.cuda.is_available():
        pytest.skip("kernels are available here")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    script = PROBE.format(blocked=blocked, modules=MODULES)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported, said = done.stdout.splitlines()
    assert imported == "False" and reason in said and said


def test_available_says_why_not(monkeypatch, asked_anew, device):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert available()
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert available()  # asked once per process
    for present, capability, reason in [
        (False, None, "no CUDA device"),
        (True, (7, 5), "at least 8.0"),
        (True, (9, 0), ""),
    ]:
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=present: found)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        available.cache_clear()
        assert reason in available().reason and bool(available()) is (reason == "")
    monkeypatch.setattr(torch.version, "hip", "6.0")
    available.cache_clear()
    assert "AMD" in available().reason


def test_tensors_of_the_cpu_need_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "CUDA device" in placed(torch.ones(2)).reason
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert placed(torch.ones(2))


def test_require_raises_with_the_first_reason():
    triton_support.require("f", Verdict(), Verdict())
    with pytest.raises(ValueError, match=r"`f` of the Triton kernels cannot do this: first\."):
        triton_support.require("f", Verdict(), Verdict("first."), Verdict("second."))


def test_sizes():
    assert [power_of_two(n) for n in (1, 2, 3, 16, 17)] == [1, 2, 4, 16, 32]
    assert [blocks(n, 16) for n in (1, 16, 17)] == [1, 1, 2]
