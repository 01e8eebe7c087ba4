"""Studies of poisoning by name: their published settings, and a file for every result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from robustssm.core.config import override, to_dict
from robustssm.core.errors import unknown
from robustssm.core.placement import Placement
from robustssm.core.provenance import collect
from robustssm.models.presets import Victim as Structure
from robustssm.poisoning.audit import Auditing, audit
from robustssm.poisoning.brewing_settings import mnist14, published, small
from robustssm.poisoning.brewing_study import brewing_study
from robustssm.poisoning.dynamics_study import Dynamics, dynamics
from robustssm.poisoning.linear_study import Beyond, beyond
from robustssm.poisoning.network_study import Network, network
from robustssm.poisoning.scoring import Scoring, score_all
from robustssm.poisoning.sweeps import Sweep, What, sweep
from robustssm.poisoning.theory_study import Theory, theory
from robustssm.poisoning.training import Progress
from robustssm.poisoning.victim import Victim
from robustssm.records import read_json, write_json
from robustssm.records.audit import AuditResult, DefenceResult
from robustssm.records.brewing import BrewingResult
from robustssm.records.poisoning import PoisonResult

SWEEPS: tuple[str, ...] = get_args(What)
"""What `sweep` can vary."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One result to be made: the name of its file, its settings, and what makes it."""

    name: str
    settings: Any
    make: Callable[..., PoisonResult]


def theory_pieces() -> list[Piece]:
    """Theorem 1's experiment at both published lengths."""
    return [Piece(name=f"theory_{n}", settings=Theory.published(n), make=theory) for n in (7, 9)]


def beyond_pieces() -> list[Piece]:
    """All of A, B and C trained, at both published lengths."""
    return [Piece(name=f"beyond_{n}", settings=Beyond.published(n), make=beyond) for n in (6, 10)]


def network_pieces() -> list[Piece]:
    """The SSM in front of a network, at both published lengths."""
    return [
        Piece(name=f"network_{n}", settings=Network.published(n), make=network) for n in (6, 10)
    ]


def dynamics_pieces() -> list[Piece]:
    """Teachers of 1 to 4 states alone, and of one state in front of a network."""
    alone = [
        (f"dynamics_{n}_teacher_{dim}", Dynamics(length=n, teacher_dim=dim))
        for n in (6, 10)
        for dim in range(1, 5)
    ]
    inside = [(f"dynamics_{n}_network", Dynamics(length=n, in_network=True)) for n in (6, 10)]
    return [Piece(name=name, settings=each, make=dynamics) for name, each in (*alone, *inside)]


def sweep_pieces(what: str) -> list[Piece]:
    """One sweep, around each experiment that has it.

    Raises:
        ValueError: If there is no such sweep.
    """
    if what not in SWEEPS:
        raise ValueError(unknown("sweep", what, SWEEPS))
    found = []
    for around in ("theory", "beyond"):
        try:
            settings = Sweep(what=what, around=around)  # pyright: ignore[reportArgumentType]
        except ValueError:  # not every setting can vary in both
            continue
        found.append(Piece(name=f"sweep_{what}_{around}", settings=settings, make=sweep))
    return found


STUDIES: Mapping[str, Callable[[], list[Piece]]] = {
    "theory": theory_pieces,
    "beyond": beyond_pieces,
    "network": network_pieces,
    "dynamics": dynamics_pieces,
}


def run_pieces(
    pieces: Sequence[Piece],
    directory: Path,
    *,
    overrides: Mapping[str, str] | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> dict[Path, PoisonResult]:
    """Makes results one after the other and writes each as it is finished.

    A result that is there already with the same settings is read, not made again: what was
    finished before a kill is kept.

    Args:
        pieces: What to make.
        directory: Where NAME.json are written.
        overrides: Dotted changes of the settings, for every piece.
        again: Make also what is there.
        progress: Told what is under way, and which share of it is done.

    Returns:
        File to result, in order.

    Raises:
        ValueError: If an override is wrong; before anything runs.
    """
    pieces = [replace(p, settings=override(p.settings, overrides or {})) for p in pieces]
    provenance = _provenance("cpu")
    found = {}
    for piece in pieces:
        file = directory / f"{piece.name}.json"
        made = None if again else _there(file, piece)
        if made is None:
            made = replace(piece.make(piece.settings, progress=progress), provenance=provenance)
            write_json(file, made.to_dict())
        found[file] = made
    return found


def run_defences(
    directory: Path,
    overrides: Mapping[str, str] | None = None,
    *,
    again: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, DefenceResult]:
    """Scores detectors and defences and writes defences.json; what is there is kept.

    Raises:
        ValueError: If an override is wrong.
    """
    study = override(Scoring(), overrides or {})
    file = directory / "defences.json"
    if file.exists() and not again:
        data = read_json(file)
        if isinstance(data, dict) and data.get("settings") == to_dict(study):
            return file, DefenceResult.from_dict(data)
    made = replace(score_all(study, progress=progress), provenance=_provenance("cpu"))
    write_json(file, made.to_dict())
    return file, made


BREWS: Mapping[str, Callable[..., Victim]] = {
    "small": small,
    "mnist14": mnist14,
    "published": published,
}
"""Scales of `brew`."""


def run_brewing(
    scale: str,
    structure: str,
    seeds: Sequence[int],
    directory: Path,
    overrides: Mapping[str, str] | None = None,
    *,
    data_dir: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[Path, BrewingResult]:
    """Brews poisons, trains every arm, and writes brewing_SCALE_STRUCTURE.json.

    Finished arms and groups of poisons lie in a folder beside it: a call that was killed goes on.

    Raises:
        ValueError: If scale, structure or an override is wrong, or the folder is of another study.
    """
    if scale not in BREWS:
        raise ValueError(unknown("scale", scale, BREWS))
    if structure not in get_args(Structure):
        raise ValueError(unknown("victim", structure, get_args(Structure)))
    victim = override(BREWS[scale](structure), overrides or {})
    placement = Placement(device=device)
    file = directory / f"brewing_{scale}_{structure}.json"
    made = brewing_study(
        victim,
        tuple(seeds),
        data_dir=data_dir,
        placement=placement,
        directory=directory / f"{file.stem}.parts",
        progress=progress,
    )
    made = replace(made, provenance=_provenance(placement.describe()))
    write_json(file, made.to_dict())
    return file, made


def run_audit(
    sequences: Path,
    directory: Path,
    overrides: Mapping[str, str] | None = None,
    *,
    array: str | None = None,
    progress: Progress | None = None,
) -> tuple[Path, AuditResult]:
    """Audits a file of sequences and writes audit_NAME.json.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the sequences are not usable, or an override is wrong.
    """
    how = override(Auditing(), overrides or {})
    made = audit(sequences, how, array=array, progress=progress)
    made = replace(made, provenance=_provenance("cpu"))
    file = directory / f"audit_{sequences.stem}.json"
    write_json(file, made.to_dict())
    return file, made


def _provenance(device: str) -> dict[str, Any]:
    return asdict(collect(seed=0, device=device))


def _there(file: Path, piece: Piece) -> PoisonResult | None:
    """The result in a file, if it is of the same settings."""
    if not file.exists():
        return None
    data = read_json(file)
    if not isinstance(data, dict) or data.get("settings") != to_dict(piece.settings):
        return None
    return PoisonResult.from_dict(data)
