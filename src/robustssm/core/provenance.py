"""Collects where a run comes from: versions, commit, command, device."""

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from robustssm import __version__
from robustssm.records import Provenance

_PACKAGES = ("torch", "numpy", "lightning-fabric", "pydantic", "safetensors", "scikit-learn")


def collect(*, seed: int, device: str) -> Provenance:
    """The provenance of a run that starts now.

    Args:
        seed: The recipe's seed.
        device: The device in words.
    """
    return Provenance(
        version=__version__,
        commit=commit(),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        seed=seed,
        device=device,
        packages={"python": platform.python_version()} | versions(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide numbers."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """Commit of the checkout this runs from, "+changes" if it was edited; None outside git."""
    here = Path(__file__).resolve().parent
    head = _git(here, "rev-parse", "HEAD")
    if head is None or _git(here, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return head + ("+changes" if _git(here, "status", "--porcelain", "--", "../..") else "")


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
