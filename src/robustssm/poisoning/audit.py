"""Audits a user's own sequences: which examples look like poison, at which lags, how sure.

The file is read twice, in pieces. The first reading checks it, adds up how each lag is excited and
keeps an even sample; the second compares every sequence with that sample.
"""

import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Float64
from pydantic import Field

from robustssm.core.config import settings, to_dict
from robustssm.core.errors import violation
from robustssm.poisoning.audit_files import Source, source_of
from robustssm.poisoning.detectors import NORMAL_MAD, tail_energy
from robustssm.poisoning.excitation import amplitudes, lag_verdict, participation
from robustssm.records.audit import AuditResult, Finding, LagFinding

LAGS_SHOWN = 5
PIECES = 8
FLOOR = 0.01
"""The least spread of the share of energy at the end: less is rounding and measurement."""


@settings
class Auditing:
    """How a file is audited."""

    threshold: Annotated[float, Field(gt=0)] = 8.0
    """Robust z beyond which a sequence is flagged."""
    window: Annotated[int, Field(ge=1)] = 2
    """Positions at the end whose share of the energy is looked at."""
    rare: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """A lag that is exactly 0 in all but this share of the sequences has something to hide: what
    stands there has an infinite z. Only where every other lag is 0 throughout or excited by half of
    the sequences, and if no more than this share of them has any such entry: else zeros are the
    nature of the data, as at the margin of images."""
    keep: Annotated[int, Field(ge=1)] = 1000
    """Findings that are kept, the most suspicious ones."""
    sample: Annotated[int, Field(ge=10)] = 20_000
    """Sequences that medians and spreads are taken from, at most."""
    room: Annotated[int, Field(ge=1)] = 4_000_000
    """Numbers that the sample holds, at most; a piece of the file holds an eighth of that."""


