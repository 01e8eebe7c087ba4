"""Which versions of the package the results of a report are from, and whether they may be mixed."""

from collections.abc import Iterator, Mapping

from robustssm.reporting.base import Note
from robustssm.reporting.runs import Runs

_CHANGED = "+changes"
_SHORT = 12


def refuse_mixed(runs: Runs) -> None:
    """Refuses results of several versions of the package in one report.

    The version counts, not the commit: commits differ between honest runs of one version, which
    `notes` says.

    Args:
        runs: Everything found.

    Raises:
        ValueError: If there are several versions; names some results of each.
    """
    made = _by(runs, "version")
    if len(made) < 2:
        return
    said = "\n".join(f"  {version}: {_few(names)}" for version, names in sorted(made.items()))
    raise ValueError(
        "Results in one report must come from one version of robustssm, as another version may "
        f"measure otherwise; found\n{said}\nMake the others again, name the runs of one version "
        "only, or mix them with --mixed, and the report says so."
    )


def notes(runs: Runs) -> tuple[Note, ...]:
    """What is said of versions and commits: nothing if all results are of the same clean commit."""
    made = []
    versions, commits = _by(runs, "version"), _by(runs, "commit")
    if len(versions) > 1:
        said = "; ".join(f"{version}: {_few(names)}" for version, names in sorted(versions.items()))
        made.append(
            Note(
                label="mixed",
                text=f"Results of several versions of robustssm are mixed, as was asked: {said}.",
            )
        )
    if len(commits) > 1:
        said = "; ".join(f"{_short(c)}: {len(names)}" for c, names in sorted(commits.items()))
        made.append(
            Note(label="commits", text=f"Results come from several commits, results each: {said}.")
        )
    changed = [name for c, names in sorted(commits.items()) if _CHANGED in c for name in names]
    if changed:
        made.append(
            Note(
                label="changes",
                text=f"Made with changes that no commit holds: {_few(changed)}.",
            )
        )
    return tuple(made)


def _by(runs: Runs, key: str) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for name, value in _origins(runs, key):
        found.setdefault(value, {})[name] = None
    return {value: list(names) for value, names in found.items()}


def _origins(runs: Runs, key: str) -> Iterator[tuple[str, str]]:
    """Name of a result and what its record, and that of its evaluation, say."""
    unknown = "not recorded"
    for run in runs.finished:
        yield run.name, str(getattr(run.provenance, key) or unknown)
        for checkpoint in run.checkpoints.values():
            origin = checkpoint.result.provenance
            if origin is not None:
                yield run.name, str(getattr(origin, key) or unknown)
    for study in runs.studies:
        origin = getattr(study.result, "provenance", None)
        if isinstance(origin, Mapping) and key in origin:
            yield study.name, str(origin[key] or unknown)


def _short(commit: str) -> str:
    bare, plus, _ = commit.partition(_CHANGED)
    return f"{bare[:_SHORT]}{_CHANGED if plus else ''}"


def _few(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
