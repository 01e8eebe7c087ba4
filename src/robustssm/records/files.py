"""JSON files that are whole or not there: written under another name, flushed, renamed."""

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

JSON = Any


def write_json(path: Path, data: JSON) -> None:
    """Writes JSON so that a reader sees either the old file or the whole new one."""
    write_bytes(path, (json.dumps(data, indent=1, allow_nan=True) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes to a temporary name beside `path`, flushes to the disk, renames.

    Raises:
        OSError: If the disk is full or not writable; `path` is then as it was, and no temporary
            file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkstemp, whose files nobody but their owner may read.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> JSON:
    """Reads a JSON file.

    Raises:
        ValueError: If it is not JSON; names the file.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} must be a JSON file; it is damaged ({error}). "
            "Restore it or remove it and run again."
        ) from None
