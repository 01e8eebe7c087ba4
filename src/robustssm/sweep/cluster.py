"""Runs as tasks of Ray, on one machine or many that share a file system."""

import dataclasses
import queue
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from robustssm import __version__
from robustssm.core.errors import violation
from robustssm.sweep.backend import Event
from robustssm.sweep.job import Job, Progress, Setup
from robustssm.sweep.work import Send, perform

_GRACE = 12.0
"""Seconds that runs have to end once they are told to."""
_GLANCE = 1.0
"""Seconds between looks at what the runs have said."""
_PATIENCE = 10.0
"""Seconds in which the head of a cluster must take a connection."""


class Cluster:
    """Ray's tasks; it decides where they run and how many at a time, by what each needs."""

    def __init__(self, setup: Setup, *, out: Path, jobs: int | None, address: str | None):
        """Joins a cluster, or starts Ray on this machine.

        Args:
            setup: Of every run; its threads are the CPUs that a task takes.
            out: Directory of the sweep, which every worker must see.
            jobs: Runs at a time; None for what the cluster holds. On this machine it is needed.
            address: Of the cluster; None to start Ray here.

        Raises:
            ValueError: If Ray is not installed, the cluster not there, or too small for a run.
        """
        self._ray = ray = _ray()
        self._out = out.absolute()
        place = None if setup.data_dir is None else setup.data_dir.absolute()
        self._setup = dataclasses.replace(setup, data_dir=place)
        self._ours = not ray.is_initialized()
        _join(ray, address, cpus=(jobs or 1) * setup.threads)
        try:
            gpus = _gpus(ray, setup)
            self._slots = jobs or _held(ray, setup.threads, gpus)
            from ray.util.queue import Queue  # pyright: ignore[reportMissingImports]

            self._news = Queue(actor_options={"num_cpus": 0})
            self._task = ray.remote(num_cpus=setup.threads, num_gpus=gpus, max_retries=0)(task)
            self._probe = self._out / f".seen_by_all_{uuid4().hex}"
            self._out.mkdir(parents=True, exist_ok=True)
            self._probe.touch()
        except BaseException:
            if self._ours:
                ray.shutdown()
            raise
        self._running: dict[Any, Job] = {}

    @property
    def slots(self) -> int:
        """So many tasks are given to Ray at a time."""
        return self._slots

    def submit(self, job: Job) -> None:
        """Makes a task of the run."""
        there = dataclasses.replace(job, directory=job.directory.absolute())
        request = {
            "job": there.to_dict(),
            "setup": self._setup.to_dict(),
            "probe": str(self._probe),
            "version": __version__,
        }
        reference = self._task.remote(request, self._news)
        self._running[reference] = job

    def wait(self, seconds: float) -> Sequence[Event]:
        """What the tasks said, and the ends of those that ended."""
        done, _ = self._ray.wait(list(self._running), timeout=min(seconds, _GLANCE))
        jobs = {str(job.directory.absolute()): job for job in self._running.values()}
        events = [
            Event(job=jobs[directory], progress=Progress(**progress))
            for directory, progress in self._said()
            if directory in jobs
        ]
        return [*events, *(self._ended(reference) for reference in done)]

    def _said(self) -> list[tuple[str, dict[str, Any]]]:
        try:
            count = self._news.qsize()
            return self._news.get_nowait_batch(count) if count else []
        except (queue.Empty, self._ray.exceptions.RayError):
            return []  # progress is for the eye only

    def _ended(self, reference: Any) -> Event:
        job = self._running.pop(reference)
        errors = self._ray.exceptions
        try:
            return Event.of_reply(job, self._ray.get(reference))
        except errors.RayTaskError as error:  # before the run began: it cannot import robustssm
            reason = f"a worker could not begin: {error.cause or error}"
            return Event(job=job, error=" ".join(reason.split())[:500])
        except errors.RayError as error:  # the worker or its node died
            first = (str(error).strip() or "no reason").splitlines()[0]
            return Event(job=job, error=f"{type(error).__name__}: {first}", transient=True)

    def close(self) -> None:
        """Cancels what runs, so that it can be resumed, and leaves the cluster."""
        ray, references = self._ray, list(self._running)
        try:
            for reference in references:
                ray.cancel(reference, force=False)
            if references:
                ray.wait(references, num_returns=len(references), timeout=_GRACE)
        finally:
            for reference in references:
                ray.cancel(reference, force=True)
            self._news.shutdown(force=True)
            self._probe.unlink(missing_ok=True)
            if self._ours:
                ray.shutdown()


def task(request: Mapping[str, Any], news: Any) -> dict[str, Any]:
    """Does a run on a worker of Ray.

    Args:
        request: Job and setup as dictionaries, the file to see, the driver's version.
        news: Queue for progress.
    """
    job, setup = Job.from_dict(request["job"]), Setup.from_dict(request["setup"])
    problem = _unfit(Path(request["probe"]), request["version"])
    if problem:
        return {"error": problem, "transient": False}
    send = _sender(str(job.directory), news)
    send(vars(Progress()))
    job.directory.mkdir(parents=True, exist_ok=True)
    return perform(job, setup, send)


def _unfit(probe: Path, version: str) -> str:
    """Why this worker must not do a run; empty if it may."""
    host = socket.gethostname()
    if not probe.exists():
        where = f"worker {host} does not see {probe.parent}"
        return violation("Every worker", "see the sweep's directory", where, "Share it, e.g. NFS.")
    if __version__ != version:
        where = f"{__version__} on {host} and {version} here"
        return violation("Every worker", "have the same robustssm", where, "Install one version.")
    return ""


def _sender(directory: str, news: Any) -> Send:
    def send(progress: Mapping[str, Any]) -> None:
        try:
            news.put((directory, dict(progress)))
        except Exception:  # progress is for the eye; a run does not fail of it
            pass

    return send


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "Ray must be installed for --backend ray and --address; it is not. "
            "Run `pip install 'robustssm[cluster]'`, or use --backend local."
        ) from None
    return ray


def _join(ray: Any, address: str | None, *, cpus: int) -> None:
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init(num_cpus=cpus, include_dashboard=False, **quiet)
        return
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        got = f"'{address}' ({' '.join(str(error).split())[:200]})"
        advice = "Start a cluster with `ray start --head`, or drop --address to run here."
        raise ValueError(violation("`--address`", "lead to a Ray cluster", got, advice)) from None


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT, at once: Ray asks for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


def _gpus(ray: Any, setup: Setup) -> int:
    """GPUs of a task: one, if runs want it and the cluster has any."""
    there = ray.cluster_resources().get("GPU", 0)
    if ":" in setup.device:
        must = "be a kind, as Ray gives each run a device of its own"
        raise ValueError(violation("`--device`", must, f"'{setup.device}'", "Use --device cuda."))
    if setup.device == "cuda" and not there:
        advice = "Use --device cpu, or add nodes with GPUs."
        raise ValueError(violation("`--device`", "be in the cluster", "'cuda', of none", advice))
    return 1 if setup.device in ("auto", "cuda") and there else 0


def _held(ray: Any, threads: int, gpus: int) -> int:
    """Runs that the nodes hold at a time.

    Raises:
        ValueError: If no node holds one.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    held = 0
    for node in nodes:
        by_cpu = int(node.get("CPU", 0) // threads)
        held += min(by_cpu, int(node.get("GPU", 0) // gpus)) if gpus else by_cpu
    if not held:
        most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
        got = f"{threads} threads where the largest node has {most} CPUs"
        raise ValueError(violation("A run", "fit on a node", got, "Lower --threads."))
    return held
