"""The verb that runs grids."""

import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from robustssm.cli.budget import Budget, EqualBudget
from robustssm.cli.options import DataDir, Device, KeepMemory, Quiet, Set, assignments, out


class Where(StrEnum):
    """Choices of --backend."""

    auto = "auto"
    local = "local"
    ray = "ray"


Asked = Annotated[
    list[str],
    typer.Argument(
        metavar="GRID...",
        help="Names of grids or recipes, patterns ('digits.s4*_pgd'), or TOML files.",
    ),
]
Retries = Annotated[
    int,
    typer.Option(
        min=0, help="More attempts at a run whose process died, or that ran out of memory."
    ),
]
Seeds = Annotated[
    str, typer.Option(help="How many (3: seeds 0, 1, 2), or which ones (3,7,11; 7, for one).")
]
Out = Annotated[
    Path, typer.Option("--out", help="Runs go to OUT/CELL/seed_S; grids share them there.")
]
Jobs = Annotated[
    int | None, typer.Option(min=1, help="Runs at a time; by default what cores or GPUs hold.")
]
Backend = Annotated[
    Where, typer.Option(help="Processes here, or Ray; auto: Ray where there is an address.")
]
Address = Annotated[
    str | None, typer.Option(help="Of a Ray cluster: HOST:6379, or auto on one of its nodes.")
]


def sweep(
    asked: Asked,
    seeds: Seeds = "1",
    directory: Out = Path("runs"),
    jobs: Jobs = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each run.")] = 1,
    set_: Set = None,
    budget: Budget = None,
    equal_budget: EqualBudget = None,
    device: Device = "auto",
    data_dir: DataDir = None,
    retries: Retries = 1,
    backend: Backend = Where.auto,
    address: Address = None,
    keep_memory: KeepMemory = False,
    quiet: Quiet = False,
) -> None:
    """Run grids of recipes with several seeds; kill it at any time and give it again to go on."""
    from robustssm.cli.sweep_table import summary, watching
    from robustssm.sweep import Outcome, Setup, Sweep, lay_out
    from robustssm.sweep.budget import with_budget
    from robustssm.sweep.job import LOG

    began = time.monotonic()
    chosen = seeds_of(seeds)
    plan = with_budget(
        lay_out(asked, seeds=chosen, out=directory, overrides=assignments(set_)),
        passes=budget,
        like=equal_budget,
        data_dir=data_dir,
    )
    setup = Setup(threads=threads, device=device, data_dir=data_dir)
    outcomes: list[Outcome] = []
    with (
        _interruptible(),
        Sweep(
            plan,
            setup,
            directory,
            jobs=jobs,
            retries=retries,
            backend=backend.value,
            address=address,
        ) as work,
    ):
        runs = f"{len(work.jobs)} run{'s'[: len(work.jobs) != 1]}"
        title = (
            f"{', '.join(grid.name for grid in plan.grids)}: {runs}, "
            f"{len(work.finished)} finished before, {max(1, work.slots)} at a time"
        )
        with watching(out, work.jobs, title=title, slots=work.slots, quiet=quiet) as watcher:
            outcomes += work.outcomes(watcher)
    for line in summary(outcomes, LOG, time.monotonic() - began):
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if any(outcome.result is None for outcome in outcomes):
        _say("The same command goes on with what failed.")
        sys.exit(1)
    _say(f"Next: robustssm report {directory}")


def seeds_of(text: str) -> list[int]:
    """Seeds from text: a number of them from 0 on, or a list with commas.

    Raises:
        ValueError: If it is neither.
    """
    try:
        if "," in text:
            return [int(part) for part in text.split(",") if part.strip()]
        return list(range(int(text)))
    except ValueError:
        raise ValueError(
            f"`--seeds` must be a number of seeds, or seeds with commas between them; got "
            f"'{text}'. For example --seeds 3, or --seeds 3,7,11."
        ) from None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end what runs and say how to go on; the exit status names the signal."""
    came = [signal.SIGINT]

    def stop(number: int, frame: FrameType | None) -> None:
        came[0] = signal.Signals(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        _say(f"Stopped by {came[0].name}; nothing is lost. To go on, give it again: {command}")
        sys.exit(128 + came[0])
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(line: str) -> None:
    out.print(line, markup=False, highlight=False, soft_wrap=True)
