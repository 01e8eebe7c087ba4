"""How robust a model is: every attack, each outcome verified by a forward pass of its own."""

import dataclasses
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from robustssm.attacks.threat import Threat
from robustssm.core.rng import Streams
from robustssm.core.types import LogitsFn
from robustssm.evaluation.session import Attacks, Evaluation
from robustssm.evaluation.work import Progress
from robustssm.records import EvaluationResult, Provenance


def evaluate(
    model: LogitsFn,
    x: Shaped[Tensor, "..."],
    y: Shaped[Tensor, "..."],
    attacks: Attacks,
    threat: Threat,
    *,
    mask: Shaped[Tensor, "..."] | None = None,
    streams: Streams | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    concurrent: bool | None = None,
    journal: Path | None = None,
    resume: bool | None = False,
    max_seconds: float | None = None,
    diagnose: bool = False,
    surrogate: LogitsFn | None = None,
    provenance: Provenance | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Runs attacks or suites on a model and records one flag per example and attack.

    `evaluate(model, x, y, "autoattack_standard", Threat(eps="8/255"))` is all it takes. Every
    example draws from streams of its own, so flags depend neither on `batch_size` nor on the
    number of processes. Each attack is given the examples that are right without it (the others
    count as fooled), plus the first 128 that are wrong: where an attack repairs those, it is
    broken, or the model reads the label from the perturbation, and the result says so. In a suite
    every stage is given what those before it did not fool. What an attack returns is projected onto
    the threat set and classified by forward passes of its own; a row of logits with a NaN is wrong.

    Args:
        model: Maps (batch, ...) to logits (batch, classes). A module is switched to eval mode and
            back, and frozen meanwhile if it can be (`core.types.Freezable`); any other function
            has no mode and must already be as it is to be judged.
        x: Inputs (n, ...), floats within `threat.bounds`.
        y: True classes (n,), from 0.
        attacks: An attack or a suite (`attacks.ensemble.SUITES`), by name or as settings, or
            several, or several under labels of your own. An empty list: clean accuracy only.
        threat: What they may do; eps > 0.
        mask: What may be touched: the shape of `x`, of one example, or (n, positions).
        streams: Randomness; seed 0 if None.
        batch_size: Examples that go through the attacks together; 256 if None. How many rows a
            pass takes at most is found from the memory that one needs.
        device: Where batches are sent, the model's; where `x` is, if None.
        concurrent: Whether several threads may call the model at once, on a CPU; None: if it is
            made of torch's and our own layers only. Each then attacks a part of the examples, which
            is faster than sharing every operation, and gives the same bits for any number of them.
        journal: Directory in which finished pieces are kept, with the points that fool the model.
        resume: Go on with the journal that is there. It ends with the same result, byte by byte.
            None: go on if it is of this evaluation, else begin anew.
        max_seconds: Stop then; the result is that of the examples finished, and says so.
        diagnose: Run the costly checks too: curves over eps, steps and restarts, transfer, black
            box, labels in perturbations.
        surrogate: Another model, from which those checks transfer attacks.
        provenance: Where the result comes from, kept with it.
        progress: Told how far it has come.

    Returns:
        Flags, and warnings wherever the attack, rather than the model, may be what failed.

    Raises:
        ValueError: If data, labels, logits, attacks or journal do not fit together; says how.
        CorruptFile: If the journal is damaged, or its points do not fool the model.
        TimeoutError: If the time was not enough for one chunk of examples.
    """
    evaluation = Evaluation(
        model,
        x,
        y,
        attacks,
        threat,
        mask=mask,
        streams=streams,
        batch_size=batch_size,
        device=device,
        concurrent=concurrent,
        journal=journal,
        resume=resume,
        progress=progress,
    )
    with evaluation:
        evaluation.run(max_seconds=max_seconds)
        result = evaluation.result(diagnose=diagnose, surrogate=surrogate)
    return dataclasses.replace(result, provenance=provenance)
