"""Tiny-ImageNet on a miniature of its tree: order, labels, both forms, and what is refused."""

import io
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from robustssm.core.errors import CorruptFile
from robustssm.core.rng import Noise
from robustssm.data import archive, images, tiny_imagenet
from robustssm.data.tiny_imagenet import TinyImageNet
from robustssm.testing.datasets import check_dataset
from robustssm.testing.miniatures import jpeg, write_tiny_imagenet

ROOT = "tiny-imagenet-200"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_imagenet(folder)
    return folder


@pytest.fixture
def tree(written, tmp_path):
    shutil.copytree(written / ROOT, tmp_path / ROOT)
    return tmp_path / ROOT


def read(folder, seed=0, **settings):
    dataset = TinyImageNet(**({"classes": 4, "validation": 12} | settings))
    return dataset.read(data_dir=folder, noise=Noise(seed))


def test_tree_and_archive_keep_the_contract_and_give_the_same_bytes(written, tmp_path):
    dataset = write_tiny_imagenet(tmp_path, packed=True)
    one, other = check_dataset(dataset, written), check_dataset(dataset, tmp_path)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(one, part).x, getattr(other, part).x)
        assert torch.equal(getattr(one, part).y, getattr(other, part).y)
    shared = {"train (48 images)", "val (12 images)"}
    assert shared <= one.origin["files"].keys()
    assert {name: other.origin["files"][name] for name in shared} == dict(one.origin["files"])
    assert other.origin["files"][f"{ROOT}.zip"].startswith("md5:")
    assert one.origin["verified"] is other.origin["verified"] is False


def test_classes_are_lines_of_wnids_and_the_bright_place_is_where_it_was_drawn(written):
    """The miniature marks class k by a bright square whose place only k decides."""
    splits = read(written)
    assert splits.shape == (3, 64, 64) and splits.num_classes == 4
    assert splits.origin["classes"] == [f"n{9 - k:08d}" for k in range(4)]
    for part in (splits.train, splits.validation, splits.test):
        for label in range(4):
            shown = part.x[part.y == label].float()
            assert len(shown) and shown[..., 2:10, 12 * label + 2 : 12 * label + 10].mean() > 230
    assert splits.train.y.bincount().tolist() == [9] * 4
    assert splits.test.y.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3  # as annotated
    assert "published validation part" in splits.origin["remarks"][0]


def test_pixels_are_those_that_pillow_decodes_and_grey_becomes_three_channels(written):
    wnid = "n00000008"
    names = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for i in range(12)]
    splits = read(written, validation=1)
    every = torch.cat([splits.train.x, splits.validation.x])
    for i, name in enumerate(names):
        with Image.open(written / ROOT / name) as image:
            assert image.mode == ("L" if i == 0 else "RGB")
            expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert (every == torch.from_numpy(expected.copy())).flatten(1).all(1).sum() == 1
    grey = splits.test.x[0]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[1], grey[2])
    assert not torch.equal(splits.test.x[1][0], splits.test.x[1][1])


def test_files_stand_in_the_order_of_their_numbers(written):
    found = tiny_imagenet._training(tiny_imagenet.Directory(written / ROOT), ["n00000009"])
    assert [name.rpartition("_")[2] for name, _ in found] == [f"{i}.JPEG" for i in range(12)]


def test_only_images_of_the_chosen_classes_are_read(tree, monkeypatch):
    decoded = []
    real = images.decode
    monkeypatch.setattr(images, "decode", lambda d, what: decoded.append(what) or real(d, what))
    splits = read(tree.parent, classes=2, validation=4, train_limit=10)
    assert splits.num_classes == 2 and len(splits.train) == 10
    assert len(decoded) == 2 * (12 + 3)
    assert not any("n00000007" in name or "n00000006" in name for name in decoded)
    assert "The first 2 of 200 classes." in splits.origin["remarks"]


