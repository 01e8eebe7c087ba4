"""The evaluation of a model that is not ours: a function that makes it, a file of examples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from robustssm.attacks.threat import Threat
from robustssm.core.config import from_dict
from robustssm.core.errors import violation
from robustssm.core.imports import named
from robustssm.core.placement import Placement, cpu_threads
from robustssm.core.provenance import collect
from robustssm.core.rng import Streams
from robustssm.core.types import LogitsFn
from robustssm.data.arrays import read_examples
from robustssm.data.batches import batches
from robustssm.evaluation.evaluate import evaluate
from robustssm.experiment.display import Display
from robustssm.experiment.rundir import RunDirectory
from robustssm.records import write_json


def audit(
    function: str,
    data: Path,
    *,
    threat: Mapping[str, Any],
    suite: str = "autoattack_standard",
    examples: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    diagnose: bool = False,
    resume: bool = False,
    max_hours: float | None = None,
    out: Path = Path("audit"),
    device: str = "auto",
    threads: int | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Evaluates the model that a function returns, on the examples of a file.

    Args:
        function: "package.module:function", importable from here; it is called without arguments
            and returns an `nn.Module` or another function from inputs to logits.
        data: An .npz file with x (n, ...) and y (n,), or x_test and y_test; uint8 stands for
            multiples of 1 / 255.
        threat: Settings of a `Threat`.
        suite: Name of a suite (`attacks.suites.SUITES`).
        examples: Only the first so many; None for all.
        batch_size: Examples that go through the attacks together.
        seed: Of every draw.
        diagnose: Run the costly checks too.
        resume: Go on with an audit that was interrupted.
        max_hours: Stop then; the result is that of the examples finished.
        out: Directory for evaluation.json and the journal.
        device: Where the model runs, if it is an `nn.Module`.
        threads: CPU threads per operation; None for torch's own number.
        display: Shows progress; silent if None.

    Returns:
        The contents of evaluation.json.

    Raises:
        ValueError: If the function, the data or the model's outputs are not as they must be.
        RunInUse: If another process works in the directory.
    """
    display = display or Display()
    placement = Placement(device=device)
    model = _model(function)
    if isinstance(model, nn.Module):
        model = placement.setup(model)
    split = read_examples(data)
    rows = min(examples or len(split), len(split))
    batch = next(batches(split, order=None, batch_size=rows, device=placement.device))
    place = RunDirectory(out)
    with place.locked(), cpu_threads(threads or torch.get_num_threads()):
        display.evaluating(checkpoint=function, examples=rows)
        result = evaluate(
            model,
            batch.x,
            batch.y,
            suite,
            from_dict(Threat, dict(threat)),
            streams=Streams(seed),
            batch_size=batch_size,
            journal=out / "journal",
            resume=resume,
            max_seconds=None if max_hours is None else 3600 * max_hours,
            diagnose=diagnose,
            provenance=collect(seed=seed, device=placement.describe()),
            progress=display.attacked,
        )
        record = result.to_dict() | {
            "checkpoint": function,
            "test_examples": {"used": len(result.clean), "all": len(split)},
        }
        write_json(place.evaluation, record)
    return record


def _model(function: str) -> LogitsFn:
    made = named(function, what="The model")
    model = made if isinstance(made, nn.Module) else made()
    if not callable(model):
        raise ValueError(
            violation(
                f"`{function}()`",
                "return an nn.Module or another function from inputs to logits",
                type(model).__name__,
            )
        )
    return cast(LogitsFn, model)
