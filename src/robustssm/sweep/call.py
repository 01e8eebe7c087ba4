"""A sweep from its check to its record."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal

from robustssm.core.errors import violation
from robustssm.recipes.grids import Grid
from robustssm.sweep.backend import Backend
from robustssm.sweep.check import check, refuse
from robustssm.sweep.drive import drive
from robustssm.sweep.job import Job, Outcome, Setup, Watcher
from robustssm.sweep.local import Local
from robustssm.sweep.plan import Plan, lay_out
from robustssm.sweep.record import Record

Where = Literal["auto", "local", "ray"]


def run(
    asked: Iterable[str | Grid],
    out: Path = Path("runs"),
    *,
    seeds: Sequence[int] = (0,),
    overrides: Mapping[str, str] | None = None,
    jobs: int | None = None,
    threads: int = 1,
    device: str = "auto",
    data_dir: Path | None = None,
    retries: int = 1,
    backend: Where = "auto",
    address: str | None = None,
    watcher: Watcher | None = None,
) -> Iterator[Outcome]:
    """Runs grids with several seeds, yielding each run as it ends; failed ones do not stop others.

    A run is what `robustssm run` does with the same number of threads, bit for bit on a CPU. Those
    that are finished are only read, those that were interrupted are gone on with. The file
    `out`/sweeps/STARTED.json records the call. Leaving the iterator early ends what runs.

    Args:
        asked: Grids, or what `find` takes: names, patterns, TOML files.
        out: A run goes to `out`/CELL/seed_S.
        seeds: Every cell is run with each; all cells with the first before any with the second.
        overrides: Dotted overrides of every run.
        jobs: Runs at a time; None: one per core (or GPU) here, what fits on a cluster.
        threads: CPU threads of each run.
        device: Device of every run.
        data_dir: Where data files are looked for.
        retries: How often a run is gone on with after its process was killed, or memory or a disk
            failed it.
        backend: "local": processes; "ray"; "auto": Ray if there is an address.
        address: Of a Ray cluster; None with "ray" starts Ray on this machine.
        watcher: Is told what happens.

    Raises:
        ValueError: Before anything is begun; lists all that is wrong.
    """
    setup = Setup(threads=threads, device=device, data_dir=data_dir)
    plan = lay_out(asked, seeds=seeds, out=out, overrides=overrides)
    with Sweep(
        plan, setup, out, jobs=jobs, retries=retries, backend=backend, address=address
    ) as sweep:
        yield from sweep.outcomes(watcher)


class Sweep:
    """A checked plan and what carries it out; a context, at whose end nothing runs any more."""

    def __init__(
        self,
        plan: Plan,
        setup: Setup,
        out: Path,
        *,
        jobs: int | None = None,
        retries: int = 1,
        backend: Where = "auto",
        address: str | None = None,
    ):
        """Checks everything, and begins nothing. For the arguments see `run`.

        Raises:
            ValueError: Lists all that is wrong.
        """
        where = backend if backend != "auto" else "local" if address is None else "ray"
        problems = list(plan.problems)
        if backend == "local" and address is not None:
            problems.append("`--backend local` must stand without --address; got both. Drop one.")
        least = {"`jobs`": jobs or 1, "`threads`": setup.threads, "`retries`": retries + 1}
        problems += [violation(k, "not be so low", v) for k, v in least.items() if v < 1]
        paths = tuple(str(Path(path or ".").absolute()) for path in sys.path)
        setup = replace(setup, paths=paths, command=tuple(sys.argv))
        found = check(plan.jobs, setup, here=where == "local")
        problems += found.problems
        self.plan, self.finished = plan, found.finished
        self._out, self._retries = out, retries
        self._complete = False
        self._record: Record | None = None
        opened: Backend | None = None
        if any(job.directory not in self.finished for job in plan.jobs) or problems:
            try:
                opened = _open(where, setup, out, jobs, address)
            except ValueError as error:
                problems.append(str(error))
        self._backend = opened
        if problems and opened is not None:
            opened.close()
        refuse(problems)
        self.slots = 0 if opened is None else opened.slots
        self._setting = {
            "backend": where,
            "address": address,
            "jobs": self.slots,
            "threads": setup.threads,
            "device": setup.device,
        }

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Every run, in order."""
        return self.plan.jobs

    def outcomes(self, watcher: Watcher | None = None) -> Iterator[Outcome]:
        """Carries the plan out, yielding every run as it ends.

        Args:
            watcher: Is told what happens.
        """
        self._record = Record(self._out, self.plan, setting=self._setting)
        work = drive(
            self.jobs,
            self._backend or Local(Setup(), jobs=1),
            finished=self.finished,
            retries=self._retries,
            watcher=watcher,
        )
        for outcome in work:
            self._record.note(outcome)
            yield outcome
        self._complete = True

    def __enter__(self) -> "Sweep":
        """The sweep itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends what runs, and closes the record."""
        try:
            if self._backend is not None:
                self._backend.close()
        finally:
            if self._record is not None:
                with suppress(OSError):  # a full disk must not hide why we are here
                    self._record.close(complete=self._complete)


def _open(where: str, setup: Setup, out: Path, jobs: int | None, address: str | None) -> Backend:
    """Makes the backend.

    Raises:
        ValueError: If it cannot be had.
    """
    if where == "ray":
        from robustssm.sweep.cluster import Cluster

        here = None if address is not None else jobs or max(1, cores() // setup.threads)
        return Cluster(setup, out=out, jobs=jobs if here is None else here, address=address)
    devices = _devices(setup.device)
    fitting = len(devices) or max(1, cores() // setup.threads)
    return Local(setup, jobs=jobs or fitting, devices=devices)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _devices(device: str) -> list[str]:
    """The GPUs among which runs are dealt out; none if the device is a CPU, or named."""
    import torch

    if device not in ("auto", "cuda"):
        return [device] if device.startswith("cuda") else []
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
