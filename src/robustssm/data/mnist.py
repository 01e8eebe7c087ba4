"""MNIST (lecun1998gradient) from its four IDX files, at full size or pooled."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from robustssm.core.config import register, settings
from robustssm.core.errors import CorruptFile, violation
from robustssm.core.rng import Noise
from robustssm.data import archive
from robustssm.data.base import Dataset, Split, Splits
from robustssm.data.splitting import split_off_validation

FOLDERS = ("MNIST/raw", ".")
"""torchvision's layout, and all files in one directory."""

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)


@register("mnist")
@settings
class MNIST(Dataset):
    """60,000 handwritten digits to train on and 10,000 to test, as (1, 28, 28) / `pool`.

    At pool=1 inputs are stored as uint8; otherwise each is the average over pool x pool pixels, a
    float in [0, 1], correctly rounded. `verify` compares each file, unpacked, with the SHA-256 of
    the original; turn it off for other sets of this format (Fashion-MNIST, KMNIST).

    Source: lecun1998gradient, section III A.
    """

    validation: Annotated[int, Field(ge=1)] = 2000
    train_limit: Annotated[int, Field(ge=1)] | None = None
    pool: Literal[1, 2, 4, 7, 14] = 1
    verify: bool = True
    download: bool = False

    def __post_init__(self) -> None:
        if self.download and not self.verify:
            raise ValueError(
                violation(
                    "`MNIST(download=True)`",
                    "have verify=True, as it fetches the official files",
                    "verify=False",
                    "For other files, put them into the data directory and leave download=False.",
                )
            )

    def read(self, *, data_dir: Path | None, noise: Noise) -> Splits:
        """See `Dataset.read`."""
        files: dict[str, str] = {}
        training = self._read_part("train", data_dir, files)
        test = self._read_part("t10k", data_dir, files)
        remarks = [] if self.verify else ["Checksums were not compared with the official files."]
        if self.pool > 1:
            remarks.append(f"Images are averaged over {self.pool} x {self.pool} pixels.")
        return split_off_validation(
            "MNIST",
            training,
            test,
            validation=self.validation,
            train_limit=self.train_limit,
            noise=noise,
            num_classes=10,
            bounds=(0.0, 1.0),
            origin={
                "source": "mnist (IDX files)",
                "licence": "CC BY-SA 3.0",
                "files": files,
                "verified": self.verify,
                "remarks": remarks,
            },
        )

    def _read_part(self, part: str, data_dir: Path | None, files: dict[str, str]) -> Split:
        images_path, images = self._read_idx(f"{part}-images-idx3-ubyte", 3, data_dir, files)
        labels_path, labels = self._read_idx(f"{part}-labels-idx1-ubyte", 1, data_dir, files)
        if images.shape[1:] != (28, 28):
            height, width = images.shape[1:]
            raise CorruptFile(
                f"{images_path} must hold 28 x 28 images; it holds {height} x {width}. "
                "Convert it to .npz and use the data set `arrays`."
            )
        if len(images) != len(labels):
            raise CorruptFile(
                f"{images_path} and {labels_path} must belong together; they hold {len(images)} "
                f"images and {len(labels)} labels. Fetch both again."
            )
        x = torch.from_numpy(images).unsqueeze(1)
        return Split(
            x if self.pool == 1 else average(x, self.pool), torch.from_numpy(labels).long()
        )

    def _read_idx(
        self, name: str, axes: int, data_dir: Path | None, files: dict[str, str]
    ) -> tuple[Path, np.ndarray]:
        path = archive.find(name, folders=FOLDERS, data_dir=data_dir)
        if path is None and self.download and data_dir is not None:
            path = archive.fetch(
                [f"{mirror}/{name}.gz" for mirror in MIRRORS],
                known_hash=OFFICIAL[name].served,
                folder=data_dir / FOLDERS[0],
            )
        if path is None or data_dir is None:
            raise archive.missing(
                "mnist",
                f"{name}[.gz]",
                folders=FOLDERS,
                data_dir=data_dir,
                downloadable=not self.download,
            )
        data = archive.contents(path)
        array = parse_idx(path, data, axes=axes)
        digest = archive.checksum(data)
        if self.verify:
            archive.verify(
                path,
                digest,
                OFFICIAL[name].unpacked,
                advice="Fetch it again, or accept it with `--set dataset.verify=false`.",
            )
        files[path.relative_to(data_dir).as_posix()] = digest
        return path, array


def parse_idx(path: Path, data: bytes, *, axes: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes.

    Layout: 0, 0, 8 (unsigned byte), number of axes; then each axis as a big-endian 32-bit integer;
    then the values, last axis fastest.

    Args:
        path: The file's name, for messages.
        data: Its content, unpacked.
        axes: Number of axes it must have.

    Returns:
        A new, writable uint8 array.

    Raises:
        CorruptFile: If the magic number, or the length, is not as it must be.
    """
    magic = bytes([0, 0, 8, axes])
    if data[:4] != magic:
        raise CorruptFile(
            f"{path} must start with {magic.hex(' ')} (IDX, unsigned bytes, {axes} axes); "
            f"it starts with {data[:4].hex(' ') or 'nothing'}. Fetch it again."
        )
    start = 4 + 4 * axes
    shape = tuple(int(n) for n in np.frombuffer(data[4:start].ljust(4 * axes, b"\0"), ">u4"))
    expected = start + math.prod(shape)
    if len(data) < start or len(data) != expected:
        state = "cut off" if len(data) < expected else "too long"
        raise CorruptFile(
            f"{path} must be {expected} bytes long, unpacked, for shape {shape}; "
            f"it is {state}: {len(data)} bytes. Fetch it again."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def average(
    x: UInt8[Tensor, "n channels height width"], pool: int
) -> Float[Tensor, "n channels pooled_height pooled_width"]:
    """Averages pool x pool pixels and divides by 255: one rounding, to float32.

    Args:
        x: Images, (n, channels, height, width); height and width are multiples of `pool`.
        pool: Side of the squares; their sum, at most 255 pool^2, is exact in float32.

    Returns:
        Images in [0, 1], (n, channels, height / pool, width / pool).
    """
    height, width = x.shape[2] // pool, x.shape[3] // pool
    total = torch.zeros(*x.shape[:2], height, width)
    for row in range(pool):
        for column in range(pool):
            total += x[..., row::pool, column::pool]
    return total.div_(255 * pool**2)


@dataclass(frozen=True)
class _Checksums:
    served: str
    """Of the .gz at the mirrors; other packers give other bytes."""
    unpacked: str


OFFICIAL = {
    "train-images-idx3-ubyte": _Checksums(
        "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": _Checksums(
        "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": _Checksums(
        "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": _Checksums(
        "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
