"""The result of an evaluation, from what lies in its journal."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from robustssm.core.config import to_dict
from robustssm.evaluation import reliability
from robustssm.evaluation.reliability import Outcome
from robustssm.evaluation.work import Work
from robustssm.records import EvaluationResult, Flagged, SuiteRecord


def collect(
    work: Work,
    before: reliability.Preflight,
    finished: Sequence[int],
    nan: Bool[Tensor, " examples"],
) -> EvaluationResult:
    """Puts the finished chunks together: flags, suites, warnings.

    Args:
        work: With its journal.
        before: What the preflight saw.
        finished: Numbers of the chunks that went through all attacks.
        nan: Examples whose clean logits hold a NaN, (n,).
    """
    pieces = [(chunk, rows) for chunk, rows in work.chunks() if chunk in set(finished)]
    rows = torch.cat([rows for _, rows in pieces])
    clean = work.clean[rows]
    outcomes: dict[str, Outcome] = {}
    suites: dict[str, SuiteRecord] = {}
    flags: list[Flagged] = []
    for number, job in enumerate(work.jobs):
        stages, outcome, passes = _outcome(work, number, pieces)
        outcomes[job.label] = dataclasses.replace(outcome, survived=outcome.survived[rows])
        if job.suite is not None:
            held = {label: tuple(row[rows].tolist()) for label, row in stages.items()}
            suites[job.label] = SuiteRecord(
                stages=held, deviations=job.suite.deviations, passes=passes
            )
            boxes = [attack.label for attack in job.stages if attack.name == "square"]
            flags += reliability.stage_flags({"clean": tuple(clean.tolist()), **held}, boxes)
    flags = [
        *reliability.warnings(
            before,
            {job.label: job.attack for job in work.jobs},
            outcomes,
            clean=int(clean.sum()),
            n=len(clean),
            nan=int(nan[rows].sum()),
        ),
        *flags,
    ]
    if work.problem.draws > 1:  # random on purpose: gradients and predictions are averaged
        flags = [
            dataclasses.replace(flag, severity="warning") if flag.name == "random_outputs" else flag
            for flag in flags
        ]
    return EvaluationResult(
        clean=tuple(clean.tolist()),
        survived={label: tuple(o.survived.tolist()) for label, o in outcomes.items()},
        threat=to_dict(work.problem.threat),
        warnings=tuple(flags),
        suites=suites,
        settings={job.label: job.settings for job in work.jobs},
    )


def _outcome(
    work: Work, number: int, pieces: Sequence[tuple[int, Tensor]]
) -> tuple[dict[str, Tensor], Outcome, dict[str, dict[str, int]]]:
    """Over all examples: who is left after each stage, the whole, and the passes of each stage."""
    job = work.jobs[number]
    fooled = {attack.label: torch.zeros_like(work.clean) for attack in job.stages}
    passes: dict[str, dict[str, int]] = {
        label: {"calls": 0, "forwards": 0, "backwards": 0} for label in fooled
    }
    repaired = tried = nan = 0
    for chunk, _ in pieces:
        for attack, outcome in work.units(chunk, number):
            fooled[attack.label][outcome.fooled] = True
            wrong = work.tried[outcome.rows]
            repaired += int(outcome.right[wrong].sum())
            tried += int(wrong.sum())
            nan += int(outcome.nan.sum())
            for key, count in zip(passes[attack.label], outcome.passes, strict=True):
                passes[attack.label][key] += count
    stages, left = {}, work.clean
    for label, fell in fooled.items():
        left = left & ~fell
        stages[label] = left
    whole = Outcome(survived=left, repaired=repaired, tried=tried, nan=nan)
    return stages, whole, passes
