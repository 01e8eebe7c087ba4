"""Final evaluation of a run: the checkpoint chosen on validation, the last, their difference."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
    states = {
        name: checkpoint.read_weights(
            run.checkpoint(name), placement.setup(build_model(experiment, splits))
        )
        for name in CHECKPOINTS
    }
    weights = {name: state["sha256"]["model.safetensors"] for name, state in states.items()}
    # The last epoch is often the best one, and is then evaluated once.
    distinct = CHECKPOINTS if weights["best"] != weights["last"] else CHECKPOINTS[:1]
    ends = None if options.max_seconds is None else time.monotonic() + options.max_seconds
    found: dict[str, EvaluationResult] = {}
    for number, name in enumerate(distinct):
        left = None
        if ends is not None:  # in equal shares, what one leaves going to the next
            left = max(1e-3, (ends - time.monotonic()) / (len(distinct) - number))
        display.evaluating(checkpoint=name, examples=len(test.y))
        others = [other for other in distinct if other != name]
        try:
            found[name] = _evaluate(
                experiment,
                run,
                splits,
                test,
                name,
                others[0] if others else None,
                journals / name,
                placement,
                display,
                options,
                left,
            )
        except TimeoutError:
            if not found:
                raise
    if distinct == CHECKPOINTS[:1]:
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


def _evaluate(
    experiment: Experiment,
    run: RunDirectory,
    splits: Splits,
    test: Batch,
    name: str,
    other: str | None,
    journal: Path,
    placement: Placement,
    display: Display,
    options: Options,
    max_seconds: float | None,
) -> EvaluationResult:
    evaluation = Evaluation(
        load_model(experiment, run, splits, name, placement.device),
        test.x,
        test.y,
        experiment.attacks,
        experiment.threat,
        streams=Streams(experiment.seed),
        batch_size=experiment.evaluation_batch_size,
        journal=journal,
        resume=options.resume,
        progress=display.attacked,
    )
    threads = torch.get_num_threads()  # within an evaluation there may be fewer
    with evaluation:
        if options.processes > 1:
            share_out(
                experiment,
                run.path,
                name,
                journal,
                processes=options.processes,
                data_dir=options.data_dir,
                max_seconds=max_seconds,
                device=placement.device.type,
                threads=threads,
                show=display.shared,
            )
        evaluation.run(max_seconds=max_seconds)
        if not options.diagnose or other is None:
            return evaluation.result(diagnose=options.diagnose)
        surrogate = load_model(experiment, run, splits, other, placement.device)
        return evaluation.result(diagnose=True, surrogate=surrogate.eval())
