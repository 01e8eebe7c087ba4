"""Pickles: what plain data give, and that nothing else is ever run."""

import builtins
import collections
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from robustssm.core.errors import CorruptFile
from robustssm.core.rng import Noise
from robustssm.data.pickles import read_pickle

HERE = Path("data_batch_1")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_survive_every_protocol(protocol):
    value = {"a": [1, 2.5, None, True], ("t", 1): b"bytes\xff", "text": "ä", "big": 2**70}
    assert read_pickle(HERE, pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">f4", "<f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_survive(protocol, dtype, order):
    values = Noise(0).integers(3, 4, high=200).numpy()
    array = np.asarray(values.astype(dtype), order=order)
    (got,) = read_pickle(HERE, pickle.dumps([array], protocol=protocol))
    assert np.array_equal(got, array)
    assert got.dtype == array.dtype.newbyteorder("=") and got.flags.writeable


def test_a_pickle_of_python_2_is_read():
    """The bytes that Python 2 and an early numpy wrote, as in the published files."""
    data = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x01K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01"
        b"\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03\x07\x08\xfft"
        b"bU\x06labels]q\x08(K\x06K\x09eu."
    )
    content = read_pickle(HERE, data)
    assert list(content) == [b"data", b"labels"] and content[b"labels"] == [6, 9]
    assert content[b"data"].tolist() == [[7, 8, 255]] and content[b"data"].dtype == np.uint8


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_command_is_refused_and_not_run(tmp_path, protocol):
    witness = tmp_path / "witness"
    data = pickle.dumps({"data": Calls(os.system, f"touch {witness}")}, protocol=protocol)
    pickle.loads(data)
    assert witness.exists(), "the pickle is indeed malicious"
    witness.unlink()
    message = rf"data_batch_1 .* asks for {os.name}.system, which was refused: nothing was run"
    with pytest.raises(CorruptFile, match=message):
        read_pickle(HERE, data)
    assert not witness.exists()


@pytest.mark.parametrize(
    "value, name",
    [
        (Calls(eval, "1 + 1"), r"(__builtin__|builtins).eval"),
        (Calls(builtins.__import__, "os"), "__import__"),
        (Calls(getattr, [], "append"), "getattr"),
        (Calls(np.load, "x.npy", None, True), "numpy.load"),
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
        (np.float64(1.0), "scalar"),
        ({1, 2}, "set"),
        (range(3), "range"),
        (1j, "complex"),
        (np.array([{}, None], dtype=object), "an array of type 'O8'"),
        (np.zeros(2, "u1,i4"), "an array of type 'V5'"),
        (np.array(["text"]), "an array of type 'U4'"),
        (np.ma.masked_array([1]), "numpy"),
        (np.ndarray, "a value of type Array"),
        (np.dtype("u1"), "a value of type Dtype"),
    ],
)
def test_whatever_is_not_plain_data_is_refused(value, name):
    with pytest.raises(CorruptFile, match=f"asks for .*{name}.*nothing was run"):
        read_pickle(HERE, pickle.dumps(value, protocol=2))


def test_an_object_stored_elsewhere_is_refused():
    with pytest.raises(CorruptFile, match="an object stored elsewhere"):
        read_pickle(HERE, b"Pelsewhere\n.")


def test_a_state_cannot_be_forced_upon_what_stands_for_numpy():
    # BUILD with a dict would set attributes of the class, were it not for __setstate__.
    for name in (b"numpy\nndarray", b"numpy\ndtype", b"_codecs\nencode"):
        with pytest.raises(CorruptFile):
            read_pickle(HERE, b"c" + name + b"\n}(X\x04\x00\x00\x00codeK\x01ub.")
    array = np.arange(3)
    assert np.array_equal(read_pickle(HERE, pickle.dumps(array)), array), "and nothing has changed"


def forged(*, shape=(2,), code="u1", raw=b"ab", order="|"):
    """The pickle of an array whose parts do not fit."""
    dtype = Calls(np.dtype, code, False, True)
    dtype.call += ((3, order, None, None, None, -1, -1, 0),)
    array = Calls(np.zeros(0).__reduce__()[0], np.ndarray, (0,), b"b")
    array.call += ((1, shape, dtype, False, raw),)
    return pickle.dumps(array, protocol=3)


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"shape": (3,)}, r"2 bytes for an array of shape \(3,\)"),
        ({"shape": (2**40, 2**40)}, "2 bytes for an array"),
        ({"shape": (-2,)}, r"an array of shape \(-2,\)"),
        ({"shape": ("2",)}, "an array of shape"),
        ({"shape": None}, "whole pickle"),
        ({"code": "O8"}, "an array of type 'O8'"),
        ({"code": 7}, "an array of type 7"),
        ({"raw": [1, 2]}, "an array of objects"),
        ({"order": "!"}, "a structured type"),
    ],
)
def test_an_array_whose_parts_do_not_fit_is_refused(parts, message):
    assert read_pickle(HERE, forged()).tolist() == [97, 98]
    with pytest.raises(CorruptFile, match=message):
        read_pickle(HERE, forged(**parts))


def test_every_way_of_cutting_a_pickle_off_is_reported():
    data = pickle.dumps({b"data": np.arange(12, dtype=np.uint8), b"labels": [1, 2]}, protocol=2)
    for length in range(len(data)):
        with pytest.raises(CorruptFile, match="data_batch_1 must be a"):
            read_pickle(HERE, data[:length])


def test_no_damaged_byte_escapes_as_another_error():
    data = pickle.dumps({b"data": np.arange(12, dtype=np.uint8), b"labels": [1, 2]}, protocol=2)
    for position in range(len(data)):
        for flip in (1, 4, 32, 255):
            spoilt = data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :]
            try:
                read_pickle(HERE, spoilt)
            except CorruptFile:
                pass


def test_a_pickle_nested_without_end_is_refused():
    depth = 100_000
    data = b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."
    with pytest.raises(CorruptFile, match="nested too deep"):
        read_pickle(HERE, data)


def test_a_size_that_is_not_there_is_no_reason_to_crash():
    with pytest.raises(CorruptFile):
        read_pickle(HERE, b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.")