def test_a_missing_tree_says_what_to_put_where(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read(tmp_path)
    for part in ("`tiny_imagenet` needs the directory", f"{ROOT}.zip", str(tmp_path), "download="):
        assert part in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no data directory was given"):
        read(None)


def spoil_class(tree):
    shutil.rmtree(tree / "train" / "n00000007")


def spoil_image(tree):
    path = tree / "train" / "n00000008" / "images" / "n00000008_5.JPEG"
    path.write_bytes(path.read_bytes()[:200])


def spoil_text(tree):
    (tree / "val" / "images" / "val_4.JPEG").write_text("<html>not found</html>")


def spoil_size(tree):
    pixels = np.zeros((3, 32, 48), np.uint8)
    (tree / "train" / "n00000009" / "images" / "n00000009_2.JPEG").write_bytes(jpeg(pixels))


def spoil_validation(tree):
    (tree / "val" / "images" / "val_7.JPEG").unlink()


def spoil_annotations(tree):
    path = tree / "val" / "val_annotations.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))


def spoil_line(tree):
    path = tree / "val" / "val_annotations.txt"
    path.write_text(path.read_text() + "val_99.JPEG\n")


def spoil_wnids(tree):
    (tree / "wnids.txt").unlink()


def repeat_wnids(tree):
    (tree / "wnids.txt").write_text("n00000009\nn00000009\nn00000007\nn00000006")


SPOILT = {
    "class": (spoil_class, r"train/n00000007/images must hold .* of class 2, n00000007; there are"),
    "image": (spoil_image, r"n00000008_5.JPEG must be a whole image that Pillow can read; "),
    "text": (spoil_text, r"val/images/val_4.JPEG must be a whole image"),
    "size": (spoil_size, r"n00000009_2.JPEG must be 64 x 64 pixels; it is 32 x 48"),
    "validation": (spoil_validation, r"must hold val/images/val_7.JPEG; it does not"),
    "annotations": (spoil_annotations, r"images of every class; it has none of n00000008"),
    "line": (spoil_line, r"in every line; line 13 is 'val_99.JPEG'"),
    "wnids": (spoil_wnids, r"must hold wnids.txt; it does not. Unpack or fetch it again"),
    "repeated": (repeat_wnids, r"name every class once; it has 4 lines and 3 classes"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_tree_is_named(tree, case):
    spoil, message = SPOILT[case]
    spoil(tree)
    with pytest.raises(CorruptFile, match=message):
        read(tree.parent)


def test_more_classes_than_there_are_is_refused(written):
    with pytest.raises(ValueError, match=r"at most the 4 lines of .*wnids.txt; got 50"):
        read(written, classes=50)


def test_a_spoilt_archive_is_named(tmp_path):
    write_tiny_imagenet(tmp_path, packed=True)
    path = tmp_path / f"{ROOT}.zip"
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as packed:
        at = packed.getinfo(f"{ROOT}/val/images/val_0.JPEG").header_offset + 200
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    with pytest.raises(CorruptFile, match=r"val_0.JPEG in .*zip must be whole; it is damaged"):
        read(tmp_path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFile, match=r"200.zip must be a whole .zip archive"):
        read(tmp_path)
    with zipfile.ZipFile(path, "w") as empty:
        empty.writestr("README", "nothing")
    with pytest.raises(CorruptFile, match=r"must hold tiny-imagenet-200/wnids.txt"):
        read(tmp_path)


def test_the_official_archive_is_recognised_and_fetched_on_request(tmp_path, monkeypatch):
    source = tmp_path / "source"
    write_tiny_imagenet(source, packed=True)
    digest = archive.checksum_of(source / f"{ROOT}.zip", algorithm="md5")
    asked = []

    def fetch(urls, *, known_hash, folder):
        asked.append((list(urls), known_hash))
        return shutil.copy(source / f"{ROOT}.zip", folder / f"{ROOT}.zip") and (
            folder / f"{ROOT}.zip"
        )

    monkeypatch.setattr(archive, "fetch", fetch)
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE_MD5", digest)
    target = tmp_path / "target"
    target.mkdir()
    splits = read(target, download=True)
    assert asked == [([tiny_imagenet.URL], digest)]
    assert splits.origin["verified"] is True
    assert not any("Checksums" in remark for remark in splits.origin["remarks"])
    read(target, download=True)
    assert len(asked) == 1, "what is there is not fetched again"


def test_deep_images_are_refused():
    target = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(target, "PNG")
    with pytest.raises(CorruptFile, match=r"picture must have 8 bits a channel; its mode is I"):
        images.mode(target.getvalue(), "picture")
