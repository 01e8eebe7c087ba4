"""How much faster are whole layers, with all gradients and with the input's alone?

python -m benchmarks.layers [--mega CHECKOUT] [--only s5 mamba ...] [--quick]

S5 against s5-pytorch ("in pairs": ours with one state of each conjugate pair), the Mamba block
against mambapy's with its parallel scan, Mega's moving average against the official module (or its
formula), S4, DSS and S4D against plain layers. "Input gradient" is what an attack computes: ours
frozen, in tens as an attack does it; the peers as they are, since they cannot be frozen.
"""

import argparse
import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import Candidate, Comparison, Effort, Results, gradients
from benchmarks.layer_pairs import MAKERS, Made, Parts, as_ours
from benchmarks.report import Report, arguments
from robustssm.core.rng import Noise
from robustssm.core.types import Freezable

STEPS = 10


def main(argv: Sequence[str] | None = None) -> dict:
    """Measures and returns what is printed as JSON."""
    parsed = arguments(
        __doc__,
        argv,
        add=(
            ("--only", {"nargs": "+", "choices": list(MAKERS), "default": list(MAKERS)}),
            ("--batch", {"type": int, "default": 4}),
            ("--length", {"type": int, "default": 1024}),
            ("--channels", {"type": int, "default": 128}),
        ),
    )
    if parsed.tiny:
        parsed.batch, parsed.length, parsed.channels = 2, 16, 4
    report = Report("layers", parsed)
    effort = report.effort(quick=Effort(rounds=5, seconds=1.5))
    for name in parsed.only:
        try:
            made = MAKERS[name](parsed, report)
        except peers.NotHere as why:
            report.not_here(why)
            continue
        for comparison in comparisons(name, parsed, made):
            report.add(comparison, effort)
    return report.finish()


def comparisons(name: str, parsed: argparse.Namespace, made: Made) -> Iterator[Comparison]:
    """A layer and its peer with all gradients, then with the input's alone."""
    ours, peer = made.ours, made.peer
    size = (parsed.batch, parsed.length, parsed.channels)
    noise = Noise(7)
    x = noise.fork("x").normal(*size).requires_grad_()
    g = noise.fork("g").normal(*size)

    def run(module: nn.Module, *, parameters: bool) -> None:
        trained = [p for p in module.parameters() if p.requires_grad] if parameters else []
        torch.autograd.grad(_quietly(module, x), [x, *trained], g)

    def results(parts: Parts, *, parameters: bool) -> Results:
        module, named = parts
        found = gradients(_quietly(module, x), {"x": x, **(named if parameters else {})}, g)
        return {key: as_ours(key, value, ours[1]) for key, value in found.items()}

    def attacked() -> None:
        with frozen(ours[0]):
            for _ in range(STEPS):
                run(ours[0], parameters=False)

    def frozen_results() -> Results:
        with frozen(ours[0]):
            return results(ours, parameters=False)

    def candidates(parameters: bool) -> Sequence[Candidate]:
        first = Candidate(
            name="robustssm",
            run=lambda: run(ours[0], parameters=True),
            results=lambda: results(ours, parameters=True),
        )
        if not parameters:
            first = Candidate(name="robustssm", run=attacked, results=frozen_results, count=STEPS)
        second = Candidate(
            name=made.peer_name,
            run=lambda: run(peer[0], parameters=parameters),
            results=lambda: results(peer, parameters=parameters),
        )
        return first, second

    for parameters in (True, False):
        yield Comparison(
            what=f"{name}, {'all gradients' if parameters else 'input gradient'}",
            shape=f"B {size[0]}, L {size[1]}, d {size[2]}",
            candidates=candidates(parameters),
            tolerance=made.tolerance,
        )


def _quietly(module: nn.Module, x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DSS as published drops an imaginary part
        return module(x)


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """What `SequenceClassifier.frozen` does, for one layer."""
    trained = [p for p in module.parameters() if p.requires_grad]
    with contextlib.ExitStack() as stack:
        for part in module.modules():
            if isinstance(part, Freezable):
                stack.enter_context(part.frozen())
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


if __name__ == "__main__":
    main()
