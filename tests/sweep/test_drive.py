"""Order, attempts and news, with a backend that does nothing but what it is told."""

from collections import defaultdict
from pathlib import Path

import pytest

from robustssm.sweep import Job, Progress, Watcher
from robustssm.sweep.backend import Event
from robustssm.sweep.drive import drive

RESULT = {"clean_accuracy": 0.5, "attacks": {"fgsm": 0.25}}


class Script:
    """Each submission of a run ends as its script says next."""

    def __init__(self, slots, **ends):
        self.slots, self.ends = slots, {name: list(each) for name, each in ends.items()}
        self.submitted, self.under_way = [], []
        self.most = 0

    def submit(self, job):
        self.submitted.append(job.name)
        self.under_way.append(job)
        self.most = max(self.most, len(self.under_way))

    def wait(self, seconds):
        job = self.under_way.pop(0)
        end = self.ends.get(job.name, ["ok"])
        what = end.pop(0) if len(end) > 1 else end[0]
        news = Event(job=job, progress=Progress(phase="training", epoch=1, epochs=2))
        if what == "ok":
            return [news, Event(job=job, result=RESULT), news]
        return [news, Event(job=job, error=what, transient=what.startswith("killed"))]

    def close(self):
        pass


class Told(Watcher):
    def __init__(self):
        self.news = defaultdict(list)

    def started(self, job, attempt):
        self.news[job.name].append(("started", attempt))

    def progressed(self, job, progress):
        self.news[job.name].append(progress.phase)

    def interrupted(self, job, reason):
        self.news[job.name].append(("interrupted", reason))

    def ended(self, outcome):
        self.news[outcome.job.name].append("ended")


def jobs(*names):
    return [Job(name=n, recipe=n, seed=0, directory=Path(n)) for n in names]


@pytest.mark.parametrize("slots", [1, 2, 9])
def test_a_failed_run_stops_no_other_and_is_not_begun_again(slots):
    backend = Script(slots, b=["wrong setting"])
    outcomes = {o.job.name: o for o in drive(jobs(*"abcd"), backend, retries=3)}
    assert backend.submitted == list("abcd")
    assert backend.most == min(slots, 4)
    assert outcomes["b"].result is None and outcomes["b"].error == "wrong setting"
    assert all(outcomes[n].result == RESULT for n in "acd")


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_killed_run_is_begun_again_after_the_others(retries):
    backend = Script(1, a=["killed 1", "killed 2", "ok"])
    told = Told()
    outcomes = {o.job.name: o for o in drive(jobs(*"abc"), backend, retries=retries, watcher=told)}
    assert backend.submitted == ["a", "b", "c", *["a"] * retries]
    assert outcomes["a"].attempts == retries + 1
    assert (outcomes["a"].result is None) == (retries < 2)
    if retries == 1:
        assert outcomes["a"].error == "killed 2 (2 attempts)"
        assert told.news["a"] == [
            ("started", 1),
            "training",
            ("interrupted", "killed 1"),
            ("started", 2),
            "training",
            "ended",
        ]


def test_finished_runs_come_first_and_are_not_run():
    backend = Script(1)
    done = {Path("b"): RESULT}
    outcomes = list(drive(jobs(*"abc"), backend, finished=done))
    assert [(o.job.name, o.attempts) for o in outcomes] == [("b", 0), ("a", 1), ("c", 1)]
    assert backend.submitted == ["a", "c"]
