"""Every benchmark runs, at tiny sizes and without peers, and ends with its line of JSON."""

import importlib
import json
from types import SimpleNamespace

import pytest

from benchmarks import all as everything
from benchmarks import allocator, peers

pytestmark = pytest.mark.usefixtures("machine_left_alone")

EXTRA = {
    "attack_step": ["--no-tuned"],
    "scaling": ["--structures", "s4", "moving average"],
}
HEADLINES = {
    "at_step": "plain S4 in torch",
    "attack_step": "plain S4 in torch",
    "kernels": "naive Cauchy in torch",
    "convolution": "torch.fft under autograd",
    "layers": "formula of Mega",
    "selective_scan": "loop in torch",
    "evaluation": "plain S4 in torch",
    "scaling": "length 8",
}


@pytest.fixture
def no_packages(monkeypatch):
    """As if the extra were not installed."""

    def missing(module, package):
        raise peers.NotHere(f"{package}: not installed")

    monkeypatch.setattr(peers, "_package", missing)


@pytest.mark.parametrize("name", everything.NAMES)
@pytest.mark.usefixtures("no_packages")
def test_a_benchmark_runs(name, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    result = module.main(["--tiny", "--threads", "1", *EXTRA.get(name, [])])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert result["peer"] == HEADLINES[name]
    assert result["mode"] == "tiny" and result["threads"] == 1
    for row in result["all"]:
        assert row["ours_s"] > 0 and row["peer_s"] > 0 and row["ratio"] > 0


def test_the_compiled_kernels_can_be_left_out(capsys):
    from benchmarks import convolution
    from robustssm.ops.kernels import native

    seen = []
    original = convolution.causal_convolution

    def noted(u, kernel):
        seen.append(native.available(u))
        return original(u, kernel)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "causal_convolution", noted)
        result = convolution.main(["--tiny", "--without-kernels"])
    assert result["machine"]["kernels"] == "left out" and not any(seen)
    assert "kernels left out" in capsys.readouterr().out


def test_a_process_with_a_tuned_allocator_works_when_told(monkeypatch, capsys):
    calls, told = [], ["run\n", "threads 1\n", "run\n", "end\n", "run\n"]
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: calls.append("tuned"))
    monkeypatch.setattr(allocator.sys, "stdin", told)
    allocator.serve(lambda: calls.append("work"))
    assert calls == ["tuned"] + ["work"] * 3  # one to warm up
    assert capsys.readouterr().out.split() == ["ready", "done", "done", "done"]


def test_a_process_whose_allocator_cannot_be_tuned_says_so(monkeypatch):
    def refuse():
        raise ValueError("no glibc")

    monkeypatch.setattr(allocator, "keep_freed_memory", refuse)
    with pytest.raises(ValueError, match="no glibc"):
        allocator.serve(lambda: pytest.fail("must not work untuned"))


@pytest.mark.parametrize("peer", [peers.paper, peers.official_s4, peers.official_mega])
def test_a_checkout_that_is_not_there_is_named(peer, tmp_path):
    with pytest.raises(peers.NotHere, match="no checkout given"):
        peer(None)
    with pytest.raises(peers.NotHere, match="has no "):
        peer(tmp_path)


def test_all_writes_a_table_and_goes_on_after_a_failure(monkeypatch, tmp_path, capsys):
    def run(command, cwd):
        name, file = command[2], command[4]
        assert command[5:] == ["--tiny", "--threads", "1", "--paper", str(tmp_path.resolve())]
        if name == "benchmarks.kernels":
            return SimpleNamespace(returncode=1)
        row = {
            "what": name,
            "shape": "B 2",
            "peer": "another",
            "threads": 1,
            "ours_s": 0.5,
            "peer_s": 4.0,
            "ratio": 8.0,
            "saved_ratio": 3.0,
        }
        result = {
            "question": "how fast",
            "all": [row],
            "not_here": ["nobody"],
            "machine": {"torch": "2"},
            "load_before": [0.1],
            "load_after": [0.2],
            "date": "2026-11-21",
            "mode": "tiny",
        }
        with open(file, "w") as out:  # noqa: PTH123
            json.dump(result, out)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(everything.subprocess, "run", run)
    out = tmp_path / "table.md"
    arguments = ["--tiny", "--threads", "1", "--paper", str(tmp_path), "--out", str(out)]
    with pytest.raises(SystemExit):
        everything.main([*arguments, "--only", "kernels", "scaling"])
    assert "failed: kernels" in capsys.readouterr().out
    text = out.read_text()
    assert "| benchmarks.scaling | B 2 | another | 1 | 0.5 | 4 | 8.00 | 3.0x less |" in text
    assert "Not here: nobody." in text and "Failed: kernels." in text
    found = everything.main([*arguments, "--only", "scaling", "layers"])
    assert set(found) == {"scaling", "layers"}
