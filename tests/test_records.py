"""What a run leaves on disk: intervals, round trips, files old or new but never half."""

import json
import math
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robustssm.records import (
    EvaluationResult,
    Flagged,
    Provenance,
    StepRecord,
    read_json,
    read_records,
    wilson,
    write_bytes,
    write_json,
)

PROVENANCE = Provenance(
    version="0.1.0",
    commit="0123abcd+changes",
    command="robustssm run digits.s4_trades",
    seed=3,
    device="cpu, 1 threads",
    packages={"torch": "2.13.0"},
    started="2026-01-01T00:00:00+00:00",
    seconds=1.5,
)
RESULT = EvaluationResult(
    clean=(True, True, True, False),
    survived={"pgd-10": (True, True, False, False), "square": (True, False, True, False)},
    threat={"norm": "linf", "eps": 0.1, "bounds": [0.0, 1.0]},
    warnings=(Flagged(name="zero_gradient", message="2 of 4", severity="invalid"),),
    provenance=PROVENANCE,
)


# --- intervals --------------------------------------------------------------------------------


@given(
    n=st.integers(1, 5000),
    share=st.floats(0, 1),
    level=st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_wilson_is_scipys(n, share, level):
    k = round(share * n)
    expected = stats.binomtest(k, n).proportion_ci(confidence_level=level, method="wilson")
    assert wilson(k, n, level=level) == pytest.approx((expected.low, expected.high), rel=1e-9)


@pytest.mark.parametrize("k, n, end", [(0, 7, 0), (7, 7, 1)])
def test_wilson_touches_the_ends_exactly(k, n, end):
    assert wilson(k, n)[end] == end


@pytest.mark.parametrize("k, n", [(0, 0), (-1, 3), (4, 3)])
def test_an_impossible_proportion_is_refused(k, n):
    with pytest.raises(ValueError, match=f"got {k} of {n}"):
        wilson(k, n)


@pytest.mark.parametrize("level", [-0.5, 1.0, 1.5])
def test_an_impossible_level_is_refused(level):
    with pytest.raises(ValueError, match=r"must lie inside \(0, 1\)"):
        wilson(1, 2, level=level)


# --- evaluation -------------------------------------------------------------------------------


def test_accuracies_are_counted_from_the_flags():
    assert RESULT.n == 4
    assert RESULT.clean_accuracy == 0.75
    assert RESULT.attacks == {"pgd-10": 0.5, "square": 0.5}
    assert RESULT.robust == (True, False, False, False)
    assert RESULT.robust_accuracy == 0.25
    assert RESULT.interval() == wilson(1, 4)
    assert RESULT.interval("clean", level=0.9) == wilson(3, 4, level=0.9)
    assert RESULT.interval("square") == wilson(2, 4)


def test_an_example_wrong_without_attack_is_not_robust():
    result = EvaluationResult(clean=(False,), survived={"pgd": (True,)}, threat={})
    assert result.robust == (False,)


def test_without_attacks_robust_is_clean():
    result = EvaluationResult(clean=(True, False), survived={}, threat={})
    assert result.robust == result.clean


@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1).map(
        lambda rows: tuple(zip(*rows, strict=True))
    )
)
def test_one_more_attack_never_raises_accuracy(columns):
    clean, a, b = columns
    one = EvaluationResult(clean=clean, survived={"a": a}, threat={})
    two = replace(one, survived={"a": a, "b": b})
    assert two.robust_accuracy <= one.robust_accuracy <= one.clean_accuracy
    assert two.robust_accuracy <= min(two.attacks.values())


@pytest.mark.parametrize("result", [RESULT, replace(RESULT, provenance=None, warnings=())])
def test_an_evaluation_survives_json(result):
    data = json.loads(json.dumps(result.to_dict()))
    assert EvaluationResult.from_dict(data) == result


