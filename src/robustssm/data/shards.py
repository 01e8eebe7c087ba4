"""Which .parquet files in a directory are which part of a data set."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustssm.core.errors import violation
from robustssm.data import archive


@dataclass(frozen=True)
class Shards:
    """Files of the training and the test part, in reading order."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]
    test_part: str
    """What the files of the test part are called: "test" or "validation"."""


def find_shards(folder: Path, *, test_part: str | None) -> Shards:
    """Finds the shards of a data set.

    Args:
        folder: The directory; its folder data/ is looked at as well.
        test_part: "test" or "validation", or None for the first of these that there is.

    Raises:
        FileNotFoundError: If the directory, or a part, is missing.
        ValueError: If shards that count themselves are not all there.
    """
    wanted = (test_part,) if test_part else ("test", "validation")
    train = _part(folder, "train")
    tests = {part: files for part in wanted if (files := _part(folder, part))}
    lacking = "train-*.parquet" if not train else f"{' or '.join(wanted)}-*.parquet"
    if not train or not tests:
        state = "there is no such directory" if not folder.is_dir() else _listing(folder)
        raise FileNotFoundError(
            f"`parquet` needs {lacking} in {folder} or in its folder data/; {state}. Put the files "
            f"there, or {archive.ARGUMENT} to the directory that dataset.path starts from."
        )
    part, test = next(iter(tests.items()))
    return Shards(train, test, part)


def _part(folder: Path, part: str) -> tuple[Path, ...]:
    patterns = (f"{part}-*.parquet", f"{part}.parquet", f"{part}/*.parquet")
    for place in (folder, folder / "data"):
        for pattern in patterns:
            files = sorted(place.glob(pattern))
            if files:
                _check_complete(files)
                return tuple(files)
    return ()


def _check_complete(files: Sequence[Path]) -> None:
    counts = {m[1] for file in files if (m := re.search(r"-of-(\d+)[.-]", file.name))}
    if counts and counts != {f"{len(files):0{len(next(iter(counts)))}d}"}:
        raise ValueError(
            violation(
                f"Shards in {files[0].parent}",
                f"be as many as their names say, {', '.join(sorted(counts))}",
                f"{len(files)}: {', '.join(file.name for file in files[:5])}",
                "Fetch the others, or remove those of another version.",
            )
        )


def _listing(folder: Path) -> str:
    found = sorted(file.name for file in folder.rglob("*.parquet"))
    return f"it holds {', '.join(found[:5]) or 'no .parquet file'}"
