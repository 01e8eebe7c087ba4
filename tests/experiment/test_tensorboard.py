"""Event files, read back byte by byte, say what metrics.jsonl says: live, resumed and later."""

import struct
from collections import Counter

import pytest

pytest.importorskip("tensorboardX")

from tensorboardX.crc32c import crc32c
from tensorboardX.proto import event_pb2

from robustssm.core.config import override
from robustssm.core.errors import CorruptFile
from robustssm.experiment import run, tensorboard
from robustssm.experiment.display import Display, Several, Status
from robustssm.experiment.rundir import RunDirectory
from robustssm.experiment.tensorboard import Mirror, export, followed
from robustssm.recipes import recipe
from robustssm.records import StepRecord, read_records
from tests.experiment.small import SMALL

MASK = 0xFFFFFFFF


def events(directory):
    """Every event of the one event file: length, its checksum, the event, its checksum."""
    (file,) = directory.iterdir()
    data, at = file.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        body = data[at + 12 : at + 12 + length]
        (checksum,) = struct.unpack_from("<I", data, at + 12 + length)
        crc = crc32c(body)
        assert checksum == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & MASK
        yield event_pb2.Event.FromString(body)
        at += length + 16


def scalars(directory):
    """(tag, step, value) of every scalar, with how often it occurs."""
    return Counter(
        (value.tag, event.step, value.simple_value)
        for event in events(directory)
        for value in event.summary.value
    )


def expected(metrics):
    """The same from metrics.jsonl; TensorBoard keeps float32."""
    return Counter(
        (f"{r.kind}/{name}", r.step, struct.unpack("<f", struct.pack("<f", value))[0])
        for r in read_records(metrics)
        for name, value in r.values.items()
    )


def record(step, *, kind="step", **values):
    return StepRecord(
        kind=kind, epoch=1 + step // 4, step=step, values=values or {"loss": 1 / step}
    )


def append(place, *records):
    for each in records:
        place.append(each)
    place.write()


def test_a_run_of_long_ago_is_copied_whole(tmp_path):
    place = RunDirectory(tmp_path)
    append(place, *(record(step) for step in range(1, 9)))
    append(place, record(8, kind="epoch", validation_accuracy=0.5, seconds=3.0))
    export(tmp_path, tmp_path / "board")
    found = scalars(tmp_path / "board")
    assert found == expected(place.metrics) and found.total() == 10
    export(tmp_path, tmp_path / "board")
    assert scalars(tmp_path / "board") == found, "a second copy replaces the first"


def test_following_copies_what_is_new_and_whole(tmp_path):
    place, mirror = RunDirectory(tmp_path), Mirror(tmp_path / "metrics.jsonl", tmp_path / "board")
    mirror.update()
    assert not (tmp_path / "board").exists(), "nothing to copy yet"
    append(place, record(1))
    mirror.update()
    line = record(2).to_line() + "\n"
    with place.metrics.open("a") as file:
        file.write(line[:9])
    mirror.update()
    assert scalars(tmp_path / "board").total() == 1, "half a line waits"
    with place.metrics.open("a") as file:
        file.write(line[9:])
    mirror.update()
    assert scalars(tmp_path / "board") == expected(place.metrics)
    mirror.close()


def test_resuming_neither_repeats_nor_loses_steps(tmp_path):
    place = RunDirectory(tmp_path)
    append(place, *(record(step) for step in range(1, 8)))
    export(tmp_path, tmp_path / "board")  # of the process that was killed
    before = {file.name for file in (tmp_path / "board").iterdir()}
    place.rewind(epoch=1, step=4)
    append(place, *(record(step, loss=9.0) for step in range(5, 7)))
    mirror = Mirror(place.metrics, tmp_path / "board")
    mirror.update()
    append(place, *(record(step, loss=8.0) for step in range(7, 11)))
    mirror.update()
    mirror.close()
    found = scalars(tmp_path / "board")
    assert found == expected(place.metrics)
    assert sorted(step for _, step, _ in found) == list(range(1, 11))
    assert not before & {file.name for file in (tmp_path / "board").iterdir()}, "a new file"
    starts = [e.step for e in events(tmp_path / "board") if e.HasField("session_log")]
    assert starts == [0], "a TensorBoard that looks on drops what it has seen"