def test_derived_numbers_in_a_file_are_not_believed():
    data = RESULT.to_dict() | {"robust_accuracy": 1.0, "clean_accuracy": 1.0}
    assert EvaluationResult.from_dict(data).robust_accuracy == 0.25


@pytest.mark.parametrize(
    "clean, survived, message",
    [
        ((), {}, "at least one example"),
        ((True, True), {"pgd": (True,)}, "'pgd' has 1 flags for 2 examples"),
        ((True,), {"clean": (True,)}, "No attack may be labelled 'clean'"),
        ((True,), {"robust": (True,)}, "No attack may be labelled 'robust'"),
    ],
)
def test_an_inconsistent_evaluation_is_refused(clean, survived, message):
    with pytest.raises(ValueError, match=message):
        EvaluationResult(clean=clean, survived=survived, threat={})


# --- files ------------------------------------------------------------------------------------


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_json_is_read_as_written(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("json") / "deep" / "file.json"
    write_json(path, data)
    assert read_json(path) == data


def test_writing_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    write_bytes(path, b"x" * 1000)
    write_bytes(path, b"short")
    assert path.read_bytes() == b"short"
    assert list(tmp_path.iterdir()) == [path]


def full_disk(*_):
    raise OSError(28, "No space left on device")


def killed(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("failure, error", [(full_disk, OSError), (killed, KeyboardInterrupt)])
@pytest.mark.parametrize("where", [(os, "fsync"), (Path, "replace")], ids=["flush", "rename"])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_failed_write_leaves_the_old_file_and_no_temporary(
    tmp_path, monkeypatch, failure, error, where, old
):
    path = tmp_path / "a.json"
    if old is not None:
        path.write_bytes(old)
    monkeypatch.setattr(*where, failure)
    with pytest.raises(error):
        write_bytes(path, b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if old is None else [old])


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, Path.replace

    def watched_fsync(handle):
        events.append(("flushed", os.fstat(handle).st_size))
        fsync(handle)

    def watched_replace(self, target):
        events.append(("renamed", self.parent == target.parent))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    write_bytes(tmp_path / "a", b"12345")
    assert events == [("flushed", 5), ("renamed", True)]


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_a_written_file_may_be_read_by_whom_the_user_lets(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00"])
def test_a_damaged_json_file_is_named_and_kept(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json must be a JSON file; it is damaged"):
        read_json(path)
    assert path.read_bytes() == content


# --- metrics.jsonl ----------------------------------------------------------------------------

STEPS = (
    StepRecord(kind="step", epoch=0, step=10, values={"loss": 2.25, "clean": 1e-300}),
    StepRecord(kind="step", epoch=0, step=20, values={"loss": math.inf}),
    StepRecord(kind="epoch", epoch=1, step=20, values={"validation/robust": 0.5}),
)
LINES = "".join(record.to_line() + "\n" for record in STEPS)


def test_records_are_read_as_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES)
    assert tuple(read_records(path)) == STEPS


def test_a_line_cut_off_by_a_kill_is_left_out_wherever_the_cut_is(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for length in range(len(LINES) + 1):
        path.write_text(LINES[:length])
        complete = LINES[:length].count("\n")
        assert tuple(read_records(path)) == STEPS[:complete], f"cut after {length} characters"


def test_a_cut_inside_a_character_is_a_cut_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LINES.encode() + b'{"kind": "\xc3')
    assert tuple(read_records(path)) == STEPS


@pytest.mark.parametrize(
    "damage", [b"{", b"", b"[]", b"3", b'{"kind": "step", "epoch": 0}', b"\xff", b"null"]
)
def test_any_other_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    first, rest = LINES.encode().split(b"\n", 1)
    path.write_bytes(first + b"\n" + damage + b"\n" + rest)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 must be a record; it is damaged"):
        tuple(read_records(path))


def test_a_value_may_not_hide_the_records_own_fields():
    with pytest.raises(AssertionError, match="own fields"):
        StepRecord(kind="step", epoch=0, step=1, values={"step": 2.0}).to_line()
