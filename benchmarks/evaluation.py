"""How much faster is the evaluation of a batch under PGD-10 than in the paper's code?

python -m benchmarks.evaluation [--paper CHECKOUT] [--structure s4|dss] [--batch 32] [--quick]

Ours is `evaluation.evaluate` as users call it, checks and all; the peer's is what the released
scripts do: a clean forward pass, its PGD, a forward pass on what that found. Labels are the model's
own answers, so that every example is attacked.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks import pairs
from benchmarks.at_step import STRUCTURES
from benchmarks.harness import Candidate, Comparison, Effort
from benchmarks.pairs import Pair
from benchmarks.report import Report, arguments
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.evaluation.evaluate import evaluate

ROWS = 16


def main(argv: Sequence[str] | None = None) -> dict:
    """Measures and returns what is printed as JSON."""
    parsed = arguments(
        __doc__,
        argv,
        add=(
            ("--structure", {"choices": STRUCTURES, "default": "s4"}),
            ("--batch", {"type": int, "default": 32}),
            ("--layers", {"type": int, "default": 4}),
            ("--steps", {"type": int, "default": 10}),
        ),
    )
    report = Report("evaluation under PGD-10", parsed)
    pair = pairs.make(
        parsed.structure, report, parsed, batch=parsed.batch, num_layers=parsed.layers
    )
    with torch.no_grad():
        y = pair.ours.eval()(pair.x).argmax(1)
    effort = report.effort(
        quick=Effort(rounds=2, seconds=0.0, least=2), full=Effort(rounds=7, seconds=90.0, least=3)
    )
    report.add(comparison(pair, y, parsed.steps), effort)
    return report.finish()


def comparison(pair: Pair, y: Tensor, steps: int) -> Comparison:
    """Both ways to judge the batch."""
    attack = PGD(steps=steps, step_size=pairs.STEP / pairs.EPS)
    threat = Threat(eps=pairs.EPS)
    exact = pair.exact_results(rows=ROWS, parameters=False)
    return Comparison(
        what=f"evaluation under PGD-{steps}, {pair.structure.upper()}",
        shape=pair.shape,
        candidates=(
            Candidate(
                name="robustssm",
                run=lambda: evaluate(pair.ours, pair.x, y, attack, threat, batch_size=len(y)),
                results=lambda: pair.our_results(rows=ROWS, parameters=False),
                expected=lambda: exact,
                tolerance=pairs.TOLERANCE,
                warm=lambda: evaluate(
                    pair.ours, pair.x[:2], y[:2], PGD(steps=1), threat, batch_size=2
                ),
            ),
            Candidate(
                name=pair.peer_name,
                run=_as_released(pair, y, steps),
                results=lambda: pair.peer_results(rows=ROWS, parameters=False),
                expected=lambda: exact,
                tolerance=pairs.PEER_TOLERANCE,
                warm=_as_released(pair, y, 1),
            ),
        ),
    )


def _as_released(pair: Pair, y: Tensor, steps: int) -> Callable[[], tuple[int, int]]:
    def judge() -> tuple[int, int]:
        """How many are right, clean and attacked."""
        model = pair.peer.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.no_grad():
                clean = model(pair.x).argmax(1)
            x_adv = pair.attack(pair.x, y, steps)
            with torch.no_grad():
                attacked = model(x_adv).argmax(1)
        return int((clean == y).sum()), int((attacked == y).sum())

    return judge


if __name__ == "__main__":
    main()
