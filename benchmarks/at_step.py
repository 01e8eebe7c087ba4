"""How much faster is a step of PGD-10 adversarial training than in the paper's code?

python -m benchmarks.at_step [--paper CHECKOUT] [--structure s4|dss|both] [--quick]

Ours is the loop as a run uses it: attack, forward, backward, clipping, AdamW. The peer is the
paper's model, its PGD and its lines of training; without a checkout, the same written plainly.
Logits and gradients of both are first compared with those of the plain path in float64, from the
same weights.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from benchmarks import pairs
from benchmarks.harness import Candidate, Comparison, Effort
from benchmarks.pairs import Pair
from benchmarks.report import Report, arguments
from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.core.placement import Placement
from robustssm.core.rng import Streams
from robustssm.models.presets import Structure
from robustssm.training.loop import Learner, train_batch
from robustssm.training.optim import AdamW
from robustssm.training.pgd_training import PGDTraining

STRUCTURES: tuple[Structure, ...] = ("s4", "dss")


def main(argv: Sequence[str] | None = None) -> dict:
    """Measures and returns what is printed as JSON."""
    parsed = arguments(
        __doc__,
        argv,
        add=(
            ("--structure", {"choices": (*STRUCTURES, "both"), "default": "both"}),
            ("--batch", {"type": int, "default": 16}),
            ("--layers", {"type": int, "default": 4}),
            ("--steps", {"type": int, "default": 10}),
        ),
    )
    report = Report("PGD-10 adversarial training step", parsed)
    # Quick: two rounds where one takes less than 7.5 s, as on two quiet cores; else one.
    quick = Effort(rounds=3, seconds=7.5, least=1)
    effort = report.effort(quick=quick, full=Effort(rounds=9, seconds=90.0, least=5))
    for structure in STRUCTURES if parsed.structure == "both" else (parsed.structure,):
        report.add(comparison(structure, report, parsed), effort)
    return report.finish()


def comparison(structure: Structure, report: Report, parsed: argparse.Namespace) -> Comparison:
    """One structure's training step, ours and the peer's."""
    pair = pairs.make(structure, report, parsed, batch=parsed.batch, num_layers=parsed.layers)
    exact = pair.exact_results()
    mine, theirs = our_step(pair, parsed.steps), peer_step(pair, parsed.steps)
    return Comparison(
        what=f"PGD-{parsed.steps} training step, {structure.upper()}",
        shape=pair.shape,
        candidates=(
            Candidate(
                name="robustssm",
                run=mine,
                results=pair.our_results,
                expected=lambda: exact,
                tolerance=pairs.TOLERANCE,
                warm=our_step(pair, 1),
            ),
            Candidate(
                name=pair.peer_name,
                run=theirs,
                results=pair.peer_results,
                expected=lambda: exact,
                tolerance=pairs.PEER_TOLERANCE,
                loose=pairs.PEER_LOOSE,
                warm=lambda: None,  # its gradients were just computed, for the comparison
            ),
        ),
    )


def our_step(pair: Pair, steps: int) -> Callable[[], None]:
    """`training.loop.train_batch`, on streams that go on from call to call."""
    placement, streams = Placement("cpu"), Streams(0)
    model = placement.setup(pair.ours)
    optimizer = placement.setup_optimizer(AdamW().build(model))
    learner = Learner(model=model, optimizer=optimizer, memory={})
    attack = PGD(steps=steps, step_size=pairs.STEP / pairs.EPS, keep="last")
    objective = PGDTraining(threat=Threat(eps=pairs.EPS), attack=attack)
    rows = torch.arange(len(pair.x))

    def step() -> None:
        model.train()
        noise = streams.examples("train", learner.step, indices=rows)
        train_batch(learner, objective.at(0.5), pair.x, pair.y, noise=noise, placement=placement)

    return step


def peer_step(pair: Pair, steps: int) -> Callable[[], None]:
    """The lines of the paper's `train` for one batch."""
    model = pair.peer.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=2e-4)

    def step() -> None:
        optimizer.zero_grad()
        x_adv = pair.attack(pair.x, pair.y, steps)
        model.train()
        loss = F.cross_entropy(model(x_adv), pair.y)
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
