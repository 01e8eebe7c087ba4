"""How much faster is one step of an attack, forward and input gradient, than in the paper's code?

python -m benchmarks.attack_step [--paper CHECKOUT] [--structure s4] [--batch 96] [--quick]

Ours is a step of `attacks.pgd.PGD`, ten at a time as attacks run it: the model is frozen once. It
is also shown without freezing, one forward and one gradient. The peer is one step of the paper's
PGD, as shipped and in a process whose allocator is tuned; without a checkout, the plain path.
"""

import argparse
import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import allocator, pairs
from benchmarks.at_step import STRUCTURES
from benchmarks.harness import Candidate, Comparison, Effort
from benchmarks.pairs import Pair
from benchmarks.report import Report, arguments
from robustssm.attacks.parts import attack_in_parts
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.modes import mode
from robustssm.core.rng import Streams

ROWS = 16
"""Examples whose logits and gradients are compared."""


def main(argv: Sequence[str] | None = None) -> dict | None:
    """Measures and returns what is printed as JSON."""
    parsed = arguments(
        __doc__,
        argv,
        add=(
            ("--structure", {"choices": STRUCTURES, "default": "s4"}),
            ("--batch", {"type": int, "default": 96}),
            ("--layers", {"type": int, "default": 4}),
            ("--no-tuned", {"action": "store_true", "help": "without the tuned process"}),
            ("--serve", {"action": "store_true", "help": "be the tuned process"}),
        ),
    )
    report = Report("one step of an attack, forward and input gradient", parsed)
    pair = pairs.make(
        parsed.structure, report, parsed, batch=parsed.batch, num_layers=parsed.layers
    )
    if parsed.serve:
        return allocator.serve(lambda: pair.attack(pair.x, pair.y, 1))
    effort = report.effort(
        quick=Effort(rounds=3, seconds=8.0, least=2), full=Effort(rounds=9, seconds=90.0, least=5)
    )
    with _tuned(parsed, report) as tuned:
        report.add(_comparison(pair, tuned), effort)
    return report.finish()


def _comparison(pair: Pair, tuned: allocator.Tuned | None) -> Comparison:
    exact = pair.exact_results(rows=ROWS, parameters=False)
    others = []
    if tuned is not None:
        others.append(
            Candidate(
                name=f"{pair.peer_name}, allocator tuned",
                run=tuned.run,
                results=lambda: pair.peer_results(rows=ROWS, parameters=False),
                expected=lambda: exact,
                tolerance=pairs.PEER_TOLERANCE,
                set_threads=tuned.threads,
            )
        )
    return Comparison(
        what=f"attack step, {pair.structure.upper()}",
        shape=pair.shape,
        candidates=(
            Candidate(
                name="robustssm",
                run=lambda: _climb(pair, 10),
                results=lambda: _frozen_results(pair),
                expected=lambda: exact,
                tolerance=pairs.TOLERANCE,
                warm=lambda: _climb(pair, 1),
                count=10,
            ),
            Candidate(
                name=pair.peer_name,
                run=lambda: pair.attack(pair.x, pair.y, 1),
                results=lambda: pair.peer_results(rows=ROWS, parameters=False),
                expected=lambda: exact,
                tolerance=pairs.PEER_TOLERANCE,
            ),
            *others,
            Candidate(
                name="robustssm, not frozen",
                run=lambda: _step(pair),
                results=lambda: pair.our_results(rows=ROWS, parameters=False),
                expected=lambda: exact,
                tolerance=pairs.TOLERANCE,
            ),
        ),
    )


def _climb(pair: Pair, steps: int) -> Tensor:
    """An attack of so many steps, as `PGDTraining` calls it."""
    attack = PGD(steps=steps, step_size=pairs.STEP / pairs.EPS, keep="last")
    noise = Streams(0).examples("attack", indices=torch.arange(len(pair.x)))
    with mode(pair.ours, training=False):
        threat = Threat(eps=pairs.EPS)
        return attack_in_parts(attack, pair.ours, pair.x, pair.y, threat=threat, noise=noise)


def _step(pair: Pair) -> Tensor:
    points = pair.x.clone().requires_grad_()
    loss = F.cross_entropy(pair.ours(points), pair.y)
    return torch.autograd.grad(loss, points)[0]


def _frozen_results(pair: Pair) -> dict[str, Tensor]:
    with mode(pair.ours, training=False), pair.ours.frozen():
        return pair.our_results(rows=ROWS, parameters=False)


@contextlib.contextmanager
def _tuned(parsed: argparse.Namespace, report: Report) -> Iterator[allocator.Tuned | None]:
    """The process with the tuned allocator, if there can be one."""
    if parsed.no_tuned:
        yield None
        return
    passed = ["--structure", parsed.structure, "--batch", str(parsed.batch)]
    passed += ["--layers", str(parsed.layers)]
    passed += ["--tiny"] if parsed.tiny else []
    passed += ["--paper", str(parsed.paper.resolve())] if parsed.paper else []
    try:
        process = allocator.Tuned("benchmarks.attack_step", passed)
    except RuntimeError as why:
        report.not_here(why)
        yield None
        return
    try:
        yield process
    finally:
        process.close()


if __name__ == "__main__":
    main()
