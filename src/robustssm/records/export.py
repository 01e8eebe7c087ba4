"""Copies of what reports read of runs and studies, small enough to be published."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustssm.records import studies
from robustssm.records.files import read_json, write_bytes
from robustssm.records.steps import StepRecord, read_records

_ABSOLUTE = re.compile(r"(?<![^\s='\"])/[^\s'\"]*")
"""A path from the root, where a word of a command begins."""
_WHOLE = ("recipe.json", "provenance.json", "evaluation.json")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One finished run or study and its copy."""

    source: Path
    copy: Path
    bytes: int
    """Of all files of the copy."""


def finished_runs(paths: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Finished runs at or below the paths, each with its place below the path it was found under.

    Raises:
        ValueError: If a path is neither a directory nor a JSON file.
    """
    for root in paths:
        if root.is_file() and root.suffix == ".json":
            continue  # the result of a study
        if not root.is_dir():
            raise ValueError(
                f"Runs are exported from directories; {root} is not a directory. "
                "Give a run, or a directory that holds runs."
            )
        for recipe in sorted(root.rglob("recipe.json")):
            run = recipe.parent
            if (run / "evaluation.json").exists():
                yield run, run.relative_to(root) if run != root else Path(root.resolve().name)


def export(paths: Sequence[Path], out: Path, *, probes: bool = False) -> Iterator[Exported]:
    """Copies records of finished runs, without weights, journals and single training steps, and
    results of poisoning studies, with seven digits.

    A copy is a run directory to `robustssm report`, `runs` and `compare`; it can be neither resumed
    nor evaluated again. A copy that is there already is replaced. Of absolute paths in the recorded
    commands only the last name is kept: where a home directory lies is nobody's business.

    Args:
        paths: Run directories and results of studies, or directories that hold them at any depth.
        out: Where the copies go, under the same names.
        probes: Whether what probes measured is copied too, which can be large.

    Raises:
        ValueError: If a path is not there, a file is damaged, two runs have one name, or
            nothing is finished.
    """
    found: dict[Path, Path] = {}
    for run, name in finished_runs(paths):
        if name in found:
            _refuse_twins(name, found[name], run)
        found[name] = run
    results = _studies(paths)
    if not found and not results:
        where = ", ".join(str(path) for path in paths) or "nothing"
        raise ValueError(
            f"An export needs at least one finished run, a directory with {' and '.join(_WHOLE)}; "
            f"found none in {where}. Finish a run with `robustssm run RECIPE` (--resume goes on)."
        )
    for name, run in found.items():
        yield _copy(run, out / name, probes=probes)
    for name, file in results.items():
        text = _compact(file, digits=7)
        write_bytes(out / name, text.encode())
        yield Exported(source=file, copy=out / name, bytes=len(text))


def _studies(paths: Sequence[Path]) -> dict[Path, Path]:
    """Results of studies at or below the paths, by the name that their copies get."""
    found: dict[Path, Path] = {}
    for root, file, certain in studies.files(paths):
        try:
            known = studies.maker(read_json(file)) is not None
        except ValueError:
            if certain:
                raise
            continue
        if not known and file in paths:
            raise ValueError(
                f"{file} must be the result of a poisoning study to be exported; it is another "
                "JSON file. Give a run, a study, or a directory that holds them."
            )
        name = file.relative_to(root)
        if known and found.setdefault(name, file) != file:
            _refuse_twins(name, found[name], file)
    return found


def _refuse_twins(name: Path, first: Path, second: Path) -> None:
    raise ValueError(
        f"What is exported must have different names; {first} and {second} are both '{name}'. "
        "Export them to different directories."
    )


def _copy(run: Path, copy: Path, *, probes: bool) -> Exported:
    content = {name: _compact(run / name) for name in _WHOLE}
    if (run / "metrics.jsonl").exists():
        epochs = [_rounded(r) for r in read_records(run / "metrics.jsonl") if r.kind == "epoch"]
        content["metrics.jsonl"] = "".join(f"{record.to_line()}\n" for record in epochs)
    if probes:
        for path in sorted((run / "probes").glob("*.json")):
            content[f"probes/{path.name}"] = _compact(path)
    for name, text in content.items():
        write_bytes(copy / name, text.encode())
    return Exported(
        source=run, copy=copy, bytes=sum(len(text.encode()) for text in content.values())
    )


def _compact(path: Path, *, digits: int | None = None) -> str:
    content = _without_places(read_json(path))
    if digits is not None:
        content = json.loads(
            json.dumps(content), parse_float=lambda x: float(f"{float(x):.{digits}g}")
        )
    return json.dumps(content, separators=(",", ":"), allow_nan=True) + "\n"


def _without_places(content: Any) -> Any:
    """The same with the absolute paths in every "command" cut to their last names."""
    if isinstance(content, list):
        return [_without_places(each) for each in content]
    if not isinstance(content, dict):
        return content
    return {
        key: _ABSOLUTE.sub(_last, value)
        if key == "command" and isinstance(value, str)
        else _without_places(value)
        for key, value in content.items()
    }


def _last(path: re.Match[str]) -> str:
    return path[0].rstrip("/").rpartition("/")[2] or "/"


def _rounded(record: StepRecord) -> StepRecord:
    """Seven digits: all that a float32 has."""
    values = {key: float(f"{value:.7g}") for key, value in record.values.items()}
    return StepRecord(kind=record.kind, epoch=record.epoch, step=record.step, values=values)
