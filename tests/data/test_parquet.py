"""Parquet shards: images and numbers, what metadata say, and everything that is refused."""

import builtins
import json

import numpy as np
import pytest
import torch

from robustssm.core.errors import CorruptFile
from robustssm.core.rng import Noise
from robustssm.data.parquet import Parquet
from robustssm.testing.datasets import check_dataset
from robustssm.testing.miniatures import images, jpeg, png, write_parquet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def labels(n, classes=4):
    return np.arange(n) % classes


def floats(n, *shape):
    return Noise(n).uniform(n, *shape, low=-1.0, high=2.0).numpy()


def write(folder, name, **columns):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def pair(folder, *, train=None, test=None):
    """A training part of 40 rows and a test part of 12, of scalars unless told otherwise."""
    for part, n, own in (("train", 40, train), ("test", 12, test)):
        columns = {"x": list(floats(n, 6)), "y": labels(n)} | (own or {})
        write(folder, f"{part}-00000-of-00001.parquet", **columns)


def read(folder, seed=0, **settings):
    dataset = Parquet(**({"path": ".", "validation": 8} | settings))
    return dataset.read(data_dir=folder, noise=Noise(seed))


def test_images_are_decoded_bit_for_bit_shard_after_shard(tmp_path):
    splits = check_dataset(write_parquet(tmp_path), tmp_path)
    assert splits.shape == (3, 16, 16) and splits.num_classes == 10
    noise = Noise(0).fork("parquet", "test-00000-of-00001")
    x, y = images(20, channels=3, side=16, noise=noise)
    assert np.array_equal(splits.test.x.numpy(), x) and splits.test.y.tolist() == y.tolist()
    kept = torch.cat([splits.train.x, splits.validation.x])
    for shard in ("train-00000-of-00002", "train-00001-of-00002"):
        x, _ = images(20, channels=3, side=16, noise=Noise(0).fork("parquet", shard))
        for image in torch.from_numpy(x):
            assert (kept == image).flatten(1).all(1).sum() == 1
    assert splits.origin["classes"][3] == "place 3"
    assert splits.origin["columns"] == {"inputs": "image", "labels": "label"}
    assert next(iter(splits.origin["files"])) == "data/train-00000-of-00002.parquet"


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
    for k in (2, 0, 1):
        x = [[float(k), float(i), 0.0, 0.0] for i in range(10)]
        write(tmp_path, f"train-{k:05d}-of-00003.parquet", x=x, y=labels(10, 2))
    write(tmp_path, "test-00000-of-00001.parquet", x=floats(4, 4).tolist(), y=labels(4, 2))
    splits = read(tmp_path, validation=1)
    order = [(int(a), int(b)) for a, b in splits.train.x[:, :2, 0]]
    assert order == sorted(order) and len(order) == 29


