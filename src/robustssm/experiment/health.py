"""Whether this installation is sound: devices, data, layers that agree with their definition."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from robustssm.core.config import lookup, names
from robustssm.core.errors import CorruptFile
from robustssm.core.rng import Noise, Streams
from robustssm.data.base import Dataset
from robustssm.layers.base import LayerConfig
from robustssm.ops.convolution import causal_convolution
from robustssm.ops.kernels import native, triton_support


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


def kernels() -> Iterator[Finding]:
    """Whether compiled kernels are in use, and what that is worth: on the CPU, and in Triton."""
    state = native.state()
    for refused in state.refused:
        yield Finding("cpu kernels", refused, good=False)
    if state.level is None:
        remedy = f"{state.reason} Until then torch does their work: slower, with the same results."
        yield Finding("cpu kernels", remedy)
    else:
        with_them, without = _convolution_seconds()
        yield Finding(
            "cpu kernels",
            f"level {state.level}, {state.width} floats at a time. A convolution and its input "
            f"gradient take {1e3 * with_them:.1f} ms with them, {1e3 * without:.1f} ms without: "
            f"{without / with_them:.1f} times as fast (threads: {torch.get_num_threads()})",
        )
    verdict = triton_support.available()
    ready = "in Triton's interpreter (slow, for tests)" if triton_support.interpreted() else "ready"
    yield Finding("triton kernels", ready if verdict else f"not in use: {verdict.reason}")


def _convolution_seconds() -> tuple[float, float]:
    """The shortest of a few times with the compiled kernels, and without them."""
    u = Noise(0).normal(8, 1024, 64).requires_grad_()
    kernel = Noise(1).normal(64, 1024, std=0.1)
    best = [float("inf"), float("inf")]
    began = time.perf_counter()
    for _ in range(20):  # in turns, as whatever else the machine does is then shared
        for which, context in enumerate((nullcontext, native.without)):
            with context():
                start = time.perf_counter()
                causal_convolution(u, kernel).sum().backward()
                best[which] = min(best[which], time.perf_counter() - start)
        if time.perf_counter() - began > 0.5:
            break
    return best[0], best[1]


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
