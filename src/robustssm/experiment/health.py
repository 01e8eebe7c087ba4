"""Whether this installation is sound: devices, data, layers that agree with their definition."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from robustssm.core.config import lookup, names
from robustssm.core.errors import CorruptFile
from robustssm.core.rng import Noise, Streams
from robustssm.data.base import Dataset
from robustssm.layers.base import LayerConfig


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    state: str
    good: bool = True


def devices() -> Iterator[Finding]:
    """The processor, its threads, and every CUDA device."""
    yield Finding("cpu", f"{torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield Finding("cuda", "none (everything works on the CPU)")
    for index in range(torch.cuda.device_count()):
        yield Finding(f"cuda:{index}", torch.cuda.get_device_name(index))


def data_sets(data_dir: Path | None) -> Iterator[Finding]:
    """Every data set: its sizes if its default settings find it, else why not (no fault)."""
    for name in names("dataset"):
        cls = cast(type[Dataset], lookup("dataset", name))
        try:
            splits = cls().read(data_dir=data_dir, noise=Streams(0).noise("split"))
        except FileNotFoundError as error:
            yield Finding(f"data: {name}", f"not here. {error}")
        except CorruptFile as error:
            yield Finding(f"data: {name}", str(error), good=False)
        except ValueError as error:
            yield Finding(f"data: {name}", f"needs settings. {error}")
        else:
            sizes = f"{len(splits.train)} / {len(splits.validation)} / {len(splits.test)}"
            yield Finding(f"data: {name}", f"{sizes} train / validation / test, {splits.shape}")


def layers() -> Iterator[Finding]:
    """Every layer: the largest relative difference of its fast and its plain form, in float32."""
    for name in names("layer"):
        cls = cast(type[LayerConfig], lookup("layer", name))
        config = cls.samples()[0]
        layer = config.build(d_model=8, length=33, noise=Noise(0)).eval()
        x = Noise(1).normal(2, 33, 8)
        with torch.no_grad():
            fast, plain = layer(x), layer.double().reference(x.double())
        error = float((fast - plain).abs().max() / plain.abs().max())
        yield Finding(
            f"layer: {name}", f"fast form within {error:.0e} of its definition", good=error < 1e-3
        )
