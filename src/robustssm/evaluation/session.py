"""An evaluation under way, step by step: for those who share it between processes."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from robustssm.attacks.access import Access, frozen
from robustssm.attacks.base import Attack
from robustssm.attacks.parts import reentrant, rows_that_fit
from robustssm.attacks.threat import Threat
from robustssm.core.config import to_dict
from robustssm.core.errors import violation
from robustssm.core.modes import mode
from robustssm.core.placement import cpu_threads
from robustssm.core.rng import Streams
from robustssm.core.types import LogitsFn
from robustssm.evaluation import diagnosis, reliability
from robustssm.evaluation.collect import collect
from robustssm.evaluation.journal import DiskJournal, Journal
from robustssm.evaluation.plan import CHUNK, Cost, measure, plan
from robustssm.evaluation.problem import Problem, check_data, check_logits, data_hash, model_hash
from robustssm.evaluation.work import Meter, Progress, Work
from robustssm.records import EvaluationResult, Flagged

WRONG_EXAMPLES = 128
"""How many clean errors each attack is given too, to see whether it repairs them."""

DIAGNOSED = 200
"""How many examples the costly checks look at."""

Attacks = Attack | str | Sequence[Attack | str] | Mapping[str, Attack | str]


class Evaluation:
    """An evaluation under way, for those who share it between processes; see `evaluate`.

    Everything happens inside `with evaluation:`, where the model is in eval mode and frozen.
    Several processes may `run` shares of the same journal; `result` is then made by one of them.
    """

    def __init__(
        self,
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
        progress: Progress | None = None,
    ):
        """Checks the input; arguments as those of `evaluate`."""
        check_data(x, y, threat, mask)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"`evaluate(batch_size=...)` must be at least 1; got {batch_size}.")
        self._model = model
        self._attacks = attacks
        self._streams = streams or Streams(0)
        self._chunk = batch_size or CHUNK
        on_cpu = torch.device(device or x.device).type == "cpu"
        self._concurrent = on_cpu and (reentrant(model) if concurrent is None else concurrent)
        self._journal = journal
        self._resume = resume
        self._progress = progress
        self._problem = Problem(Access(model), x, y, threat, mask, device)
        self._stack = ExitStack()
        self._finished: list[int] = []

    def __enter__(self) -> "Evaluation":
        """Looks at the model without attack, and opens the journal."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(mode(self._model, training=False))
            stack.enter_context(frozen(self._model))
            pool = None
            if self._concurrent:
                # Parts on one thread each are faster than every operation shared by all threads.
                threads = torch.get_num_threads()
                stack.enter_context(cpu_threads(1))
                pool = stack.enter_context(ThreadPoolExecutor(threads)) if threads > 1 else None
            self._work, self._before, self._nan = self._prepare()
            if self._concurrent and self._problem.draws == 1:  # draws of a random model have order
                self._work = dataclasses.replace(self._work, parted=True, pool=pool)
            if self._journal is not None:
                kept = DiskJournal(self._journal, self._header(), resume=self._resume)
                self._work = dataclasses.replace(self._work, journal=kept)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leaves the model as it was."""
        self._stack.close()

    def run(self, *, share: tuple[int, int] = (0, 1), max_seconds: float | None = None) -> None:
        """Attacks what is not finished yet.

        Args:
            share: (k, n): the k-th of n equal parts of the examples, with a journal.
            max_seconds: Stop then; what is finished stays.

        Raises:
            ValueError: If the share is none, or there is no journal to share.
            TimeoutError: If the time was not enough for one chunk of examples.
        """
        part, parts = share
        if not 0 <= part < parts or (parts > 1 and self._journal is None):
            raise ValueError(
                violation(
                    "`run(share=...)`",
                    "be (k, n) with 0 <= k < n, together with a journal that all processes share",
                    f"share={share}, journal={self._journal}",
                )
            )
        if max_seconds is not None and max_seconds <= 0:
            raise ValueError(f"`evaluate(max_seconds=...)` must be positive; got {max_seconds}.")
        ledger = self._problem.access.ledger
        ledger.deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._finished = self._work.run(share=part, shares=parts)
        ledger.deadline = None
        if not self._finished and max_seconds is not None:
            raise TimeoutError(
                f"The time must be enough for the first {self._chunk} examples; {max_seconds:g} "
                "seconds were not. Give more"
                + (", or go on with resume." if self._journal else ", or a smaller batch size.")
            )

    def result(
        self, *, diagnose: bool = False, surrogate: LogitsFn | None = None
    ) -> EvaluationResult:
        """What the finished chunks say; stored points are classified again before.

        Args:
            diagnose: Run the costly checks too, if all examples are finished.
            surrogate: Another model, from which those checks transfer attacks.

        Raises:
            CorruptFile: If the journal is damaged, or its points do not fool the model.
        """
        work, y = self._work, self._problem.y
        if work.journal.persistent:
            for chunk in self._finished:
                work.verify(chunk)
        result = collect(work, self._before, self._finished, self._nan)
        whole = len(result.clean) == len(y)
        if diagnose and whole:
            result = _diagnosed(result, work, surrogate)
        done = torch.cat([rows for chunk, rows in work.chunks() if chunk in self._finished])
        return dataclasses.replace(
            result,
            planned=None if whole else len(y),
            data_hash=data_hash(self._problem.x[done], y[done]),
        )

    def _prepare(self) -> tuple[Work, reliability.Preflight, Tensor]:
        """Everything before the first attack: plan, clean pass, first look at the model."""
        problem, access = self._problem, self._problem.access
        first = problem.batch(torch.arange(min(2, len(problem.y))))
        with torch.no_grad():
            logits = access(first.x)
        check_logits(logits, first.x, problem.y)
        num_classes = logits.shape[1]
        jobs = plan(
            self._attacks,
            problem.threat,
            num_classes=num_classes,
            shape=tuple(problem.x.shape[1:]),
            masked=problem.mask is not None,
        )
        draws = max((job.suite.draws for job in jobs if job.suite), default=1)
        self._problem = problem = dataclasses.replace(problem, draws=draws)
        if jobs:
            access.ledger.rows = rows_that_fit(access, first.x)
        clean, nan = problem.classify(self._chunk)
        right, wrong = clean.nonzero().flatten(), (~clean).nonzero().flatten()
        seen = problem.batch((right if len(right) else wrong)[: reliability.EXAMPLES])
        before = reliability.preflight(
            access, seen.x, seen.y, batch_size=self._chunk, bounds=problem.threat.bounds
        )
        tried = torch.zeros_like(clean)
        tried[wrong[:WRONG_EXAMPLES]] = True
        cost = measure(access, seen.x, seen.y) if jobs else Cost(forward=0.0, backward=0.0)
        work = Work(
            problem=problem,
            jobs=jobs,
            clean=clean,
            tried=tried,
            streams=self._streams,
            chunk=self._chunk,
            journal=Journal(),
            meter=Meter(progress=self._progress, cost=cost, num_classes=num_classes),
        )
        return work, before, nan

    def _header(self) -> dict[str, Any]:
        """What a journal must be about to be resumed."""
        problem = self._problem
        few = problem.batch(torch.arange(min(4, len(problem.y))))
        return {
            "model": model_hash(self._model, few.x),
            "data": data_hash(problem.x, problem.y, problem.mask),
            "threat": to_dict(problem.threat),
            "attacks": {job.label: to_dict(job.attack) for job in self._work.jobs},
            "seed": self._streams.seed,
            "batch_size": self._chunk,
        }


def _diagnosed(
    result: EvaluationResult, work: Work, surrogate: LogitsFn | None
) -> EvaluationResult:
    right = work.clean.nonzero().flatten()[:DIAGNOSED]
    if not len(right):
        return result
    work.meter.attack = "diagnosis"
    work.meter.show(now=True)
    batch = work.problem.batch(right)
    found = diagnosis.diagnose(
        work.problem.access,
        batch.x,
        batch.y,
        threat=work.problem.threat,
        streams=work.streams,
        batch_size=work.chunk,
        surrogate=surrogate,
        mask=batch.mask,
    )
    worst: dict[str, Flagged] = {}
    for flag in (*result.warnings, *found.flags):  # the graver of two with the same name
        known = worst.get(flag.name)
        if known is None or (flag.severity == "invalid" != known.severity):
            worst[flag.name] = flag
    return dataclasses.replace(
        result, warnings=tuple(worst.values()), curves=found.curves, diagnosed=True
    )
