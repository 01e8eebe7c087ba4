"""How much faster is the causal convolution than torch's transforms under autograd, and where?

python -m benchmarks.convolution [--lengths 1024 64 ...] [--channels 128] [--tokens 16384] [--quick]

Forward with the gradient of the input alone, as attacks need it, and with all gradients. Every
length has the same number of tokens. The first length is the headline.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.harness import Candidate, Comparison, Effort, gradients
from benchmarks.report import Report, arguments
from robustssm.core.rng import Noise
from robustssm.ops.convolution import causal_convolution

TOLERANCE = 1e-5


def main(argv: Sequence[str] | None = None) -> dict:
    """Measures and returns what is printed as JSON."""
    lengths = [1024, 64, 256, 784, 4096, 16384]
    parsed = arguments(
        __doc__,
        argv,
        add=(
            ("--lengths", {"type": int, "nargs": "+", "default": lengths}),
            ("--channels", {"type": int, "default": 128}),
            ("--tokens", {"type": int, "default": 16384}),
        ),
    )
    if parsed.tiny:
        parsed.lengths, parsed.channels, parsed.tokens = [80, 16], 4, 160
    report = Report("causal convolution", parsed)
    for length in parsed.lengths:
        batch = max(1, parsed.tokens // length)
        for kernel_too in (False, True):
            made = comparison(batch, length, parsed.channels, kernel_too=kernel_too)
            report.add(made, report.effort(quick=Effort(rounds=5, seconds=1.0)))
    return report.finish()


def comparison(batch: int, length: int, channels: int, *, kernel_too: bool) -> Comparison:
    """One size, with the gradient of the input or of both."""
    noise = Noise(0)
    u = noise.fork("u").normal(batch, length, channels).requires_grad_()
    decay = noise.fork("decay").uniform(channels, 1, low=1e-3, high=0.1)
    kernel = noise.fork("kernel").normal(channels, length) * torch.exp(
        -decay * torch.arange(length)
    )
    kernel.requires_grad_(kernel_too)
    g = noise.fork("g").normal(batch, length, channels)
    leaves = {"u": u, "kernel": kernel} if kernel_too else {"u": u}

    def exact() -> dict[str, Tensor]:
        wide = {name: t.detach().double().requires_grad_() for name, t in leaves.items()}
        made = plain.convolution(wide["u"], wide.get("kernel", kernel.detach().double()))
        return gradients(made, wide, g.double())

    expected = exact()
    return Comparison(
        what="convolution, forward and "
        + ("all gradients" if kernel_too else "the input's gradient"),
        shape=f"B {batch}, L {length}, channels {channels}",
        candidates=(
            Candidate(
                name="robustssm",
                run=lambda: gradients(causal_convolution(u, kernel), leaves, g),
                expected=lambda: expected,
                tolerance=TOLERANCE,
            ),
            Candidate(
                name="torch.fft under autograd",
                run=lambda: gradients(plain.convolution(u, kernel), leaves, g),
                expected=lambda: expected,
                tolerance=TOLERANCE,
            ),
        ),
    )


if __name__ == "__main__":
    main()
