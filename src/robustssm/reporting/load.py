"""Finds run directories and reads them. What cannot be used is listed with its reason."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from robustssm.core.errors import CorruptFile
from robustssm.records import (
    EvaluationResult,
    Provenance,
    StepRecord,
    read_json,
    read_records,
)
from robustssm.reporting import names, poison_load, probes
from robustssm.reporting.runs import Checkpoint, LeftOut, Run, Runs

RECIPE, PROVENANCE = "recipe.json", "provenance.json"
METRICS, EVALUATION = "metrics.jsonl", "evaluation.json"
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, RecursionError)
_OPTIONAL = {"commit", "seconds"}
_NOT_TEST = {"validation", "train_limit", "download", "verify", "sha256"}
"""Settings of data sets that leave the test examples as they are."""


def load(paths: Sequence[Path]) -> Runs:
    """Reads every run directory, and every result of a poisoning study, at or below the paths.

    Args:
        paths: Run directories, or directories that hold them at any depth; files of poisoning
            studies, or directories that hold those.

    Raises:
        ValueError: If a path is neither a directory nor a JSON file, or nothing is left to report;
            every reason is given.
    """
    finished, left_out = [], []
    for name, path in named([path for path in paths if not _is_result(path)]):
        run = read(path, name=name)
        (finished if isinstance(run, Run) else left_out).append(run)
    studies, damaged = poison_load.find(paths)
    if not finished and not studies:
        where = ", ".join(str(path) for path in paths) or "nothing"
        listed = [*left_out, *damaged]
        found = "".join(f"\n  {each.name} is {each.state}: {each.reason}" for each in listed)
        raise ValueError(
            f"A report needs at least one finished run, a directory with {RECIPE}, {PROVENANCE} "
            f"and {EVALUATION}, or the result of a poisoning study; "
            f"found {found or 'no run directory'} in {where}. "
            "Finish a run with `robustssm run RECIPE` (--resume continues one)."
        )
    return Runs(
        studies=studies,
        damaged=damaged,
        finished=tuple(sorted(finished, key=lambda run: run.name)),
        left_out=tuple(sorted(left_out, key=lambda run: run.name)),
    )


def read(path: Path, *, name: str) -> Run | LeftOut:
    """Reads one run directory.

    Args:
        path: The directory.
        name: What the report calls the run.
    """
    try:
        recipe, experiment = _recipe(path / RECIPE)
        epochs = _epochs(path / METRICS)
        if not (path / EVALUATION).exists():
            at, of = epochs[-1].epoch if epochs else 0, experiment.get("epochs", "?")
            reason = f"{EVALUATION} is missing; training reached epoch {at} of {of}."
            return LeftOut(name=name, state="unfinished", reason=reason)
        provenance, further = _provenance(path / PROVENANCE)
        checkpoints, rest = _evaluation(path / EVALUATION)
    except (CorruptFile, OSError) as error:
        reason = str(names.printable(str(error).replace(f"{path}/", "")))
        return LeftOut(name=name, state="damaged", reason=reason)
    found, damaged = probes.read(path, run=name)
    return Run(
        name=name,
        recipe=str(recipe.get("recipe", "not recorded")),
        overrides=_mapping(recipe.get("overrides") or {}, "overrides"),
        experiment=experiment,
        provenance=provenance,
        further=further,
        epochs=epochs,
        checkpoints=checkpoints,
        selection=names.RULES.get(rule := str(rest.get("selection", "not recorded")), rule),
        test_size=_test_size(rest),
        examples=_examples(recipe, rest),
        probes=found,
        damaged=damaged,
    )


def _is_result(path: Path) -> bool:
    return path.suffix == ".json" and path.is_file()


def named(paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Run directories with short unique names: relative to what was given, never absolute.

    Args:
        paths: Run directories, or directories that hold them at any depth.
    """
    seen: set[Path] = set()
    taken: set[str] = set()
    for path in paths:
        if not path.is_dir():
            raise ValueError(
                f"Runs are read from their directories; {path} is not a directory. "
                "Give a run, or a directory that holds runs."
            )
        root = path.resolve()
        for run in _below(root, seen):
            inside = run.relative_to(root).as_posix()
            options = [root.name] if inside == "." else [inside, f"{root.name}/{inside}"]
            options += [f"{options[-1]} ({number})" for number in range(2, len(taken) + 3)]
            name = next(str(names.printable(o)) for o in options if names.printable(o) not in taken)
            taken.add(name)
            yield name, run


