"""Several recipes in one go, in processes on this machine."""

import json
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """How one recipe of a sweep ended."""

    recipe: str
    directory: Path
    result: dict[str, Any] | None
    """The contents of evaluation.json; None if the run failed."""
    error: str | None = None


def sweep(
    recipes: Sequence[str],
    out: Path,
    *,
    jobs: int,
    threads: int = 1,
    overrides: dict[str, str] | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
) -> Iterator[Outcome]:
    """Runs recipes `jobs` at a time, yielding each as it ends; a failed one does not stop the
    others.

    Runs that are there already are continued, finished ones only read.

    Args:
        recipes: Names of recipes.
        out: Directory of the runs; each goes to `out`/NAME.
        jobs: Processes at a time.
        threads: Threads of each process.
        overrides: Dotted overrides for all of them.
        data_dir: Where data files are looked for.
        device: Device of every run.
    """
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures: dict[Future[dict[str, Any]], str] = {
            pool.submit(_one, name, out / name, threads, overrides or {}, data_dir, device): name
            for name in recipes
        }
        for future in as_completed(futures):
            name = futures[future]
            try:
                yield Outcome(name, out / name, future.result())
            except Exception as error:  # reported with the recipe's name; the others go on
                reason = "".join(traceback.format_exception_only(error)).strip()
                yield Outcome(name, out / name, None, reason)


def _one(
    name: str,
    directory: Path,
    threads: int,
    overrides: dict[str, str],
    data_dir: Path | None,
    device: str,
) -> dict[str, Any]:
    from robustssm.core.config import override
    from robustssm.experiment import run
    from robustssm.recipes import recipe

    finished = directory / "evaluation.json"
    if finished.exists():
        return json.loads(finished.read_text())
    return run(
        override(recipe(name), overrides),
        directory,
        name=name,
        overrides=overrides,
        resume=True,
        data_dir=data_dir,
        device=device,
        threads=threads,
    )
