"""Final evaluation of a run: the checkpoint chosen on validation, the last, their difference."""

from pathlib import Path
from typing import Any

from robustssm.core.placement import Placement
from robustssm.core.rng import Streams
from robustssm.data.base import Splits
from robustssm.data.batches import batches
from robustssm.evaluation.evaluate import evaluate
from robustssm.experiment.display import Display
from robustssm.experiment.rundir import RunDirectory
from robustssm.experiment.settings import Experiment, build_model
from robustssm.records import EvaluationResult, Provenance, write_json
from robustssm.training import checkpoint


def assess(
    experiment: Experiment,
    run: RunDirectory,
    splits: Splits,
    *,
    placement: Placement,
    display: Display,
    provenance: Provenance,
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
        out: File to write; the run's evaluation.json if None.

    Returns:
        What was written: the numbers of "best" at the top, every checkpoint's under "checkpoints".

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    results: dict[str, dict[str, Any]] = {}
    by_weights: dict[str, EvaluationResult] = {}
    model = placement.setup(build_model(experiment, splits))
    rows = min(experiment.evaluation_examples or len(splits.test), len(splits.test))
    test = next(batches(splits.test, order=None, batch_size=rows, device=placement.device))
    for name in ("best", "last"):
        state = checkpoint.read_weights(run.checkpoint(name), model)
        weights = state["sha256"]["model.safetensors"]
        if weights not in by_weights:  # the last epoch is often the best one
            display.evaluating(checkpoint=name, examples=rows)
            by_weights[weights] = evaluate(
                model,
                test.x,
                test.y,
                experiment.attacks,
                threat=experiment.threat,
                streams=Streams(experiment.seed),
                batch_size=experiment.evaluation_batch_size,
                provenance=provenance,
                progress=display.attacked,
            )
        results[name] = by_weights[weights].to_dict() | {"epoch": state["epoch"]}
    best, last = results["best"], results["last"]
    record = best | {
        "checkpoint": "best",
        "selection": experiment.selection,
        "test_examples": {"used": rows, "all": len(splits.test)},
        "difference": {
            "clean": best["clean_accuracy"] - last["clean_accuracy"],
            **{k: best["attacks"][k] - last["attacks"][k] for k in best["attacks"]},
        },
        "checkpoints": results,
    }
    write_json(out or run.evaluation, record)
    return record
