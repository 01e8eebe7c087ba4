"""Final evaluation of a run: the checkpoint chosen on validation, the last, their difference."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustssm.core.placement import Placement
from robustssm.core.rng import Streams
from robustssm.data.base import Splits
from robustssm.data.batches import Batch
from robustssm.evaluation.session import Evaluation
from robustssm.experiment.display import Display
from robustssm.experiment.loading import load_examples, load_model
from robustssm.experiment.rundir import RunDirectory
from robustssm.experiment.settings import Experiment, build_model
from robustssm.experiment.shares import share_out
from robustssm.records import EvaluationResult, Provenance, write_json
from robustssm.training import checkpoint

CHECKPOINTS = ("best", "last")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How an evaluation is carried out; none of these changes a number of a finished one."""

    resume: bool | None = False
    """Go on with the journal there; None: if it is of this evaluation."""
    max_seconds: float | None = None
    """Stop then, with the examples that are finished."""
    diagnose: bool = False
    """Run the costly checks too."""
    processes: int = 1
    """How many processes (and devices) share the examples."""
    data_dir: Path | None = None
    """Where those processes look for data."""


def assess(
    experiment: Experiment,
    run: RunDirectory,
    splits: Splits,
    *,
    placement: Placement,
    display: Display,
    provenance: Provenance,
    options: Options | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluates the checkpoints "best" and "last" of a run on the test set, and writes the outcome.

    Args:
        experiment: Attacks, threat and model.
        run: Directory with the checkpoints.
        splits: The data.
        placement: Device and precision.
        display: Shows progress.
        provenance: Of this evaluation.
        options: How it is carried out.
        out: File to write; the run's evaluation.json if None.

    Returns:
        What was written: the numbers of "best" at the top, every checkpoint's under "checkpoints";
        without "last" if the time was over before it had any.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        TimeoutError: If the time was not enough for one batch of examples.
    """
    options = options or Options()
    file = out or run.evaluation
    journals = run.path / "journal" if out is None else out.with_name(f"{out.stem}.journal")
    test = load_examples(experiment, splits, placement.device)
    work = _Assessment(experiment, run, splits, test, journals, placement, display, options)
    states = {
        name: checkpoint.read_weights(run.checkpoint(name), build_model(experiment, splits))
        for name in CHECKPOINTS
    }
    weights = {name: state["sha256"]["model.safetensors"] for name, state in states.items()}
    found = work.every(CHECKPOINTS if weights["best"] != weights["last"] else CHECKPOINTS[:1])
    if weights["best"] == weights["last"]:  # the last epoch is often the best one
        found["last"] = found["best"]
    results = {
        name: dataclasses.replace(result, provenance=provenance).to_dict()
        | {"epoch": states[name]["epoch"]}
        for name, result in found.items()
    }
    best, last = results["best"], results.get("last")
    record = best | {
        "checkpoint": "best",
        "selection": experiment.selection,
        "test_examples": {"used": best["n"], "all": len(splits.test)},
        "difference": _difference(best, last),
        "checkpoints": results,
    }
    write_json(file, record)
    return record


def _difference(best: dict[str, Any], last: dict[str, Any] | None) -> dict[str, float | None]:
    """Accuracy of "best" minus that of "last"; none where time ran out before or elsewhere."""
    if last is None or best["data_hash"] != last["data_hash"]:
        return dict.fromkeys(("clean", *best["attacks"]))
    return {
        "clean": best["clean_accuracy"] - last["clean_accuracy"],
        **{k: best["attacks"][k] - last["attacks"][k] for k in best["attacks"]},
    }


@dataclass(frozen=True)
class _Assessment:
    """The evaluation of a run's checkpoints on the same examples."""

    experiment: Experiment
    run: RunDirectory
    splits: Splits
    test: Batch
    journals: Path
    placement: Placement
    display: Display
    options: Options

    def every(self, names: Sequence[str]) -> dict[str, EvaluationResult]:
        """Evaluates checkpoints in equal shares of the time, what one leaves going to the next.

        Those after the first for which no time is left are left out.
        """
        limit = self.options.max_seconds
        ends = None if limit is None else time.monotonic() + limit
        found: dict[str, EvaluationResult] = {}
        for number, name in enumerate(names):
            seconds = None
            if ends is not None:
                seconds = max(1e-3, (ends - time.monotonic()) / (len(names) - number))
            self.display.evaluating(checkpoint=name, examples=len(self.test.y))
            other = next((each for each in names if each != name), None)
            try:
                found[name] = self.one(name, other, seconds)
            except TimeoutError:
                if not found:
                    raise
        return found

    def one(self, name: str, other: str | None, seconds: float | None) -> EvaluationResult:
        """Evaluates one checkpoint; attacks are also transferred from the `other`, if there is."""
        journal = self.journals / name
        evaluation = Evaluation(
            self._model(name),
            self.test.x,
            self.test.y,
            self.experiment.attacks,
            self.experiment.threat,
            streams=Streams(self.experiment.seed),
            batch_size=self.experiment.evaluation_batch_size,
            journal=journal,
            resume=self.options.resume,
            progress=self.display.attacked,
        )
        threads = torch.get_num_threads()  # within an evaluation there may be fewer
        with evaluation:
            if self.options.processes > 1:
                share_out(
                    self.experiment,
                    self.run.path,
                    name,
                    journal,
                    processes=self.options.processes,
                    data_dir=self.options.data_dir,
                    max_seconds=seconds,
                    device=self.placement.device.type,
                    threads=threads,
                    show=self.display.shared,
                )
            evaluation.run(max_seconds=seconds)
            if not self.options.diagnose or other is None:
                return evaluation.result(diagnose=self.options.diagnose)
            return evaluation.result(diagnose=True, surrogate=self._model(other).eval())

    def _model(self, name: str) -> nn.Module:
        return load_model(self.experiment, self.run, self.splits, name, self.placement.device)
