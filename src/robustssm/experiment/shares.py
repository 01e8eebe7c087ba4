"""One evaluation in several processes: each does a share of the examples, into one journal."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustssm.core.config import from_dict, to_dict
from robustssm.core.placement import cpu_threads, in_processes
from robustssm.core.rng import Streams
from robustssm.evaluation.journal import DiskJournal
from robustssm.evaluation.session import Evaluation
from robustssm.experiment.loading import load_examples, load_model
from robustssm.experiment.rundir import RunDirectory
from robustssm.experiment.settings import Experiment, read_data


def share_out(
    experiment: Experiment,
    run: Path,
    name: str,
    journal: Path,
    *,
    processes: int,
    data_dir: Path | None,
    max_seconds: float | None,
    device: str,
    threads: int,
    show: Callable[[int], None],
) -> None:
    """Lets several processes fill a journal that has been begun; what they leave, the caller does.

    Args:
        experiment: Attacks, threat and model.
        run: Directory of the run.
        name: The checkpoint.
        journal: Begun for this evaluation.
        processes: How many.
        data_dir: Where data files are looked for.
        max_seconds: When they stop.
        device: Kind of device, one for each.
        threads: CPU threads of each.
        show: Told how many pieces are finished, now and then.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            show(DiskJournal.finished(journal))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        in_processes(
            _work,
            to_dict(experiment),
            str(run),
            name,
            str(journal),
            None if data_dir is None else str(data_dir),
            max_seconds,
            threads,
            device=device,
            processes=processes,
        )
    finally:
        ended.set()
        watcher.join()


def _work(
    fabric: Any,
    settings: dict[str, Any],
    run: str,
    name: str,
    journal: str,
    data_dir: str | None,
    max_seconds: float | None,
    threads: int,
) -> None:
    """One process: the chunks that are its share."""
    experiment = from_dict(Experiment, settings)
    splits = read_data(experiment, None if data_dir is None else Path(data_dir))
    model = load_model(experiment, RunDirectory(Path(run)), splits, name, fabric.device)
    test = load_examples(experiment, splits, fabric.device)
    evaluation = Evaluation(
        model,
        test.x,
        test.y,
        experiment.attacks,
        experiment.threat,
        streams=Streams(experiment.seed),
        batch_size=experiment.evaluation_batch_size,
        journal=Path(journal),
        resume=True,
    )
    with cpu_threads(threads), evaluation:
        try:
            evaluation.run(share=(fabric.global_rank, fabric.world_size), max_seconds=max_seconds)
        except TimeoutError:
            return  # the caller says so, if nobody has finished anything
