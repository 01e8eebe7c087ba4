"""Anybody's data: arrays from .npz or .npy files."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from robustssm.core.config import register, settings
from robustssm.core.errors import CorruptFile, violation
from robustssm.core.rng import Noise, Streams
from robustssm.data import archive
from robustssm.data.base import Dataset, Split, Splits
from robustssm.data.splitting import split_off_validation, stratified

LAYOUTS = "(n, length), (n, length, channels) or (n, channels, height, width)"


@register("arrays")
@settings
class Arrays(Dataset):
    """Sequences (n, length) or (n, length, channels), or images (n, channels, height, width).

    `path` is an .npz file with x_train, y_train, x_test and y_test, or with x and y; or it is the
    .npy file of x, and `labels` that of y. Without a test part, a stratified `test_fraction` is set
    aside by a constant stream, the same for every seed. A relative path starts at the data
    directory if one is given. Pickled arrays are refused.

    Inputs are uint8, which become floats in [0, 1], or floats, stored as float32, whose `bounds`
    are taken from all the data if not stated. Labels are integers from 0; without `num_classes`
    they must be 0 to k - 1 without gaps. With `sha256` a file that has changed is refused.

    Source: none; the data are the user's.
    """

    path: str
    labels: str | None = None
    bounds: tuple[float, float] | None = None
    num_classes: Annotated[int, Field(ge=2)] | None = None
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    validation: Annotated[int, Field(ge=1)] = 100
    train_limit: Annotated[int, Field(ge=1)] | None = None
    sha256: str | None = None
    """Of the file at `path`."""

    def __post_init__(self) -> None:
        packed = self.path.endswith(".npz")
        if not packed and not self.path.endswith(".npy"):
            raise ValueError(
                violation("`Arrays(path=...)`", "end in .npz or .npy", repr(self.path))
            )
        if packed == (self.labels is not None):
            raise ValueError(
                violation(
                    "`Arrays(labels=...)`",
                    "name the .npy file of y if, and only if, `path` is an .npy file",
                    f"path={self.path!r}, labels={self.labels!r}",
                )
            )
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(
                violation("`Arrays(bounds=...)`", "be low, high with low < high", self.bounds)
            )

    def read(self, *, data_dir: Path | None, noise: Noise) -> Splits:
        """See `Dataset.read`."""
        files: dict[str, str] = {}
        arrays = self._load(data_dir, files)
        training = self._split_of(arrays, "x_train" if "x_train" in arrays else "x")
        test = self._split_of(arrays, "x_test") if "x_test" in arrays else None
        num_classes = self.num_classes or count_classes(training, test, self.path)
        bounds = self._bounds(training, test)
        if test is None:
            training, test = self._set_aside(training)
        remarks = []
        if self.bounds is None and training.x.dtype != torch.uint8:
            remarks.append(f"Bounds were taken from the data: [{bounds[0]:g}, {bounds[1]:g}].")
        return split_off_validation(
            "Arrays",
            training,
            test,
            validation=self.validation,
            train_limit=self.train_limit,
            noise=noise,
            num_classes=num_classes,
            bounds=bounds,
            origin={
                "source": f"arrays ({Path(self.path).name})",
                "licence": "the user's",
                "files": files,
                "verified": self.sha256 is not None,
                "arrays": {name: list(array.shape) for name, array in arrays.items()},
                "remarks": remarks,
            },
        )

    def _load(self, data_dir: Path | None, files: dict[str, str]) -> dict[str, np.ndarray]:
        path = _find(self.path, data_dir)
        files[self.path] = archive.checksum_of(path)
        if self.sha256 is not None:
            archive.verify(
                path,
                files[self.path],
                "sha256:" + self.sha256.removeprefix("sha256:").lower(),
                advice="The file has changed since `sha256` was set.",
            )
        if self.labels is None:
            return _load_npz(path)
        other = _find(self.labels, data_dir)
        files[self.labels] = archive.checksum_of(other)
        return {"x": _load_npy(path), "y": _load_npy(other)}

    def _split_of(self, arrays: dict[str, np.ndarray], name: str) -> Split:
        label_name = name.replace("x", "y", 1)
        x = as_inputs(arrays[name], f"`{name}` in {self.path}")
        y = as_classes(arrays[label_name], f"`{label_name}` in {self.path}")
        if len(x) != len(y):
            raise ValueError(
                violation(
                    f"`{name}` and `{label_name}` in {self.path}",
                    "have as many rows as each other",
                    f"{len(x)} and {len(y)}",
                )
            )
        split = Split(x, y)
        split.check(
            f"`{name}` and `{label_name}` in {self.path}",
            num_classes=self.num_classes or 1 + int(arrays[label_name].max(initial=0)),
            shape=tuple(x.shape[1:]),
            bounds=self.bounds or (-math.inf, math.inf),
        )
        return split

    def _bounds(self, training: Split, test: Split | None) -> tuple[float, float]:
        if training.x.dtype == torch.uint8:
            if self.bounds not in (None, (0.0, 1.0)):
                raise ValueError(
                    violation(
                        "`Arrays(bounds=...)`",
                        "be (0, 1) or left out for uint8 inputs, as these are divided by 255",
                        self.bounds,
                        "Save floats for another range.",
                    )
                )
            return (0.0, 1.0)
        if self.bounds is not None:
            return self.bounds
        ranges = [torch.aminmax(split.x) for split in (training, test) if split is not None]
        low = min(float(r.min) for r in ranges)
        high = max(float(r.max) for r in ranges)
        if low == high:
            raise ValueError(
                violation(
                    f"Inputs in {self.path}",
                    "differ from each other if `bounds` are to be taken from them",
                    f"{low} everywhere",
                    "State the bounds: `--set dataset.bounds=[0,1]`.",
                )
            )
        return (low, high)

    def _set_aside(self, every: Split) -> tuple[Split, Split]:
        count = round(self.test_fraction * len(every))
        if not 0 < count < len(every):
            raise ValueError(
                violation(
                    "`Arrays(test_fraction=...)`",
                    f"leave examples on both sides of {len(every)}",
                    f"{self.test_fraction}, which sets {count} aside",
                )
            )
        chosen, rest = stratified(every.y, count, Streams(0).noise("arrays", "test"))
        return every.take(rest.sort().values), every.take(chosen.sort().values)


def read_examples(path: Path) -> Split:
    """The examples of an .npz file to evaluate on: `x_test` and `y_test`, else `x` and `y`.

    Inputs keep their shape; (n, length) gets no channel here.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the arrays are no inputs and classes; says which.
        CorruptFile: If the file is damaged.
    """
    arrays = _load_npz(_find(str(path), None))
    name = "x_test" if "x_test" in arrays else "x"
    split = Arrays(path=str(path))._split_of(arrays, name)
    return Split(split.x.reshape(arrays[name].shape), split.y)


def _find(name: str, data_dir: Path | None) -> Path:
    path = Path(name) if data_dir is None else data_dir / name
    if not path.is_file():
        raise FileNotFoundError(
            f"`arrays` needs {name}; there is no file {path}. Put it there, give an absolute path, "
            f"or {archive.ARGUMENT} to the directory it lies in."
        )
    return path


def _load_npy(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        loaded.close()
        raise ValueError("it is an .npz archive")
    except _DAMAGE as error:
        raise CorruptFile(
            f"{path} must be a whole .npy array of numbers, not a pickle; {error}. "
            "Write it again with numpy.save, from an array that is not of dtype object."
        ) from None


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path):  # numpy takes anything that is no archive for a pickle
            pass
        with np.load(path, allow_pickle=False) as members:
            for names in (("x_train", "y_train", "x_test", "y_test"), ("x", "y")):
                if all(name in members for name in names):
                    return {name: members[name] for name in names}
            found = ", ".join(members) or "none"
    except _DAMAGE as error:
        raise CorruptFile(
            f"{path} must be a whole .npz archive of arrays of numbers, not of pickles; {error}. "
            "Write it again with numpy.savez, from arrays that are not of dtype object."
        ) from None
    raise ValueError(
        violation(
            str(path), "hold arrays named x and y, or x_train, y_train, x_test and y_test", found
        )
    )


_DAMAGE = (ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)
"""What reading a file that is cut off, damaged, or full of pickles may raise."""


def as_inputs(array: np.ndarray, what: str) -> UInt8[Tensor, "n ..."] | Float[Tensor, "n ..."]:
    """Checks shape, type and values; sequences of scalars get a channel."""
    if array.ndim not in (2, 3, 4) or 0 in array.shape[1:]:
        raise ValueError(violation(what, f"have shape {LAYOUTS}", array.shape))
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(
            violation(
                what,
                "be uint8, or floats",
                array.dtype,
                "Convert it with .astype('float32') and state `bounds`.",
            )
        )
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
            array = array.astype(np.float32)
    x = torch.from_numpy(np.ascontiguousarray(array))
    return x.unsqueeze(-1) if x.ndim == 2 else x


def as_classes(array: np.ndarray, what: str) -> Int[Tensor, " n"]:
    """Checks that labels are integers, one each."""
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            violation(
                what,
                "be integers of shape (n,)",
                f"{array.dtype} of shape {array.shape}",
                "One-hot labels become integers by .argmax(1), floats by .astype('int64').",
            )
        )
    return torch.from_numpy(array.astype(np.int64))


def count_classes(training: Split, test: Split | None, path: str) -> int:
    """The number of classes, if none is left out."""
    present = torch.cat([training.y, *([] if test is None else [test.y])]).unique()
    expected = torch.arange(len(present))
    if len(present) < 2 or not torch.equal(present, expected):
        found = ", ".join(map(str, present[:10].tolist())) + (", ..." if len(present) > 10 else "")
        raise ValueError(
            violation(
                f"Labels in {path}",
                "be 0, 1, ..., k - 1, two classes or more, none left out, as `num_classes` is not "
                "given",
                found,
                "Renumber them, or set `num_classes`.",
            )
        )
    return len(present)