@pytest.mark.parametrize("shape", [(6,), (6, 2), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
@pytest.mark.parametrize("fixed", [False, True], ids=["lists", "fixed"])
def test_numbers_of_every_layout(tmp_path, shape, dtype, fixed):
    def column(n):
        x = (floats(n, *shape) * 50 + 60).astype(dtype)
        kind = pa.from_numpy_dtype(x.dtype)
        for size in reversed(shape):
            kind = pa.list_(kind, size) if fixed else pa.list_(kind)
        return x, pa.array(x.tolist(), kind)

    (_, train), (expected, test) = column(40), column(12)
    pair(tmp_path, train={"x": train}, test={"x": test})
    splits = read(tmp_path)
    assert splits.shape == ((6, 1) if len(shape) == 1 else shape) and splits.num_classes == 4
    assert splits.train.x.dtype == (torch.uint8 if dtype == "u1" else torch.float32)
    assert np.array_equal(splits.test.x.numpy().reshape(expected.shape), expected.astype("f4"))


def test_bounds_come_from_all_the_data_or_are_stated(tmp_path):
    x = floats(12, 6)
    x[3, 2] = 11.25
    pair(tmp_path, test={"x": list(x)})
    splits = read(tmp_path)
    assert splits.bounds[1] == 11.25
    assert splits.origin["remarks"][1].startswith("Bounds were taken from the data: [-0.9")
    assert read(tmp_path, bounds=(-1, 12)).bounds == (-1.0, 12.0)
    with pytest.raises(ValueError, match=r"lie in the bounds \[-1.0, 2.0\]; got .* 11.25"):
        read(tmp_path, bounds=(-1, 2))


def test_grey_images_have_one_channel_unless_any_has_colours(tmp_path):
    def encoded(n, channels, *, first=png):
        x, _ = images(n, channels=channels, side=16, noise=Noise(n))
        return [first(x[0]), *map(png, x[1:])]

    pair(tmp_path, train={"x": encoded(40, 1)}, test={"x": encoded(12, 1)})
    assert read(tmp_path).shape == (1, 16, 16)
    mixed = encoded(20, 1) + encoded(20, 3, first=jpeg)
    pair(tmp_path, train={"x": mixed}, test={"x": encoded(12, 1)})
    splits = read(tmp_path)
    assert splits.shape == (3, 16, 16)
    assert torch.equal(splits.test.x[:, 0], splits.test.x[:, 2])


def test_the_test_part_is_test_or_validation(tmp_path):
    write(tmp_path, "train.parquet", x=list(floats(40, 6)), y=labels(40))
    write(tmp_path, "validation/0000.parquet", x=list(floats(8, 6)), y=labels(8))
    assert len(read(tmp_path).test) == 8
    assert read(tmp_path).origin["remarks"][0] == "The test split is the validation part."
    write(tmp_path, "test.parquet", x=list(floats(12, 6)), y=labels(12))
    assert len(read(tmp_path).test) == 12
    assert len(read(tmp_path, test_part="validation").test) == 8


def test_columns_may_be_named(tmp_path):
    own = [{"left": list(floats(n, 6)), "kind": labels(n, 2)} for n in (40, 12)]
    pair(tmp_path, train=own[0], test=own[1])
    splits = read(tmp_path, inputs="left", labels="kind")
    assert splits.num_classes == 2
    assert np.array_equal(splits.test.x[..., 0].numpy(), own[1]["left"])
    with pytest.raises(ValueError, match=r"No column of .* is called 'rihgt'. Known: kind, left"):
        read(tmp_path, inputs="rihgt")


def test_metadata_outdo_usual_names(tmp_path):
    features = {"image": {"_type": "Value"}, "z": {"_type": "Image"}, "y": {"_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for part, n in (("train", 40), ("test", 12)):
        x, _ = images(n, channels=1, side=16, noise=Noise(n))
        table = pa.table({"image": labels(n), "z": [png(i) for i in x], "y": labels(n)})
        path = tmp_path / f"{part}.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path)
    assert read(tmp_path).origin["columns"] == {"inputs": "z", "labels": "y"}


def test_missing_files_say_what_should_be_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"needs train-\*.parquet in .*no such directory"):
        read(tmp_path, path="nothing")
    write(tmp_path, "train-00000-of-00001.parquet", x=list(floats(40, 6)), y=labels(40))
    message = r"test or validation-\*.parquet .*it holds train-00000-of-00001.parquet. Put the"
    with pytest.raises(FileNotFoundError, match=message):
        read(tmp_path)


def test_missing_shards_are_noticed(tmp_path):
    pair(tmp_path)
    for k in (0, 2):
        name = f"train-0000{k}-of-00003.parquet"
        write(tmp_path, name, x=list(floats(40, 6)), y=labels(40))
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"as their names say, 00003; got 2: train-00000-of"):
        read(tmp_path)


def test_a_spoilt_file_is_named(tmp_path):
    pair(tmp_path)
    path = tmp_path / "test-00000-of-00001.parquet"
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"a,b\n1,2\n"):
        path.write_bytes(data)
        with pytest.raises(CorruptFile, match=r"test-00000-of-00001.parquet must be a whole"):
            read(tmp_path)


PICTURE = png(images(1, channels=3, side=16, noise=Noise(0))[0][0])
OTHER = png(images(1, channels=3, side=20, noise=Noise(0))[0][0])
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
REFUSED = {
    "ragged": (
        [[1.0] * (5 + i % 2) for i in range(40)],
        r"lists of one length; got lengths from 5",
    ),
    "missing": ([None, *[[1.0]] * 39], r"have no missing entries; got 1 of them. *"),
    "missing inside": ([[None], *[[1.0]] * 39], r"no missing entries; got 1"),
    "strings": ([["a"]] * 40, r"hold numbers; got string"),
    "integers": ([[1, 2]] * 40, r"be uint8, or floats; got int64"),
    "constant": ([[1.0, 1.0]] * 40, r"differ from each other.*from 1.0 to 1.0. Repair"),
    "not finite": ([[float("nan"), 1.0]] * 40, r"be finite, and differ"),
    "no image": ([b"hello", *[PICTURE] * 39], r"Row 0 of column `x` of .* must be a whole image"),
    "cut off": ([PICTURE] * 39 + [PICTURE[:-60]], r"Row 39 of .* must be a whole image"),
    "two sizes": ([PICTURE] * 39 + [OTHER], r"Row 39 .* size of row 0, 16 x 16 .*; got 20 x 20"),
    "path alone": (
        pa.array([{"bytes": None, "path": "a.png"}] * 40, STRUCT),
        r"Row 0 of .* hold the bytes of an image; got none, or a path alone. Write",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_cannot_be_used_are_refused(tmp_path, case):
    column, message = REFUSED[case]
    pair(tmp_path, train={"x": column}, test={"x": column[:12]})
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


LABELS = {
    "strings": (["cat", "dog"] * 20, r"`y` of .*hold numbers; got string. Class names must"),
    "one-hot": (np.eye(4)[labels(40)].tolist(), r"integers of shape \(n,\)"),
    "gap": ((labels(40) * 2).tolist(), r"be 0, 1, .*; got 0, 1, 2, 3, 4, 6. Renumber"),
    "negative": ((labels(40) - 1).tolist(), r"integers from 0 to \d; got -1 in row 0"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_cannot_be_used_are_refused(tmp_path, case):
    column, message = LABELS[case]
    pair(tmp_path, train={"y": column})
    settings = {"num_classes": 4} if case == "negative" else {}
    with pytest.raises(ValueError, match=message):
        read(tmp_path, **settings)


def test_shards_of_two_versions_are_refused(tmp_path):
    write(tmp_path, "train-a.parquet", x=list(floats(40, 6)), y=labels(40))
    write(tmp_path, "train-b.parquet", x=list(floats(40, 6)), y=labels(40).astype("i4"))
    write(tmp_path, "test.parquet", x=list(floats(40, 6)), y=labels(40))
    with pytest.raises(ValueError, match=r"same columns of the same types; got others in train-b"):
        read(tmp_path)
    write(tmp_path, "train-b.parquet", x=list(floats(40, 6)))
    with pytest.raises(ValueError, match=r"same columns of the same types; got others in train-b"):
        read(tmp_path)


def test_no_column_of_a_usual_name(tmp_path):
    write(tmp_path, "train.parquet", a=list(floats(40, 6)), b=labels(40))
    write(tmp_path, "test.parquet", a=list(floats(40, 6)), b=labels(40))
    with pytest.raises(
        ValueError, match=r"column of inputs by a usual name .*; got columns a, b. N"
    ):
        read(tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    pair(tmp_path)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs pyarrow, .* pip install 'robustssm\[parquet\]'"):
        read(tmp_path)


def test_bytes_have_no_other_bounds():
    with pytest.raises(ValueError, match=r"low < high; got \(1.0, 1.0\)"):
        Parquet(path=".", bounds=(1, 1))
