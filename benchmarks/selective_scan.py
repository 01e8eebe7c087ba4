"""How much faster, and in how much less memory, is Mamba's selective scan than mambapy's?

python -m benchmarks.selective_scan [--batch 2] [--length 1024] [--channels 256] [--state 16]

Forward and all gradients, and the bytes kept in between: against mambapy's parallel scan
(`MambaBlock.selective_scan`) and the loop that defines the scan.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.harness import Candidate, Comparison, gradients
from benchmarks.memory import saved_bytes
from benchmarks.report import Report, arguments
from robustssm.core.rng import Noise
from robustssm.ops.selective_scan import selective_scan, selective_scan_reference

TOLERANCE = 1e-4

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def main(argv: Sequence[str] | None = None) -> dict:
    """Measures and returns what is printed as JSON."""
    parsed = arguments(
        __doc__,
        argv,
        add=(
            ("--batch", {"type": int, "default": 2}),
            ("--length", {"type": int, "default": 1024}),
            ("--channels", {"type": int, "default": 256}),
            ("--state", {"type": int, "default": 16}),
        ),
    )
    if parsed.tiny:
        parsed.length, parsed.channels, parsed.state = 40, 8, 2
    report = Report("selective scan, forward and backward", parsed)
    size = (parsed.batch, parsed.length, parsed.channels, parsed.state)
    scans: dict[str, Scan] = {"robustssm": selective_scan}
    try:
        scans["mambapy pscan"] = _mambapy(peers.mambapy())
    except peers.NotHere as why:
        report.not_here(why)
    scans["loop in torch"] = selective_scan_reference
    report.add(comparison(scans, *size))
    return report.finish()


def comparison(
    scans: Mapping[str, Scan], batch: int, length: int, channels: int, state: int
) -> Comparison:
    """All scans on inputs like those of an untrained block."""
    noise = Noise(0)
    leaves = {
        "u": noise.fork("u").normal(batch, length, channels),
        "delta": noise.fork("delta").uniform(batch, length, channels, low=-6.9, high=-2.3).exp(),
        "A": -torch.arange(1.0, state + 1).repeat(channels, 1),
        "B": noise.fork("B").normal(batch, length, state),
        "C": noise.fork("C").normal(batch, length, state),
        "D": noise.fork("D").normal(channels),
    }
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    g = noise.fork("g").normal(batch, length, channels)

    def candidate(name: str, scan: Scan) -> Candidate:
        return Candidate(
            name=name,
            run=lambda: gradients(scan(*leaves.values()), leaves, g),
            saved_bytes=lambda: saved_bytes(lambda: scan(*leaves.values())),
        )

    return Comparison(
        what="selective scan, forward and backward",
        shape=f"B {batch}, L {length}, channels {channels}, N {state}",
        candidates=[candidate(name, scan) for name, scan in scans.items()],
        tolerance=TOLERANCE,
    )


def _mambapy(code: SimpleNamespace) -> Scan:
    """Its block's scan, which needs nothing of the block."""

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return code.MambaBlock.selective_scan(None, u, delta, A, B, C, D)

    return scan


if __name__ == "__main__":
    main()
