"""The journal: the same bytes after a kill and from several processes, and only what is true."""

import dataclasses
import errno
import json

import numpy as np
import pytest
import torch

from robustssm.attacks.apgd import APGD, APGDTargeted
from robustssm.attacks.base import Attack
from robustssm.attacks.ensemble import Ensemble
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.errors import CorruptFile
from robustssm.core.placement import cpu_threads
from robustssm.core.rng import Streams
from robustssm.evaluation import journal as module
from robustssm.evaluation import session
from robustssm.evaluation.evaluate import evaluate
from robustssm.evaluation.journal import DiskJournal, Outcome, Piece, Unit
from robustssm.evaluation.session import Evaluation

THREAT = Threat(eps=0.05)
ATTACKS = (
    PGD(steps=3, restarts=2),
    Ensemble(stages=(APGD(steps=6), APGDTargeted(steps=6)), title="pair"),
)


def run(network, path, **options):
    options = {"batch_size": 25} | options
    return evaluate(*network, ATTACKS, THREAT, journal=path, **options)


def contents(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


class Killed(BaseException):
    pass


def killing(network, after):
    """The same module, which dies at forward pass number `after`."""
    left = [after]

    def hook(*_):
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    return network[0].register_forward_pre_hook(hook)


@pytest.mark.parametrize("after", [80, 110, 150, 190])
def test_a_killed_evaluation_goes_on_to_the_same_bytes(network, tmp_path, after):
    whole = run(network, tmp_path / "whole")
    handle = killing(network, after)
    with pytest.raises(Killed):
        run(network, tmp_path / "killed")
    handle.remove()
    assert len(contents(tmp_path / "killed")) < len(contents(tmp_path / "whole"))
    resumed = run(network, tmp_path / "killed", resume=True)
    assert resumed == whole
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert run(network, None) == whole, "and without a journal"


@pytest.mark.parametrize("after", [2, 7, 16, 21])
def test_a_killed_chunk_goes_on_from_its_finished_parts(network, tmp_path, monkeypatch, after):
    """Every chunk goes in four parts, one after the other on one thread."""
    calls, search = [], Attack.search

    def counted(self, *given, **options):
        calls.append(self.label)
        if len(calls) == after:
            raise Killed
        return search(self, *given, **options)

    monkeypatch.setattr(session, "reentrant", lambda model: True)
    with cpu_threads(1):
        whole = run(network, tmp_path / "whole")
        monkeypatch.setattr(Attack, "search", counted)
        with pytest.raises(Killed):
            run(network, tmp_path / "killed")
        pieces = list((tmp_path / "killed" / "pieces").iterdir())
        assert len(pieces) == (after - 1) % 4
        assert run(network, tmp_path / "killed", resume=True) == whole
        resumed = len(calls) - after
        calls[:] = [""] * after  # count on, without a kill
        run(network, tmp_path / "again")
    assert resumed == len(calls) - after - (after - 1), "no finished part was searched again"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_piece_comes_back_as_it_was_and_damage_is_named(tmp_path, monkeypatch):
    rows, unit = torch.tensor([3, 4]), Unit(0, 1, 2)
    kept = Piece(rows, torch.arange(10.0).view(2, 5), torch.tensor([-1, 0]), (1, 2, 3))
    journal = DiskJournal(tmp_path, {}, resume=False)
    assert journal.load_piece(unit, 0) is None
    journal.store_piece(unit, 0, kept)
    loaded = journal.load_piece(unit, 0)
    assert loaded is not None and loaded.passes == kept.passes
    assert torch.equal(loaded.rows, rows) and torch.equal(loaded.points, kept.points)
    assert torch.equal(loaded.part, kept.part)
    whole = Outcome(rows, rows.bool(), rows, rows.bool(), rows, kept.points, (1, 2, 3))
    monkeypatch.setattr(DiskJournal, "_drop_pieces", lambda *_: None)
    journal.store(unit, whole)  # killed before it removed them
    monkeypatch.undo()
    assert len(list((tmp_path / "pieces").iterdir())) == 1
    DiskJournal(tmp_path, {}, resume=True)
    assert not list((tmp_path / "pieces").iterdir())
    journal.store_piece(unit, 0, kept)
    file = next((tmp_path / "pieces").iterdir())
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(CorruptFile, match="must be a piece of an evaluation's journal"):
        journal.load_piece(unit, 0)


def test_what_is_finished_is_not_computed_again(network, tmp_path):
    run(network, tmp_path)
    calls = []
    handle = network[0].register_forward_pre_hook(lambda *_: calls.append(1))
    run(network, tmp_path, resume=True)
    resumed = len(calls)
    run(network, tmp_path)
    handle.remove()
    assert resumed < (len(calls) - resumed) / 3, "clean passes, checks, verification"


@pytest.mark.parametrize("shares", [2, 3])
def test_several_processes_make_the_same_bytes_as_one(network, tmp_path, shares):
    whole = run(network, tmp_path / "one")
    for part in range(shares):
        options = {"batch_size": 25, "journal": tmp_path / "many", "resume": True}
        with Evaluation(*network, ATTACKS, THREAT, **options) as evaluation:
            evaluation.run(share=(part, shares))
    calls = []
    handle = network[0].register_forward_pre_hook(lambda *_: calls.append(1))
    assert run(network, tmp_path / "many", resume=True) == whole
    handle.remove()
    assert len(calls) < 70
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_points_on_disk_fool_the_model_and_keep_to_the_threat(network, tmp_path):
    model, x, y = network
    result = run(network, tmp_path)
    fooled = {}
    for file in sorted((tmp_path / "units").iterdir()):
        with np.load(file) as stored:
            job = int(file.stem.split("-")[1])
            fooled.setdefault(job, []).extend(stored["fooled"].tolist())
            points = torch.from_numpy(stored["points"])
            rows = torch.from_numpy(stored["fooled"])
            assert points.dtype == x.dtype
            assert not (model(points).argmax(1) == y[rows]).any()
            assert ((points - x[rows]).abs() <= THREAT.eps * (1 + 1e-6)).all()
            assert set(stored["part"].tolist()) <= {-1, 0, 1, 2}
    for job, label in enumerate(result.survived):
        fell = torch.tensor(result.clean) & ~torch.tensor(result.survived[label])
        assert sorted(fooled[job]) == fell.nonzero().flatten().tolist()


@pytest.mark.parametrize(
    "change, says",
    [
        ("model", "differs in: model"),
        ("data", "differs in: data"),
        ("labels", "differs in: data"),
        ("threat", "differs in: threat"),
        ("seed", "differs in: seed"),
        ("batch_size", "differs in: batch size"),
    ],
)
def test_a_journal_of_something_else_is_refused(network, tmp_path, change, says):
    run(network, tmp_path)
    before = contents(tmp_path)
    model, x, y = network
    threat, options = THREAT, {"batch_size": 25}
    if change == "model":
        model.first = torch.nn.Parameter(model.first)
        network = (model, x, y)
        run(network, tmp_path)
        before = contents(tmp_path)
        model.first.data[0, 0] += 1e-9
    if change == "data":
        x = x.clone()
        x[0, 0, 0] = 0.123
    if change == "labels":
        y = (y + 1) % 4
    if change == "threat":
        threat = dataclasses.replace(THREAT, eps=0.06)
    if change == "seed":
        options["streams"] = Streams(1)
    if change == "batch_size":
        options["batch_size"] = 26
    with pytest.raises(ValueError, match=says):
        evaluate(model, x, y, ATTACKS, threat, journal=tmp_path, resume=True, **options)
    assert contents(tmp_path) == before, "nothing was overwritten"
    fresh = evaluate(model, x, y, ATTACKS, threat, journal=tmp_path, resume=None, **options)
    assert fresh == evaluate(model, x, y, ATTACKS, threat, **options), "None begins anew"


def test_a_damaged_piece_is_named_and_left(network, tmp_path):
    run(network, tmp_path)
    file = sorted((tmp_path / "units").iterdir())[3]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    for damaged in (bytes(content), bytes(content[:40]), b""):
        file.write_bytes(damaged)
        with pytest.raises(CorruptFile, match=file.name):
            run(network, tmp_path, resume=True)
        assert file.read_bytes() == damaged


def rewrite(file, **changes):
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez_compressed(file, **arrays | changes)


def first_with_points(path):
    for file in sorted((path / "units").iterdir()):
        with np.load(file) as stored:
            if len(stored["fooled"]):
                return file, {name: stored[name] for name in stored.files}
    raise AssertionError


def test_points_that_do_not_hold_up_are_an_error(network, tmp_path):
    _, x, _ = network
    run(network, tmp_path)
    file, stored = first_with_points(tmp_path)
    clean = x[stored["fooled"]].numpy()
    rewrite(file, points=clean)
    with pytest.raises(CorruptFile, match="must fool the model"):
        run(network, tmp_path, resume=True)
    rewrite(file, points=np.clip(stored["points"] + 0.2, 0, 1))
    with pytest.raises(CorruptFile, match="must lie in the threat set"):
        run(network, tmp_path, resume=True)
    rewrite(file, points=stored["points"])
    run(network, tmp_path, resume=True)


def test_a_full_disk_keeps_what_is_there(network, tmp_path, monkeypatch):
    whole = run(network, tmp_path / "whole")
    written = []
    real = module.write_bytes

    def full(path, content):
        written.append(path)
        if len(written) == 8:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(module, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        run(network, tmp_path / "full")
    assert len(contents(tmp_path / "full")) == 8
    monkeypatch.undo()
    assert run(network, tmp_path / "full", resume=True) == whole


def test_time_that_runs_out_leaves_a_valid_part(network, tmp_path, monkeypatch):
    """Time is counted in passes here, so that it ends in the middle of the third chunk."""
    whole = run(network, tmp_path / "whole")
    now = [0.0]
    monkeypatch.setattr("robustssm.attacks.access.time.monotonic", lambda: now[0])

    def tick(*_):
        now[0] += 1.0

    handle = network[0].register_forward_pre_hook(tick)
    part = run(network, tmp_path / "part", max_seconds=100)
    handle.remove()
    monkeypatch.undo()
    n = len(part.clean)
    assert n in (25, 50, 75, 100)
    assert part.planned == 130 and whole.planned is None
    assert part.clean == whole.clean[:n]
    for label, flags in part.survived.items():
        assert flags == whole.survived[label][:n]
    assert part.suites["pair"].stages == {
        stage: flags[:n] for stage, flags in whole.suites["pair"].stages.items()
    }
    assert json.loads(json.dumps(part.to_dict()))["planned"] == 130
    assert run(network, tmp_path / "part", resume=True) == whole


def test_too_little_time_says_so(network, tmp_path):
    with pytest.raises(TimeoutError, match="first 25 examples"):
        run(network, tmp_path, max_seconds=1e-9)
    with pytest.raises(ValueError, match="must be positive"):
        run(network, tmp_path, max_seconds=0)


def test_a_share_needs_a_journal(network):
    with Evaluation(*network, ATTACKS, THREAT) as evaluation:
        with pytest.raises(ValueError, match="together with a journal"):
            evaluation.run(share=(0, 2))
        with pytest.raises(ValueError, match="0 <= k < n"):
            evaluation.run(share=(2, 2))
