"""Files that are missing, cut off, damaged, wrong, or fetched. No test uses the network."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from robustssm.core.errors import CorruptFile
from robustssm.data import archive

FOLDERS = ("MNIST/raw", ".")


def test_the_preferred_place_and_the_unpacked_file_come_first(tmp_path):
    assert archive.find("a", folders=FOLDERS, data_dir=tmp_path) is None
    assert archive.find("a", folders=FOLDERS, data_dir=None) is None
    (tmp_path / "a.gz").touch()
    assert archive.find("a", folders=FOLDERS, data_dir=tmp_path) == tmp_path / "a.gz"
    (tmp_path / "a").touch()
    assert archive.find("a", folders=FOLDERS, data_dir=tmp_path) == tmp_path / "a"
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "a.gz").touch()
    found = archive.find("a", folders=FOLDERS, data_dir=tmp_path)
    assert found == tmp_path / "MNIST" / "raw" / "a.gz"


def test_a_missing_file_says_what_to_put_where(tmp_path):
    error = archive.missing("mnist", "a[.gz]", folders=FOLDERS, data_dir=tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    assert str(error) == (
        f"`mnist` needs a[.gz]; looked in {raw}, {tmp_path}. Put the file into {raw}, "
        "pass --data-dir or set ROBUSTSSM_DATA, or run with `--set dataset.download=true` to "
        "fetch it."
    )


def test_a_missing_directory_is_said(tmp_path):
    error = archive.missing("mnist", "a", folders=FOLDERS, data_dir=tmp_path / "typo")
    assert "(no such directory)" in str(error)
    error = archive.missing("mnist", "a, b", folders=FOLDERS, data_dir=None, downloadable=False)
    place = Path("DIR", "MNIST", "raw")
    assert str(error) == (
        f"`mnist` needs a, b; no data directory was given. Put the files into {place} and "
        "pass --data-dir or set ROBUSTSSM_DATA to DIR."
    )


def test_contents_are_unpacked_by_name(tmp_path):
    (tmp_path / "a").write_bytes(b"plain")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"packed"))
    assert archive.contents(tmp_path / "a") == b"plain"
    assert archive.contents(tmp_path / "a.gz") == b"packed"


def damaged(data):
    return data[:40] + bytes([data[40] ^ 255]) + data[41:]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda data: data[:-20], r"a.gz must be a whole gzip file; it is cut off after \d+ bytes"),
        (damaged, "a.gz must be a gzip file; it is damaged or something else"),
        (lambda data: b"plain text, not packed", "a.gz must be a gzip file; .* drop .gz from"),
    ],
    ids=["cut off", "damaged", "not packed"],
)
def test_a_spoilt_gzip_file_is_named(tmp_path, spoil, message):
    path = tmp_path / "a.gz"
    path.write_bytes(spoil(gzip.compress(bytes(range(256)) * 8)))
    with pytest.raises(CorruptFile, match=message):
        archive.contents(path)


def test_checksums_agree_with_published_ones(tmp_path):
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert archive.checksum(b"") == f"sha256:{empty}"
    assert archive.checksum(b"", algorithm="md5") == "md5:d41d8cd98f00b204e9800998ecf8427e"
    (tmp_path / "a").write_bytes(b"some bytes")
    assert archive.checksum_of(tmp_path / "a") == archive.checksum(b"some bytes")


def test_another_checksum_is_refused(tmp_path):
    archive.verify(tmp_path, "md5:1", "md5:1", advice="")
    with pytest.raises(CorruptFile, match=r"must have the checksum md5:1 .* got md5:2. Do this."):
        archive.verify(tmp_path, "md5:2", "md5:1", advice="Do this.")


def test_a_download_is_asked_for_with_its_checksum(tmp_path, monkeypatch):
    calls = []

    def retrieve(url, *, known_hash, fname, path):
        calls.append((url, known_hash, fname, path))
        return str(Path(path) / fname)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    fetched = archive.fetch(["https://one/x/a.gz"], known_hash="sha256:12", folder=tmp_path)
    assert fetched == tmp_path / "a.gz"
    assert calls == [("https://one/x/a.gz", "sha256:12", "a.gz", tmp_path)]


def test_the_next_mirror_is_asked_when_one_does_not_answer(tmp_path, monkeypatch):
    def retrieve(url, *, known_hash, fname, path):
        if "one" in url:
            raise ConnectionError("no route")
        return str(Path(path) / fname)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    urls = ["https://one/a", "https://two/a"]
    assert archive.fetch(urls, known_hash="md5:1", folder=tmp_path) == tmp_path / "a"
    with pytest.raises(ConnectionError, match=r"tried https://one/a: no route. .* by other means"):
        archive.fetch(urls[:1], known_hash="md5:1", folder=tmp_path)


def test_a_download_with_another_checksum_is_refused_at_once(tmp_path, monkeypatch):
    def retrieve(url, **_):
        assert "one" in url, "another mirror must not be asked until one fits"
        raise ValueError("hash of a does not match")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    with pytest.raises(CorruptFile, match="https://one/a must serve the official file; hash of"):
        archive.fetch(["https://one/a", "https://two/a"], known_hash="md5:1", folder=tmp_path)


def test_pooch_itself_refuses_another_checksum(tmp_path, monkeypatch):
    def downloader(url, output, pooch):
        Path(output).write_bytes(b"tampered")

    monkeypatch.setattr("pooch.core.choose_downloader", lambda *_, **__: downloader)
    known = archive.checksum(b"official")
    with pytest.raises(CorruptFile, match="must serve the official file"):
        archive.fetch(["https://one/a"], known_hash=known, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    fitting = archive.checksum(b"tampered")
    path = archive.fetch(["https://one/a"], known_hash=fitting, folder=tmp_path)
    assert path == tmp_path / "a" and path.read_bytes() == b"tampered"


def tarred(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_extraction_takes_what_is_asked_for_and_overwrites_nothing(tmp_path):
    members = {"d/a": b"new a", "d/b": b"new b", "../evil": b"evil"}
    packed = tarred(tmp_path / "x.tar.gz", members)
    folder = tmp_path / "data"
    (folder / "d").mkdir(parents=True)
    (folder / "d" / "a").write_bytes(b"mine")
    archive.extract(packed, ["d/a", "d/b"], folder=folder)
    assert (folder / "d" / "a").read_bytes() == b"mine"
    assert (folder / "d" / "b").read_bytes() == b"new b"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a", "b", "x.tar.gz"]


@pytest.mark.parametrize("spoil", ["truncate", "lacks"])
def test_a_spoilt_archive_is_named_and_leaves_nothing(tmp_path, spoil):
    data = bytes((i * i) % 251 for i in range(50000))
    packed = tarred(tmp_path / "x.tar.gz", {"a": data})
    if spoil == "truncate":
        packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(CorruptFile, match=r"x.tar.gz must be a whole tar archive with"):
        archive.extract(packed, ["a" if spoil == "truncate" else "b"], folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar.gz"]
