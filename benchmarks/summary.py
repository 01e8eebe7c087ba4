"""The short tables of `docs/results.md`, from results/: python -m benchmarks.summary --write

The report has every number with its interval; these have means and standard deviations only.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev

from robustssm.reporting.cells import CLEAN, Group, flags, groups
from robustssm.reporting.controls import pairs as controls
from robustssm.reporting.effects import both, single
from robustssm.reporting.evidence import tiers
from robustssm.reporting.load import load
from robustssm.reporting.verdicts import same_examples

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
RESULTS = ROOT / "results"
_BLOCK = re.compile(r"(<!-- (\w+): .*? -->\n).*?(<!-- end -->)", re.DOTALL)
_PAIRS = {"released": both, "bugs": single, "controls": controls}
_ATTACKS = {
    "pgd_released-10": "released PGD-10",
    "pgd-10": "PGD-10",
    "pgd-50x2": "PGD-50x2",
    "autoattack_standard": "AutoAttack",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    parsed = parser.parse_args(argv)
    page = PAGE.read_text()
    written = filled(page)
    if parsed.write:
        PAGE.write_text(written)
    elif written != page:
        sys.exit(f"{PAGE.relative_to(ROOT)} does not say what results/ holds; give --write.")


def filled(page: str) -> str:
    """The page with every table made again: what lies between its marks and the next end mark."""

    def table(found: re.Match[str]) -> str:
        lines = {"cells": _cells, "effects": _effects}[found[2]]
        source = re.search(r": (\S+)(.*?) -->", found[1])
        assert source
        made = lines(_groups(source[1]), source[2].split())
        return found[1] + "\n" + "\n".join(made) + "\n\n" + found[3]

    return _BLOCK.sub(table, page)


def _groups(source: str) -> tuple[Group, ...]:
    return groups(load([RESULTS / part for part in source.split(",")]).finished)


def _cells(members: Sequence[Group], _: Sequence[str]) -> Iterator[str]:
    """One line per structure and training method; "best - last" is the first attack's."""
    keys = [key for key in _ATTACKS if any(_values(group, key) for group in members)]
    names = ["structure", "training", "runs", "clean", *(_ATTACKS[k] for k in keys), "best - last"]
    yield from _header(names, left=2)
    for group in members:
        last = _best_minus_last(group, keys[0])
        numbers = [_spread(_values(group, key)) for key in (CLEAN, *keys)]
        line = [group.structure, group.method, str(len(group.runs)), *numbers, _spread(last, "+")]
        yield _line(line)


def _effects(members: Sequence[Group], which: Sequence[str]) -> Iterator[str]:
    """One line per cell that was run in two ways: the first, and what the second adds."""
    pairs = list(_PAIRS[which[0]](tiers(members)))
    first = "compared with" if which == ["controls"] else "paper"
    keys = [CLEAN, *(key for key in _ATTACKS if any(_values(p.before, key) for p in pairs))]
    names = [_ATTACKS.get(key, key) for key in keys]
    yield from _header(
        ["cell", *(f"{n}: {first}" for n in names), *(f"{n}: change" for n in names)], left=1
    )
    for pair in pairs:
        before = [_spread(_values(pair.before, key)) for key in keys]
        change = [_spread(_changes(pair.before, pair.after, key), "+") for key in keys]
        yield _line([pair.label, *before, *change])


def _values(group: Group, key: str) -> list[float]:
    found = (flags(run.checkpoints["best"], key) for run in group.runs)
    return [100 * sum(row) / len(row) for row in found if row]


def _best_minus_last(group: Group, key: str) -> list[float]:
    made = []
    for run in group.runs:
        best, last = (flags(run.checkpoints[name], key) for name in ("best", "last"))
        if best and last:
            made.append(100 * (sum(best) - sum(last)) / len(best))
    return made


def _changes(before: Group, after: Group, key: str) -> list[float]:
    """Seed by seed, of seeds that both have."""
    of = {run.seed: run for run in before.runs}
    made = []
    for run in after.runs:
        other = of.get(run.seed)
        if other is None:
            continue
        new, old = run.checkpoints["best"], other.checkpoints["best"]
        right, was_right = flags(new, key), flags(old, key)
        if right and was_right and same_examples(new.result, old.result):
            made.append(100 * (sum(right) - sum(was_right)) / len(right))
    return made


def _spread(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return ""
    said = f"{mean(values):{sign}.1f}".replace("-", "\N{MINUS SIGN}")
    return f"{said} ± {stdev(values):.1f}" if len(values) > 1 else said


def _header(names: Sequence[str], *, left: int) -> Iterator[str]:
    yield _line(names)
    yield "|" + "|".join("---" if i < left else "--:" for i in range(len(names))) + "|"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
