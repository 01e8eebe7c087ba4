"""Does the cost per token stay the same from short to long sequences, in batch and in d_model?

python -m benchmarks.scaling [--structures s4 s4d ...] [--tokens 32768] [--channels 64] [--quick]

Every layer at a fixed number of tokens per batch: in an attack (frozen, ten steps of forward and
input gradient) and in training (forward and all gradients). A convolution's kernel is made once per
attack or training step, whatever the batch, at a cost that grows with the length: that shows where
few long sequences share it. A row's ratio is its cost per token (per token and channel, where
d_model varies) over that of its base: length 1,024, batch 1 or d_model 64. It is 1 where cost is
linear. The headline is the worst ratio of length 16,384 in an attack, which is ten of the eleven
passes of adversarial training.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.harness import Candidate, Comparison, Effort, gradients
from benchmarks.layers import STEPS, frozen
from benchmarks.report import Report, arguments
from robustssm.core.rng import Noise
from robustssm.layers.base import LayerConfig
from robustssm.layers.dss import DSSConfig
from robustssm.layers.mamba import MambaConfig
from robustssm.layers.moving_average import MovingAverage
from robustssm.layers.s4 import S4Config
from robustssm.layers.s4d import S4DConfig
from robustssm.layers.s5 import S5Config

CONFIGS: Mapping[str, LayerConfig | None] = {
    "s4": S4Config(d_state=64),
    "dss": DSSConfig(d_state=64),
    "s4d": S4DConfig(d_state=64),
    "s5": S5Config(d_state=64),
    "mamba": MambaConfig(d_state=16),
    "moving average": None,
}
BASE_LENGTH, LONGEST = 1024, 16384


def main(argv: Sequence[str] | None = None) -> dict:
    """Measures and returns what is printed as JSON."""
    parsed = arguments(
        __doc__,
        argv,
        add=(
            ("--structures", {"nargs": "+", "choices": CONFIGS, "default": list(CONFIGS)}),
            ("--tokens", {"type": int, "default": 2 * LONGEST}),
            ("--channels", {"type": int, "default": 64}),
        ),
    )
    lengths, batches, widths = [256, 1024, 4096, LONGEST], [1, 4, 16], [64, 128, 256]
    if parsed.quick:
        lengths, batches, widths = [1024, LONGEST], [1, 16], [64, 256]
    if parsed.tiny:
        lengths, batches, widths = [8, 32], [1, 2], [4, 8]
        parsed.tokens, parsed.channels = 32, 4
    report = Report("cost per token, as length, batch and width grow", parsed)
    base = BASE_LENGTH if BASE_LENGTH in lengths else lengths[0]
    for name in parsed.structures:
        by_length = {n: (parsed.tokens // n, n, parsed.channels) for n in lengths}
        for work in ("attack", "training"):
            _compare(report, parsed, f"{name}, {work}, length", by_length, base)
    for name in parsed.structures:
        by_batch = {n: (n, base, parsed.channels) for n in batches}
        _compare(report, parsed, f"{name}, training, batch", by_batch, batches[0])
        by_width = {n: (2, base, n) for n in widths}
        _compare(report, parsed, f"{name}, training, d_model", by_width, widths[0])
    longest = [r for r in report.rows if r["what"].endswith(f"attack, length {lengths[-1]}")]
    worst = max(longest, key=lambda row: row["ratio"])
    report.rows.sort(key=lambda row: row is not worst)
    return report.finish()


def _compare(
    report: Report,
    parsed: argparse.Namespace,
    what: str,
    sizes: Mapping[int, tuple[int, int, int]],
    base: int,
) -> None:
    """Times one structure at several sizes, in turn; adds a row for every size but the base."""
    name, work, varied = what.split(", ")
    runs = {size: _work(name, work, *shape) for size, shape in sizes.items()}
    made = Comparison(
        what=what,
        shape="",
        candidates=[
            Candidate(name=str(size), run=run, count=STEPS if work == "attack" else 1)
            for size, run in runs.items()
        ],
    )
    effort = report.effort(
        quick=Effort(rounds=3, seconds=0.5, least=2), full=Effort(rounds=9, seconds=8.0)
    )
    for threads in parsed.threads:
        with report.kernels():
            times = made.measure(threads=threads, effort=effort)
        per = {
            size: times[str(size)].median / _units(shape, varied) for size, shape in sizes.items()
        }
        for size, shape in sizes.items():
            if size == base:
                continue
            report.add_row(
                {
                    "what": f"{what} {size}",
                    "shape": f"B {shape[0]}, L {shape[1]}, d {shape[2]}",
                    "ours": f"{varied} {size}",
                    "peer": f"{varied} {base}",
                    "threads": threads,
                    "ratio": per[size] / per[base],
                    "ours_s": per[size],
                    "peer_s": per[base],
                    "unit": "s per token and channel" if varied == "d_model" else "s per token",
                }
            )


def _units(shape: tuple[int, int, int], varied: str) -> int:
    batch, length, channels = shape
    return batch * length * (channels if varied == "d_model" else 1)


def _work(name: str, work: str, batch: int, length: int, channels: int) -> Callable[[], object]:
    """An attack's steps on a layer of that size, or forward with all gradients."""
    noise, config = Noise(0), CONFIGS[name]
    if config is None:
        layer = MovingAverage(d_model=channels, d_state=16, directions=2, noise=noise)
    else:
        layer = config.build(d_model=channels, length=length, noise=noise)
    x = noise.fork("x").normal(batch, length, channels).requires_grad_()
    g = noise.fork("g").normal(batch, length, channels)
    leaves = {"x": x, **dict(layer.named_parameters())}

    def attack() -> None:
        with frozen(layer):
            for _ in range(STEPS):
                torch.autograd.grad(layer(x), x, g)

    return attack if work == "attack" else lambda: gradients(layer(x), leaves, g)


if __name__ == "__main__":
    main()
