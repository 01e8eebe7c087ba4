"""Nothing is timed that was not compared, and what is timed is timed in turn."""

import json

import pytest
import torch

from benchmarks import harness
from benchmarks.harness import Candidate, Comparison, Effort, Mismatch, Times, compare, gradients
from benchmarks.report import Report, arguments
from robustssm.core.rng import Noise

pytestmark = pytest.mark.usefixtures("machine_left_alone")


def square(x, *, wrong=0.0):
    return gradients(x**2 * (1 + wrong * (x - x.detach())), {"x": x}, torch.ones_like(x))


@pytest.fixture
def x():
    return Noise(0).normal(5).requires_grad_()


def comparison(*candidates, tolerance=1e-6):
    return Comparison(what="a square", shape="5", candidates=candidates, tolerance=tolerance)


def test_gradients_are_those_of_the_weighted_sum(x):
    g = torch.arange(5.0)
    found = gradients(x**3, {"x": x}, g)
    torch.testing.assert_close(found["output"], x.detach() ** 3)
    torch.testing.assert_close(found["d x"], 3 * g * x.detach() ** 2)


def test_a_wrong_gradient_is_refused_before_anything_is_timed(x):
    calls = []
    ours = Candidate(name="ours", run=lambda: calls.append(1), results=lambda: square(x, wrong=0.1))
    made = comparison(ours, Candidate(name="peer", run=lambda: square(x)))
    report = Report("squares", arguments("", ["--tiny"]))
    with pytest.raises(Mismatch, match=r"'ours' must agree.*d x is .* away"):
        report.add(made)
    assert not calls and not report.rows
    torch.testing.assert_close(square(x, wrong=0.1)["output"], square(x)["output"])


@pytest.mark.parametrize(
    "found, match",
    [
        ({"output": torch.full((5,), torch.nan)}, "output is inf"),
        ({"output": torch.ones(4)}, "output is inf"),
        ({"output": torch.ones(5), "d x": torch.ones(5)}, "not in both: d x"),
        ({"output": torch.ones(5) * 1.01}, "output is 1.0e-02 away"),
    ],
    ids=["nan", "shape", "one more", "value"],
)
def test_what_is_not_the_same_is_refused(found, match):
    with pytest.raises(Mismatch, match=match):
        compare(found, {"output": torch.ones(5)}, 1e-3, name="ours")


def test_a_gap_is_relative_to_the_largest_entry():
    expected = {"output": torch.tensor([1e-9, 100.0])}
    found = {"output": torch.tensor([0.01, 100.0])}
    assert compare(found, expected, 2e-4, name="ours")["output"] == pytest.approx(1e-4)
    with pytest.raises(Mismatch):
        compare(found, expected, 5e-5, name="ours")


def test_some_quantities_may_be_looser():
    expected = {"a.w": torch.ones(1), "a.x": torch.ones(1)}
    found = {"a.w": torch.ones(1) * 1.05, "a.x": torch.ones(1)}
    compare(found, expected, 1e-3, name="ours", loose={".w": 0.1})
    with pytest.raises(Mismatch, match=r"a\.w is"):
        compare(found, expected, 1e-3, name="ours", loose={".x": 0.1})


def test_a_candidate_may_be_compared_with_something_of_its_own(x):
    made = comparison(
        Candidate(name="ours", run=lambda: square(x)),
        Candidate(
            name="shifted",
            run=lambda: None,
            results=lambda: {"output": torch.ones(2)},
            expected=lambda: {"output": torch.zeros(2)},
            tolerance=1.5,
        ),
        Candidate(name="last", run=lambda: square(x)),
    )
    assert made.verify() == {"ours": 0.0, "shifted": 1.0}


class Clock:
    """Time that passes only while a candidate works."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def work(self, name, *seconds):
        left = list(seconds)

        def run():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_rounds_are_interleaved_and_medians_taken(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock.now)
    ours = Candidate(name="ours", run=clock.work("ours", 9.0, 1.0, 5.0, 2.0))
    peer = Candidate(name="peer", run=clock.work("peer", 9.0, 4.0), count=2)
    times = comparison(ours, peer).measure(threads=1, effort=Effort(rounds=3, seconds=99.0))
    # One call of each to warm up; then every round begins with another one.
    assert clock.calls == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert times["ours"].samples == (1.0, 5.0, 2.0)
    assert (times["ours"].median, times["ours"].minimum) == (2.0, 1.0)
    assert times["peer"].samples == (2.0, 2.0, 2.0)


def test_quick_work_is_repeated_within_a_sample(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock.now)
    ours = Candidate(name="ours", run=clock.work("ours", harness.SHORTEST / 4))
    times = comparison(ours).measure(threads=1, effort=Effort(rounds=2, seconds=99.0))
    assert len(clock.calls) == 2 + 2 * 4
    assert times["ours"].median == pytest.approx(harness.SHORTEST / 4)


def test_time_ends_the_rounds_but_not_before_the_least(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock.now)
    ours = Candidate(name="ours", run=clock.work("ours", 10.0))
    for seconds, rounds in ((0.0, 2), (25.0, 3), (1e9, 5)):
        effort = Effort(rounds=5, seconds=seconds, least=2)
        assert len(comparison(ours).measure(threads=1, effort=effort)["ours"].samples) == rounds


def test_the_number_of_threads_is_set_and_restored(x):
    seen, before = [], torch.get_num_threads()
    ours = Candidate(
        name="ours", run=lambda: seen.append(torch.get_num_threads()), set_threads=seen.append
    )
    comparison(ours).measure(threads=2, effort=Effort(rounds=1, seconds=0.0))
    assert set(seen) == {2} and torch.get_num_threads() == before


def test_the_line_of_json_says_all(tmp_path, capsys, x):
    file = tmp_path / "result.json"
    report = Report(
        "squares", arguments("", ["--tiny", "--threads", "1", "2", "--json", str(file)])
    )
    report.not_here("somebody: nowhere")
    report.not_here("somebody: nowhere")
    ours = Candidate(name="ours", run=lambda: square(x), saved_bytes=lambda: 10)
    peer = Candidate(name="peer", run=lambda: square(x), saved_bytes=lambda: 30)
    report.add(comparison(ours, peer))
    result = report.finish()
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == result == json.loads(file.read_text())
    for key in ("question", "ratio", "peer", "ours_s", "peer_s", "threads", "shape"):
        assert key in result
    assert result["ratio"] == pytest.approx(result["peer_s"] / result["ours_s"])
    assert (result["peer"], result["threads"], result["shape"]) == ("peer", 2, "5")
    assert [row["threads"] for row in result["all"]] == [1, 2]
    assert all(row["saved_ratio"] == 3 for row in result["all"])
    assert result["not_here"] == ["somebody: nowhere"]
    assert {"torch", "robustssm", "cpu"} <= set(result["machine"])


def test_nothing_measured_is_no_result():
    with pytest.raises(ValueError, match="needs something to measure"):
        Report("squares", arguments("", ["--tiny"])).finish()


def test_the_median_of_an_even_number_lies_between():
    assert Times((1.0, 2.0, 4.0, 100.0)).median == 3.0