def audit(
    sequences: np.ndarray | Path,
    how: Auditing | None = None,
    *,
    array: str | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> AuditResult:
    """Looks for sequences that excite what the others leave alone.

    A sequence is flagged by the share of its energy at the end, as the published poison is, or by
    an entry that is unusual among the same lag of the others, as a small one in an otherwise silent
    lag is. It cannot see an entry that is no larger than others of its lag.

    Args:
        sequences: An array (n, length) or (n, length, channels), or a .npy, .npz or .csv file.
        how: Thresholds and memory.
        array: Which array of an .npz.
        progress: Told the reading and, where that is known, the share of it that is done.

    Raises:
        ValueError: If the sequences are not usable; says which row and why.
        FileNotFoundError: If there is no such file.
    """
    how, started = how or Auditing(), time.perf_counter()
    source = source_of(sequences, array=array)
    survey = _survey(source, how, progress)
    scale = _calibrated(survey, how)
    flagged, findings = _search(source, survey, scale, how, progress)
    verdict = lag_verdict(
        n=survey.n,
        energy=survey.squares / survey.n,
        carried=participation(survey.squares, survey.fourths),
    )
    return AuditResult(
        source=source.name,
        settings=to_dict(how),
        sequences=survey.n,
        length=survey.length,
        channels=survey.channels,
        flagged=flagged,
        findings=findings,
        lags=tuple(
            LagFinding(
                lag=lag,
                energy=float(verdict.energy[lag]),
                nonzero=float(survey.nonzero[lag] / survey.n),
                carried_by=float(verdict.carried[lag]),
                flagged=bool(verdict.flagged[lag] or scale.silent[lag]),
            )
            for lag in range(survey.length)
        ),
        greedy=verdict.greedy,
        calibrated_on=len(scale.sorted_scores),
        remarks=_remarks(survey, flagged, verdict.greedy, how),
        wall_seconds=time.perf_counter() - started,
    )


@dataclass(eq=False)
class _Survey:
    """What the first reading adds up; arrays go by lag."""

    length: int
    channels: int
    limit: int
    n: int = 0
    stride: int = 1
    kept: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.squares, self.fourths, self.nonzero = np.zeros((3, self.length))

    def add(self, size: Float64[np.ndarray, "n lags"]) -> None:
        """Adds a piece; the sample takes every `stride`-th sequence of the file."""
        self.squares += (size**2).sum(axis=0)
        self.fourths += (size**4).sum(axis=0)
        self.nonzero += (size > 0).sum(axis=0)
        begin, self.n = self.n, self.n + len(size)
        while (place := len(self.kept) * self.stride - begin) < len(size):
            self.kept.append(size[place].copy())
            if len(self.kept) > self.limit:
                self.kept, self.stride = self.kept[::2], 2 * self.stride


def _survey(
    source: Source, how: Auditing, progress: Callable[[str, float], None] | None
) -> _Survey:
    survey: _Survey | None = None
    for piece in source.pieces(max(1, how.room // PIECES)):
        begin = 0 if survey is None else survey.n
        _check_finite(source.name, piece, begin)
        size = np.flip(amplitudes(piece), axis=1)
        if survey is None:
            length = piece.shape[1]
            if length <= max(2, how.window):
                raise ValueError(
                    violation(
                        f"The sequences of {source.name}",
                        f"be longer than {max(2, how.window)}, or no lag can be told from another",
                        length,
                    )
                )
            channels = piece.shape[2] if piece.ndim == 3 else 1
            limit = max(10, min(how.sample, how.room // length))
            survey = _Survey(length, channels, limit)
        survey.add(size)
        if progress is not None:
            progress("first reading", survey.n)
    if survey is None or survey.n < 2:
        raise ValueError(
            violation(
                source.name,
                "hold at least two sequences, as one cannot be told from the others",
                survey.n if survey else "none",
                "Give one sequence per row.",
            )
        )
    return survey


def _check_finite(name: str, piece: np.ndarray, begin: int) -> None:
    if np.isfinite(piece).all():
        return
    row, place, *_ = (int(i) for i in np.argwhere(~np.isfinite(piece))[0])
    raise ValueError(
        violation(
            name,
            "hold finite numbers",
            f"{piece[row, place]} at position {place + 1} of sequence {begin + row + 1}",
            "Leave that sequence out, or fill the gap.",
        )
    )


@dataclass(frozen=True, eq=False)
class _Scale:
    """What is usual, from the sample."""

    median: np.ndarray
    spread: np.ndarray
    silent: np.ndarray
    """Lags at which anything at all is suspicious."""
    tail: tuple[float, float]
    sorted_scores: np.ndarray

    def lag_z(self, size: Float64[np.ndarray, "n lags"]) -> Float64[np.ndarray, "n lags"]:
        """Robust z of every entry."""
        with np.errstate(invalid="ignore", divide="ignore"):
            z = np.where(self.spread > 0, (size - self.median) / self.spread, 0.0)
        return np.where(self.silent & (size > 0), np.inf, np.where(size > 0, z, 0.0))

    def tail_z(self, share: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """Robust z of the share of energy at the end."""
        return (share - self.tail[0]) / self.tail[1]


def _calibrated(survey: _Survey, how: Auditing) -> _Scale:
    size = np.array(survey.kept)
    median, spread = np.zeros(survey.length), np.zeros(survey.length)
    for lag in range(survey.length):
        values = size[:, lag][size[:, lag] > 0]  # silence is a matter of `silent`
        if len(values) > 1:
            median[lag] = np.median(values)
            spread[lag] = NORMAL_MAD * np.median(np.abs(values - median[lag]))
    present = survey.nonzero / survey.n
    silent = (present > 0) & (present <= how.rare)
    graded = bool(((present > how.rare) & (present < 0.5)).any()) or present.max() < 0.5
    if graded or (size[:, silent] > 0).any(axis=1).mean() > how.rare:
        silent = np.zeros_like(silent)
    share = _tail(size, how.window)
    centre = float(np.median(share))
    width = max(FLOOR, NORMAL_MAD * float(np.median(np.abs(share - centre))))
    scale = _Scale(median, spread, silent, (centre, width), np.zeros(0))
    scores = np.sort(np.maximum(scale.tail_z(share), scale.lag_z(size).max(axis=1)))
    return _Scale(median, spread, silent, (centre, width), scores)


def _tail(size: Float64[np.ndarray, "n lags"], window: int) -> Float64[np.ndarray, " n"]:
    return tail_energy(np.flip(size, axis=1), window=window)


def _search(
    source: Source,
    survey: _Survey,
    scale: _Scale,
    how: Auditing,
    progress: Callable[[str, float], None] | None,
) -> tuple[int, tuple[Finding, ...]]:
    """How many are flagged, and the most suspicious of them."""
    heap: list[tuple[float, int, Finding]] = []
    flagged = begin = 0
    for piece in source.pieces(max(1, how.room // PIECES)):
        size = np.flip(amplitudes(piece), axis=1)
        for finding in _found(size, begin, scale, how):
            flagged += 1
            entry = (finding.score, -finding.index, finding)
            (heapq.heappush if len(heap) < how.keep else heapq.heappushpop)(heap, entry)
        begin += len(piece)
        if progress is not None:
            progress("second reading", begin / survey.n)
    return flagged, tuple(entry[2] for entry in sorted(heap, key=lambda e: (-e[0], -e[1])))


def _found(
    size: Float64[np.ndarray, "n lags"], begin: int, scale: _Scale, how: Auditing
) -> Iterator[Finding]:
    by_lag, by_tail = scale.lag_z(size), scale.tail_z(_tail(size, how.window))
    score = np.maximum(by_tail, by_lag.max(axis=1))
    for row in np.flatnonzero(score > how.threshold):
        order = np.argsort(-by_lag[row], kind="stable")[:LAGS_SHOWN]
        lags = [int(m) for m in order if by_lag[row, m] > how.threshold]
        if not lags:
            lags = [int(m) for m in np.argsort(-size[row, : how.window], kind="stable")][:1]
        below = np.searchsorted(scale.sorted_scores, score[row], side="left")
        count = len(scale.sorted_scores)
        yield Finding(
            index=begin + int(row),
            score=float(score[row]),
            tail_z=float(by_tail[row]),
            lag_z=float(by_lag[row].max()),
            lags=tuple(lags),
            share=float((1 + count - below) / (1 + count)),
        )


def _remarks(survey: _Survey, flagged: int, greedy: bool, how: Auditing) -> tuple[str, ...]:
    found = [
        "Being unusual is not being poison: on clean data of your own kind, expect some findings.",
        "An entry no larger than others of its lag cannot be found by this audit.",
    ]
    if greedy and flagged == 0:
        found.append("No sequence excites lag 1: a single late entry, however small, would matter.")
    if flagged > how.keep:
        found.append(f"Of {flagged} findings the {how.keep} most suspicious are listed.")
    if survey.n < 20:
        found.append("Fewer than 20 sequences: medians and spreads say little.")
    return tuple(found)