def _below(path: Path, seen: set[Path]) -> Iterator[Path]:
    if path.resolve() in seen:  # given twice, or a link back into what was searched
        return
    seen.add(path.resolve())
    if any((path / name).exists() for name in (RECIPE, PROVENANCE, METRICS, EVALUATION)):
        yield path
        return
    for child in sorted(path.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            yield from _below(child, seen)


def _recipe(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    recipe = _json(path)
    experiment = _mapping(recipe.get("experiment"), f"{path}: experiment")
    for part in ("dataset", "model", "objective"):
        if isinstance(experiment.get(part), str):  # a bare name stands for the defaults
            experiment[part] = {"name": experiment[part]}
        settings = _mapping(experiment.get(part), f"{path}: experiment.{part}")
        if part == "model" and "layer" in settings:
            if isinstance(settings["layer"], str):
                settings["layer"] = {"name": settings["layer"]}
            settings = _mapping(settings["layer"], f"{path}: experiment.model.layer")
        if not isinstance(settings.get("name"), str):
            raise CorruptFile(f"{path}: experiment.{part} must say its name; got {settings!r:.80}.")
    if not isinstance(experiment.get("seed", 0), int):
        raise CorruptFile(f"{path}: experiment.seed must be an integer.")
    return recipe, experiment


def _provenance(path: Path) -> tuple[Provenance, dict[str, Any]]:
    data = _json(path)
    known = {f.name: data.pop(f.name) for f in fields(Provenance) if f.name in data}
    missing = [f.name for f in fields(Provenance) if f.name not in known | dict.fromkeys(_OPTIONAL)]
    if missing:
        raise CorruptFile(f"{path} must say where a run comes from; it lacks {', '.join(missing)}.")
    _mapping(known["packages"], f"{path}: packages")
    seconds = known.setdefault("seconds", None)
    known.setdefault("commit", None)
    if not isinstance(known["seed"], int) or not isinstance(seconds, int | float | None):
        raise CorruptFile(f"{path}: seed must be an integer and seconds a number.")
    for key in ("version", "command", "device", "started"):
        known[key] = str(known[key])
    return Provenance(**known), data


def _epochs(path: Path) -> tuple[StepRecord, ...]:
    if not path.exists():  # a run of no epochs; the report says that there are no curves
        return ()
    try:
        epochs = {r.epoch: r for r in read_records(path) if r.kind == "epoch"}
        ordered = tuple(epochs[epoch] for epoch in sorted(epochs))
        for record in ordered:
            if not isinstance(record.epoch, int):
                raise CorruptFile(f"{path}: epoch must be an integer; got {record.epoch!r:.40}.")
            for key, value in record.values.items():
                if not isinstance(value, int | float):
                    raise CorruptFile(f"{path}, epoch {record.epoch}: {key} must be a number.")
    except _DAMAGE as error:
        raise _damaged(path, error) from None
    return ordered


def _evaluation(path: Path) -> tuple[dict[str, Checkpoint], dict[str, Any]]:
    data = _json(path)
    top = str(data.get("checkpoint", "best"))
    parts = _mapping(data.get("checkpoints", {top: data}), f"{path}: checkpoints")
    checkpoints = {}
    for name in sorted(parts):  # "best" before "last"
        part = _mapping(parts[name], f"{path}: checkpoint '{name}'")
        try:
            checkpoints[name] = Checkpoint(epoch=part.get("epoch"), result=_result(part))
        except _DAMAGE as error:
            raise _damaged(path, error) from None
    if not checkpoints:
        raise CorruptFile(f"{path} must hold the numbers of at least one checkpoint; it is empty.")
    if data.get("counts") != parts.get(top, {}).get("counts"):
        raise CorruptFile(f"{path}: the first numbers must be those of checkpoint '{top}'.")
    return checkpoints, data


def _test_size(data: Mapping[str, Any]) -> int | None:
    sizes = data.get("test_examples")
    size = sizes.get("all") if isinstance(sizes, dict) else None
    return size if isinstance(size, int) else None


def _examples(recipe: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """What tells which test examples a run saw: their hash, or else where the data came from.

    The test examples of a data set depend on its files and settings, not on the seed, nor on how
    many others are set aside for training and validation.
    """
    best = evaluation.get("checkpoints", {}).get("best", {})
    known = evaluation.get("data_hash") or best.get("data_hash")
    if isinstance(known, str):
        return known
    dataset = recipe["experiment"]["dataset"]
    origin = recipe.get("data")
    files = origin.get("files") if isinstance(origin, dict) else None
    sums = sorted(map(str, files.values())) if isinstance(files, dict) else []
    aside = _NOT_TEST | ({"path", "labels"} if sums else set())  # a file that was only moved
    settings = {key: value for key, value in dataset.items() if key not in aside}
    return json.dumps([settings, sums], sort_keys=True)


def _result(data: Mapping[str, Any]) -> EvaluationResult:
    """The flags, once they are known to be flags and to agree with the accuracies beside them."""
    for row in data["flags"].values():
        if not set(row) <= {0, 1}:
            raise CorruptFile("flags must be 0 or 1.")
    result = EvaluationResult.from_dict(data)
    _mapping(result.threat, "threat")
    _check_parts(result)
    stated = {"clean": data.get("clean_accuracy"), "robust": data.get("robust_accuracy")}
    stated |= _mapping(data.get("attacks", {}), "attacks")
    counted = {"clean": result.clean_accuracy, "robust": result.robust_accuracy} | result.attacks
    for name, value in stated.items():
        if value is not None and not math.isclose(value, counted[name], abs_tol=1e-9):
            raise CorruptFile(
                f"the accuracy of '{name}' must be that of its flags, {counted[name]:.4f}; "
                f"it says {value:.4f}."
            )
    return result


def _check_parts(result: EvaluationResult) -> None:
    """Refuses suites and curves that contradict themselves or the flags."""
    if not isinstance(result.planned, int | None):
        raise CorruptFile(f"planned must be a number of examples; got {result.planned!r:.40}.")
    for label, suite in result.suites.items():
        before, stages = result.clean, list(suite.stages.items())
        if label not in result.survived or not stages:
            raise CorruptFile(f"suite '{label}' must have stages, and flags of its own name.")
        for stage, row in (*stages, ("its end", result.survived[label])):
            if len(row) != len(before) or any(
                now > then for now, then in zip(row, before, strict=True)
            ):
                raise CorruptFile(
                    f"suite '{label}' must only lose examples; at {stage} it has others."
                )
            before = row
    for curve in result.curves:
        if not isinstance(curve.axis, str) or not isinstance(curve.attack, str):
            raise CorruptFile("a curve must name its axis and its attack.")
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in curve.values):
            raise CorruptFile(f"the {curve.axis} curve of '{curve.attack}' must be over numbers.")
        if len({len(row) for row in curve.survived}) > 1 or not curve.survived[0]:
            raise CorruptFile(
                f"the {curve.axis} curve of '{curve.attack}' must be over the same examples."
            )


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CorruptFile(f"{path.name} is missing.")
    try:
        return _mapping(names.printable(read_json(path)), str(path))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CorruptFile(f"{where} must be an object; got {json.dumps(value)[:80]}.")
    return value


def _damaged(path: Path, error: BaseException) -> CorruptFile:
    if str(path) in str(error):  # it names the file already
        return CorruptFile(str(error))
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return CorruptFile(f"{path} is damaged: {kind}{error}")