def test_a_file_that_is_replaced_under_way_is_copied_anew(tmp_path):
    place = RunDirectory(tmp_path)
    append(place, *(record(step) for step in range(1, 8)))
    mirror = Mirror(place.metrics, tmp_path / "board")
    mirror.update()
    place.rewind(epoch=1, step=3)
    append(place, *(record(step, loss=7.0) for step in range(4, 9)))
    mirror.update()
    mirror.close()
    assert scalars(tmp_path / "board") == expected(place.metrics)


class Stops(Display):
    """A user who presses Ctrl-C."""

    def step(self, *, epoch, batch, values, speed):
        if (epoch, batch) == (2, 2):
            raise KeyboardInterrupt


def test_a_run_that_is_stopped_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "_SECONDS_BETWEEN_COPIES", 0.0)
    experiment = override(recipe("digits.s5_standard"), SMALL)
    with pytest.raises(KeyboardInterrupt), followed(tmp_path, Stops()) as shown:
        run(experiment, tmp_path, display=shown, device="cpu", threads=1)
    assert scalars(tmp_path / "tensorboard") == expected(tmp_path / "metrics.jsonl")
    with followed(tmp_path, Display()) as shown:
        run(experiment, tmp_path, resume=True, display=shown, device="cpu", threads=1)
    found = scalars(tmp_path / "tensorboard")
    assert found == expected(tmp_path / "metrics.jsonl")
    steps = sorted(step for tag, step, _ in found if tag == "step/loss")
    assert steps == list(range(1, 7)), "three batches in each of two epochs"
    kept = {file: file.read_bytes() for file in (tmp_path / "tensorboard").iterdir()}
    with pytest.raises(FileExistsError), followed(tmp_path, Display()) as shown:
        run(experiment, tmp_path, display=shown, device="cpu", threads=1)
    assert kept == {f: f.read_bytes() for f in (tmp_path / "tensorboard").iterdir()}, "not ours"


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step"}\n')
    with pytest.raises(CorruptFile, match=r"a line is damaged.*Remove the line"):
        export(tmp_path, tmp_path / "board")


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(ValueError, match=r"pip install 'robustssm\[tracking\]'"),
        followed(tmp_path, Display()),
    ):
        pass


def test_several_displays_are_told_everything_in_order():
    told = []

    class Telling(Display):
        def __init__(self, name):
            self.name = name

        def __getattribute__(self, method):
            if method in METHODS:
                return lambda *a, **k: told.append((self.name, method, a, k))
            return super().__getattribute__(method)

    METHODS = {
        "training": ((), {"epochs": 1, "batches": 2, "epoch": 0, "batch": 0}),
        "step": ((), {"epoch": 1, "batch": 1, "values": {"loss": 1.0}, "speed": 2.0}),
        "epoch": ((), {"epoch": 1, "values": {}}),
        "out_of_memory": ((), {"epoch": 1, "batch": 1, "micro_batches": 2}),
        "evaluating": ((), {"checkpoint": "best", "examples": 3}),
        "attacked": ((Status(attack="", share=0, seconds_left=None, right=0, seen=0),), {}),
        "shared": ((4,), {}),
    }
    both = Several(Telling("a"), Telling("b"))
    for method, (arguments, named) in METHODS.items():
        getattr(both, method)(*arguments, **named)
    calls = METHODS.items()
    assert told == [(who, m, a, k) for m, (a, k) in calls for who in "ab"]
    public = {name for name in vars(Display) if not name.startswith("_")}
    assert public == set(METHODS) == {n for n in vars(Several) if n[0] != "_"}
