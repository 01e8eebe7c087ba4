"""Files of data sets: finding, verifying, unpacking and, on request, fetching them.

Checksums are written as pooch writes them: "sha256:..." or "md5:...".
"""

import gzip
import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from robustssm.core.errors import CorruptFile

ARGUMENT = "pass --data-dir or set ROBUSTSSM_DATA"


def find(name: str, *, folders: Sequence[str], data_dir: Path | None) -> Path | None:
    """The first of `data_dir`/folder/name, packed (.gz) or not, that exists.

    Args:
        name: File name, without .gz.
        folders: Where it may lie below `data_dir`, the preferred place first.
        data_dir: The data directory, or None.
    """
    if data_dir is None:
        return None
    candidates = [
        data_dir / folder / packed for folder in folders for packed in (name, f"{name}.gz")
    ]
    return next((path for path in candidates if path.is_file()), None)


def missing(
    dataset: str,
    what: str,
    *,
    folders: Sequence[str],
    data_dir: Path | None,
    advice: str = "",
    downloadable: bool = True,
) -> FileNotFoundError:
    """The error that says which file is missing, where it was looked for and what to do.

    Args:
        dataset: Registered name of the data set.
        what: The file or files it needs.
        folders: As in `find`; the first is where the file should be put.
        data_dir: The data directory, or None.
        advice: One more thing to do, a sentence.
        downloadable: Whether the data set has the setting `download`.
    """
    put = "Put the files into" if "," in what else "Put the file into"
    if data_dir is None:
        looked = "no data directory was given"
        place = str(Path("DIR") / folders[0])
        repair = f"{put} {place} and {ARGUMENT} to DIR"
    else:
        places = ", ".join(str(data_dir / folder) for folder in folders)
        looked = f"looked in {places}" + ("" if data_dir.is_dir() else " (no such directory)")
        repair = f"{put} {data_dir / folders[0]}, {ARGUMENT}"
    if downloadable:
        repair += ", or run with `--set dataset.download=true` to fetch it"
    message = f"`{dataset}` needs {what}; {looked}. {repair}."
    return FileNotFoundError(f"{message} {advice}" if advice else message)


def contents(path: Path) -> bytes:
    """All bytes of a file, unpacked if its name ends in .gz.

    Raises:
        CorruptFile: If the gzip stream is cut off or damaged.
    """
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except EOFError:
        raise CorruptFile(
            f"{path} must be a whole gzip file; it is cut off after {path.stat().st_size} bytes. "
            "Fetch it again."
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise CorruptFile(
            f"{path} must be a gzip file; it is damaged or something else ({error}). "
            "Fetch it again, or drop .gz from its name if it is not packed."
        ) from None


def checksum(data: bytes, *, algorithm: str = "sha256") -> str:
    """The checksum of some bytes, such as "sha256:ba89...": against accidents, not attacks."""
    return f"{algorithm}:{hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()}"


def checksum_of(path: Path, *, algorithm: str = "sha256") -> str:
    """The checksum of a file, read piece by piece."""
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def verify(path: Path, found: str, official: str, *, advice: str) -> None:
    """Compares a file's checksum with the one it must have.

    Raises:
        CorruptFile: If they differ.
    """
    if found != official:
        raise CorruptFile(
            f"{path} must have the checksum {official} of the official file; got {found}. {advice}"
        )


def fetch(urls: Sequence[str], *, known_hash: str, folder: Path) -> Path:
    """Downloads a file from the first address that serves it, and verifies it before keeping it.

    Args:
        urls: Addresses of the same bytes.
        known_hash: Checksum of the file as served.
        folder: Where to put it; made if need be.

    Returns:
        Where it lies, named as in its address.

    Raises:
        ConnectionError: If no address serves it.
        CorruptFile: If what came has another checksum; nothing is kept then.
    """
    import pooch  # here, as only those who ask for a download need it

    failures = []
    for url in urls:
        name = url.rsplit("/", 1)[1]
        try:
            return Path(pooch.retrieve(url, known_hash=known_hash, fname=name, path=folder))
        except ValueError as error:  # pooch's word for another checksum; it has removed the file
            raise CorruptFile(f"{url} must serve the official file; {error}") from None
        except OSError as error:
            failures.append(f"{url}: {error}")
    raise ConnectionError(
        f"A download needs an address that answers; tried {'; '.join(failures)}. "
        f"Check the network, or fetch the file by other means and put it into {folder}."
    )


def extract(archive: Path, members: Sequence[str], *, folder: Path) -> None:
    """Takes named files out of a tar archive; a file that is already there is left alone.

    Args:
        archive: A tar file, compressed or not.
        members: Names in the archive; each becomes `folder`/name.
        folder: Where to put them.

    Raises:
        CorruptFile: If the archive is damaged or lacks one of them.
    """
    try:
        with tarfile.open(archive) as tar:
            for name in members:
                target = folder / name
                if not target.exists():
                    _extract_one(tar, name, target)
    except (tarfile.TarError, EOFError, zlib.error, KeyError) as error:
        raise CorruptFile(
            f"{archive} must be a whole tar archive with {', '.join(members)}; it is damaged or "
            f"another ({error}). Remove it and fetch it again."
        ) from None


def _extract_one(tar: tarfile.TarFile, name: str, target: Path) -> None:
    source = tar.extractfile(name)
    if source is None:
        raise KeyError(f"{name} is no regular file")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")  # so that a kill leaves no half file behind
    try:
        with source, partial.open("wb") as file:
            shutil.copyfileobj(source, file)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
