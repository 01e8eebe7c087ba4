"""A run from start to end: data, training, evaluation, all in one directory that can be resumed."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustssm.attacks.suites import suite as named_suite
from robustssm.core.config import from_dict, override
from robustssm.core.placement import Placement, check_devices, cpu_threads
from robustssm.core.provenance import collect
from robustssm.experiment.assess import Options, assess
from robustssm.experiment.display import Display
from robustssm.experiment.job import Job, carry_out
from robustssm.experiment.parallel import in_parallel
from robustssm.experiment.rundir import RunDirectory, read_recipe
from robustssm.experiment.settings import Experiment, read_data, sensible_threads


def run(
    experiment: Experiment,
    directory: Path,
    *,
    name: str = "",
    overrides: Mapping[str, str] | None = None,
    resume: bool = False,
    data_dir: Path | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    threads: int | None = None,
    display: Display | None = None,
    save_seconds: float = 120.0,
) -> dict[str, Any]:
    """Trains and evaluates an experiment.

    Args:
        experiment: What to do.
        directory: Of the run: recipe.json, provenance.json, metrics.jsonl, checkpoints/,
            evaluation.json.
        name: Name of the recipe, for the record.
        overrides: What was changed of it, for the record.
        resume: Go on with a run that is there; with the same number of threads it ends with the
            same parameters, bit for bit on the CPU, as one that was never stopped.
        data_dir: Where data files are looked for.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        devices: Processes that share every batch, one per device; on a CPU they share it too. The
            losses are those of one process, up to rounding; a run may be resumed with any number.
        nodes: Hosts with so many devices each; every one of them must run this.
        threads: CPU threads per operation and process; None for what suits the size of a batch.
        display: Shows progress; silent if None.
        save_seconds: Longest time between checkpoints within an epoch.

    Returns:
        The contents of evaluation.json; empty where the first of several processes is elsewhere.

    Raises:
        RunInUse: If another process works in the directory.
        FileExistsError: If the directory holds a run and `resume` is false.
        ValueError: If the settings are not those of the run to be resumed, or do not fit the data.
        NonFiniteLoss: If training diverges; the last good checkpoint is kept.
        OutOfMemory: If a batch does not fit into memory, even in pieces.
        Inapplicable: If its objective or model does not allow a batch to be divided.
        ChildProcessError: If one of several processes fails otherwise; none is left then.
    """
    check_devices(device, devices=devices, nodes=nodes)
    job = Job(
        experiment=experiment,
        directory=directory,
        name=name,
        overrides=dict(overrides or {}),
        resume=resume,
        data_dir=data_dir,
        threads=threads,
        save_seconds=save_seconds,
    )
    display = display or Display()
    if devices * nodes > 1:
        return in_parallel(job, device=device, devices=devices, nodes=nodes, display=display)
    return carry_out(job, Placement(device=device, precision=experiment.precision), display)


def evaluate_run(
    directory: Path,
    *,
    overrides: Mapping[str, str] | None = None,
    suite: str | None = None,
    out: Path | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    resume: bool = False,
    max_hours: float | None = None,
    diagnose: bool = False,
    processes: int = 1,
    display: Display | None = None,
) -> dict[str, Any]:
    """Evaluates the checkpoints of a run again, from the settings in its own record.

    Args:
        directory: Of the run.
        overrides: Changes for this evaluation: attacks, threat, evaluation_examples, ...
        suite: Name of a suite (`attacks.suites.SUITES`) to run in place of the attacks.
        out: File to write; the run's evaluation.json if None.
        data_dir: Where data files are looked for.
        device: "auto", "cpu", "cuda", ...
        threads: CPU threads per operation and process; None for what suits the size of a batch.
        resume: Go on with the journal of the same evaluation, which was interrupted.
        max_hours: Stop then; the result is that of the examples finished.
        diagnose: Run the costly checks too.
        processes: How many processes, each with a device of its own, share the examples.
        display: Shows progress; silent if None.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: If there is no run, or no checkpoint in it.
        CorruptFile: If a file of the run is damaged.
        ValueError: If an override is wrong, or does not fit the checkpoint.
    """
    place = RunDirectory(directory)
    recorded = from_dict(Experiment, read_recipe(directory)["experiment"])
    experiment = override(recorded, overrides or {})
    if suite is not None:
        experiment = dataclasses.replace(experiment, attacks=(named_suite(suite),))
    options = Options(
        resume=resume,
        max_seconds=None if max_hours is None else 3600 * max_hours,
        diagnose=diagnose,
        processes=processes,
        data_dir=data_dir,
    )
    placement = Placement(device=device, precision=experiment.precision)
    splits = read_data(experiment, data_dir)
    with place.locked(), cpu_threads(threads or sensible_threads(experiment, splits)):
        return assess(
            experiment,
            place,
            splits,
            placement=placement,
            display=display or Display(),
            provenance=collect(seed=experiment.seed, device=placement.describe()),
            options=options,
            out=out,
        )
