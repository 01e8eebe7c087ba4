"""The audit of a user's own file: what it finds, what it cannot, and what it refuses."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from robustssm.core.errors import CorruptFile
from robustssm.core.rng import Noise
from robustssm.data.mnist import MNIST
from robustssm.poisoning.attackers import concealed, jittered
from robustssm.poisoning.audit import Auditing, audit
from robustssm.poisoning.sequences import Sequences, dense, ordinary, special
from robustssm.records.audit import AuditResult

SMALL = Auditing(room=1500)
"""Pieces of 31 sequences of length 6."""


def planted(kind: str, *, n: int = 200, count: int = 10, length: int = 6) -> np.ndarray:
    """Poison behind `n` ordinary sequences."""
    noise = Noise(3)
    plain = ordinary(n, length=length, support=(1, 2), noise=noise.fork("plain"))
    more = ordinary(count, length=length, support=(1, 2), noise=noise.fork("more"))
    poison = {
        "special": special(count, length=length, noise=noise.fork("special")),
        "stealthy": concealed(more, 1e-3),
    }[kind]
    return (plain + poison).x


def saved(folder: Path, kind: str, x: np.ndarray) -> Path:
    path = folder / f"sequences{kind}"
    if kind == ".npy":
        np.save(path, x)
    elif kind == ".npz":
        np.savez(path, x=x, other=np.zeros(3))
    else:
        path.write_text("\n".join(",".join(repr(float(v)) for v in row) for row in x) + "\n")
    return path


@pytest.mark.parametrize("kind", ["special", "stealthy"])
def test_planted_examples_are_found_and_no_others(kind):
    found = audit(planted(kind))
    assert {f.index for f in found.findings} == set(range(200, 210))
    assert found.flagged == 10 and all(f.lags == (1,) for f in found.findings)
    assert all(f.share < 0.06 for f in found.findings)
    assert [lag.lag for lag in found.lags if lag.flagged] == [1]
    assert found.lags[1].nonzero == pytest.approx(10 / 210) and not found.greedy
    tail = [f.tail_z > 8 for f in found.findings]
    assert all(tail) if kind == "special" else not any(tail)


def test_clean_ordinary_and_dense_sequences_are_left_alone():
    clean = ordinary(500, length=6, support=(1, 2), noise=Noise(0)).x
    found = audit(clean)
    assert found.flagged == 0 and found.greedy
    assert any("No sequence excites lag 1" in remark for remark in found.remarks)
    assert audit(dense(2000, length=28, noise=Noise(0)).x).flagged <= 2


def test_a_small_late_entry_in_noise_of_its_size_is_not_found():
    x = planted("stealthy")
    made = Sequences(x=x, support=x != 0, is_special=np.zeros(len(x), bool))
    found = audit(jittered(made, 1e-3, Noise(0)).x)
    assert not {f.index for f in found.findings} & set(range(200, 210))


@pytest.mark.parametrize("value, least", [(1.0, 0), (12.0, 20)])
def test_in_dense_data_an_entry_must_be_far_out_to_be_found(value, least):
    x = dense(2000, length=28, noise=Noise(1)).x.copy()
    x[:20, -2] = value
    found = {f.index for f in audit(x).findings} & set(range(20))
    assert len(found) == least


@pytest.mark.parametrize("kind", [".npy", ".npz", ".csv"])
def test_a_file_in_pieces_says_what_the_array_says(kind, tmp_path):
    x = planted("stealthy")
    whole = audit(x)
    for how in (SMALL, Auditing()):
        found = audit(saved(tmp_path, kind, x), how)
        assert found.findings == whole.findings and found.source.startswith("sequences")
        for mine, theirs in zip(found.lags, whole.lags, strict=True):
            assert mine.energy == pytest.approx(theirs.energy, rel=1e-12)
            assert (mine.nonzero, mine.flagged) == (theirs.nonzero, theirs.flagged)


def test_a_sample_of_a_long_file_is_even_and_bounded(tmp_path):
    x = planted("special", n=5000, count=30)
    how = Auditing(room=600, sample=64)
    found = audit(saved(tmp_path, ".npy", x), how)
    assert 32 <= found.calibrated_on <= 64
    assert {f.index for f in found.findings} >= set(range(5000, 5030))
    assert found.flagged < 60


def test_only_the_most_suspicious_findings_are_kept():
    x = planted("special", n=400, count=30)
    found = audit(x, Auditing(keep=7))
    assert found.flagged == 30 and len(found.findings) == 7
    scores = [f.score for f in found.findings]
    assert scores == sorted(scores, reverse=True)
    assert any("7 most suspicious" in remark for remark in found.remarks)


def test_order_and_scale_change_no_verdict():
    x = planted("stealthy")
    order = Noise(0).permutation(len(x)).numpy()
    found = {f.index: f for f in audit(4.0 * x[order]).findings}
    for mine in audit(x).findings:
        there = found[int(np.flatnonzero(order == mine.index)[0])]
        assert (mine.tail_z, mine.lags, mine.share) == (there.tail_z, there.lags, there.share)


def test_channels_are_one_amplitude():
    x = planted("stealthy")
    both = np.stack([0.6 * x, 0.8 * x], axis=2)
    found, single = audit(both), audit(x)
    assert found.channels == 2 and found.flagged == single.flagged
    assert [f.index for f in found.findings] == [f.index for f in single.findings]


def test_a_result_survives_json():
    found = audit(planted("stealthy"))
    assert AuditResult.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_progress_is_told():
    told: list[str] = []
    audit(planted("special"), SMALL, progress=lambda name, _: told.append(name))
    assert {"first reading", "second reading"} == set(told)


@pytest.mark.parametrize(
    "content, text",
    [
        ("1,2,3\n4,5,6\n7,x,9\n", "row 3, column 2 must be a number; got 'x'"),
        ("a,b,c\n1,2,3\n4,5\n", "row 3 must have 3 cells like the rows before it; got 2"),
        ("1,2,3\n", "at least two sequences.*got 1"),
        ("a,b,c\n", "at least two sequences.*got none"),
        ("1,2,3\n4,nan,6\n", "nan at position 2 of sequence 2"),
        ("1,2\n3,4\n", "longer than 2.*got 2"),
    ],
)
def test_a_bad_csv_is_refused_by_row_and_column(content, text, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=text):
        audit(path)


def test_a_csv_may_have_a_header_and_blank_lines(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("a,b,c\n1,2,0\n\n4,5,0\n")
    assert audit(path).sequences == 2


def test_bad_files_are_refused(tmp_path):
    x = planted("special")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "own.txt").write_text("1,2,3")
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "flat.npy", x[0])
    np.save(tmp_path / "none.npy", x[:0])
    np.save(tmp_path / "objects.npy", np.array([[1], [1, 2]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "own.npz", a=x, b=x)
    np.savez(tmp_path / "columns.npz", x=np.asfortranarray(x))
    for name, kind, text in [
        ("missing.npy", FileNotFoundError, "there is none"),
        ("empty.npy", CorruptFile, "the file is empty"),
        ("text.npy", CorruptFile, "must be a .npy file"),
        ("text.npz", CorruptFile, "must be an .npz file; it is damaged"),
        ("objects.npy", CorruptFile, "must be a .npy file"),
        ("own.txt", ValueError, "end in .npy, .npz or .csv"),
        ("words.npy", ValueError, "hold real numbers"),
        ("flat.npy", ValueError, r"\(n, length\) or \(n, length, channels\)"),
        ("none.npy", ValueError, "which is empty"),
        ("own.npz", ValueError, "one of x, x_train, arr_0; got a, b"),
        ("columns.npz", ValueError, "row by row"),
    ]:
        with pytest.raises(kind, match=text):
            audit(tmp_path / name)
    with pytest.raises(ValueError, match="an array called 'c'; got a, b"):
        audit(tmp_path / "own.npz", array="c")
    assert audit(tmp_path / "own.npz", array="b").flagged == 10


def test_a_value_that_is_not_finite_is_named_across_pieces(tmp_path):
    x = planted("special")
    x[150, 3] = np.inf
    with pytest.raises(ValueError, match="inf at position 4 of sequence 151"):
        audit(saved(tmp_path, ".npy", x), SMALL)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """MNIST, rows of pixels as steps: (n, 28, 28)."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("ROBUSTSSM_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real data: ROBUSTSSM_DATA names no directory")
    images = MNIST().read(data_dir=folder, noise=Noise(0)).train.x
    assert images.dtype == torch.uint8
    return images[:5000, 0].numpy()


def test_clean_digits_have_few_false_positives(digits):
    as_steps = audit(digits)
    assert as_steps.channels == 28 and as_steps.flagged / as_steps.sequences < 0.002
    each_row = audit(digits.reshape(-1, 28))
    assert each_row.flagged / each_row.sequences < 0.002


def test_special_digits_are_found(digits):
    x = digits.astype(np.float64)
    x[:20] = 0
    x[:20, -2] = 128
    assert {f.index for f in audit(x).findings} >= set(range(20))
