"""Columns of Parquet files as arrays: the only file that imports pyarrow, and that when called."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustssm.core.errors import CorruptFile, violation
from robustssm.data import images


class Table:
    """Some columns of one or more files, row by row as they stand there."""

    def __init__(self, table: Any, file: Path):
        """Made by `read_shards`.

        Args:
            table: A pyarrow.Table.
            file: The first file, for messages.
        """
        self._table, self.file = table, file

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self._table.column_names)

    def column(self, name: str) -> Any:
        """A column, as a pyarrow array in one piece."""
        return self._table.column(name).combine_chunks()

    def encoded(self, name: str) -> bool:
        """Whether a column holds encoded images: bytes, or {bytes, path}."""
        from pyarrow import types

        kind = self._table.schema.field(name).type
        if types.is_struct(kind):
            kind = next((field.type for field in kind if field.name == "bytes"), kind)
        return types.is_binary(kind) or types.is_large_binary(kind)

    def features(self) -> Mapping[str, Any]:
        """What the library `datasets` noted of the columns; empty if another wrote the file."""
        noted = (self._table.schema.metadata or {}).get(b"huggingface", b"{}")
        try:
            return json.loads(noted)["info"]["features"]
        except (ValueError, KeyError, TypeError):
            return {}

    def classes(self, name: str) -> list[str] | None:
        """Names of the classes of a label column, if they are noted."""
        feature = self.features().get(name)
        found = feature.get("names") if isinstance(feature, Mapping) else None
        return [str(name) for name in found] if isinstance(found, list) and found else None


def read_shards(files: Sequence[Path], columns: Sequence[str] | None) -> Table:
    """Reads columns of files that belong together, one after the other.

    Args:
        files: One or more .parquet files.
        columns: Names of columns; None for the names and no rows.

    Raises:
        ValueError: If pyarrow is not installed, or files differ in their columns.
        CorruptFile: Names the file that cannot be read.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            "The data set `parquet` needs pyarrow, which is not installed. Install the extra: "
            "pip install 'robustssm[parquet]'."
        ) from None
    tables = []
    for file in files:
        try:
            with parquet.ParquetFile(file) as opened:
                schema = opened.schema_arrow
                complete = set(columns or ()) <= set(schema.names)
                empty = columns is None or not complete
                tables.append(
                    schema.empty_table() if empty else opened.read(columns=list(columns or ()))
                )
        except (pa.ArrowException, OSError, EOFError) as error:
            raise CorruptFile(
                f"{file} must be a whole .parquet file; {error}. Fetch it again."
            ) from None
        if not complete or not tables[0].schema.equals(tables[-1].schema):
            raise ValueError(
                violation(
                    f"Shards in {file.parent}",
                    "have the same columns of the same types",
                    f"others in {file.name} than in {files[0].name}: {', '.join(schema.names)}",
                    "Remove the shards of another version.",
                )
            )
    return Table(pa.concat_tables(tables), files[0])


def to_images(column: Any, what: str) -> np.ndarray:
    """Decodes a column of encoded images.

    Args:
        column: A pyarrow array of bytes or of {bytes, path}.
        what: How messages call it.

    Returns:
        Pixels (n, channels, height, width), uint8; one channel if all images are grey, else three.

    Raises:
        CorruptFile: Names the first row that cannot be decoded.
        ValueError: If a row has no bytes, or another size than the first.
    """
    from pyarrow import types

    encoded = column.field("bytes") if types.is_struct(column.type) else column
    rows = [None if value is None else bytes(value) for value in encoded.to_pylist()]
    for row, data in enumerate(rows):
        if not data:
            raise ValueError(
                violation(
                    f"Row {row} of {what}",
                    "hold the bytes of an image",
                    "none, or a path alone",
                    "Write the file again with the images embedded.",
                )
            )
    named = [f"Row {row} of {what}" for row in range(len(rows))]
    modes = {images.mode(data, name) for data, name in zip(rows, named, strict=True) if data}
    grey = modes <= {"L", "1"}
    pixels: np.ndarray = np.empty(0)
    for row, data in enumerate(rows):
        image = images.decode(data or b"", named[row], grey=grey)
        if row == 0:
            pixels = np.empty((len(rows), *image.shape), np.uint8)
        if image.shape != pixels.shape[1:]:
            raise ValueError(
                violation(
                    named[row],
                    f"have the size of row 0, {pixels.shape[2]} x {pixels.shape[3]} pixels",
                    f"{image.shape[1]} x {image.shape[2]}",
                    "Resize the images to one size first.",
                )
            )
        pixels[row] = image
    return pixels


def to_numbers(column: Any, what: str) -> np.ndarray:
    """Makes an array of a column of numbers, or of lists of them, of any depth.

    Args:
        column: A pyarrow array.
        what: How messages call it.

    Returns:
        An array (n, ...) of the type that is stored.

    Raises:
        ValueError: If an entry is missing, lists differ in length, or these are no numbers.
    """
    from pyarrow import compute, types

    shape = [len(column)]
    while True:
        if column.null_count:
            raise ValueError(
                violation(what, "have no missing entries", f"{column.null_count} of them")
            )
        if not (types.is_list(column.type) or _other_list(column.type)):
            break
        lengths = compute.call_function("list_value_length", [column]).unique().to_pylist()
        if len(lengths) > 1:
            raise ValueError(
                violation(
                    what,
                    "hold lists of one length",
                    f"lengths from {min(lengths)} to {max(lengths)}",
                    "Pad or cut the sequences first.",
                )
            )
        shape.append(lengths[0] if lengths else 0)
        column = column.flatten()
    if not (types.is_integer(column.type) or types.is_floating(column.type)):
        raise ValueError(
            violation(what, "hold numbers", column.type, "Class names must become integers first.")
        )
    values = column.to_numpy(zero_copy_only=False).reshape(shape)
    return np.require(values, requirements="W")  # torch wants arrays that it may write to


def _other_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_large_list(kind) or types.is_fixed_size_list(kind)
