"""What the published tables say of sentences of the prose that no run is needed for.

Source: qi2024exploring, version 1, tables 1 and 2.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from robustssm.reporting import published
from robustssm.reporting.cells import signed
from robustssm.reporting.evidence import STANDARD, Printed
from robustssm.reporting.seeds import Word

CHECKPOINTS = ("best", "last")


@dataclass(frozen=True, kw_only=True)
class Check:
    """A sentence, what the tables give, and whether they agree."""

    text: str
    where: str
    prose: str
    tables: str
    word: Word


def checks() -> Iterator[Check]:
    """Every sentence that the tables alone decide."""
    yield _one_epoch()
    yield _relu()
    yield from _degradations()
    yield _twice()


def _one_epoch() -> Check:
    """One checkpoint, chosen by PGD-10, would have other columns below Last now and then."""
    gaps = [
        best - last
        for row in published.table()
        for metric in published.METRICS
        if (best := row.numbers[metric, "best"]) is not None
        and (last := row.numbers[metric, "last"]) is not None
    ]
    below = sum(gap < 0 for gap in gaps)
    return Check(
        text="Best is one checkpoint, the one of highest robust accuracy.",
        where="captions of tables 1 and 2",
        prose="Best minus Last below 0 now and then in clean accuracy or AutoAttack",
        tables=f"below 0 in {below} of {len(gaps)} columns: maxima over epochs, column by column",
        word="holds" if below else "fails",
    )


def _relu() -> Check:
    """The gain of ReLU for DSS under TRADES."""
    cifar = Printed("CIFAR-10")
    gains = {
        (metric, checkpoint): next(
            iter(
                cifar.part(
                    "",
                    [
                        (1, "DSS + AdS-ReLU", "TRADES", metric, checkpoint),
                        (-1, "DSS", "TRADES", metric, checkpoint),
                    ],
                )
            )
        ).mean
        for metric in ("clean", "pgd10")
        for checkpoint in CHECKPOINTS
    }
    prose = {"clean": 4.1, "pgd10": 3.97}
    same = [
        all(abs(gains[metric, checkpoint] - value) < 0.005 for metric, value in prose.items())
        for checkpoint in CHECKPOINTS
    ]
    said = "; ".join(
        f"{checkpoint} {gains['clean', checkpoint]:+.2f} and {gains['pgd10', checkpoint]:+.2f}"
        for checkpoint in CHECKPOINTS
    )
    return Check(
        text="ReLU raised DSS under TRADES by 4.1 points clean and 3.97 robust.",
        where="section 4.2, CIFAR-10",
        prose="+4.10 and +3.97",
        tables=said,
        word="holds" if any(same) else "fails",
    )


def _degradations() -> Iterator[Check]:
    """Losses of clean accuracy that the prose gives beside robust accuracies of Best."""
    cifar = Printed("CIFAR-10")

    def lost(structure: str, checkpoint: str) -> float:
        terms = [
            (1.0, structure, STANDARD, "clean", checkpoint),
            (-1.0, structure, "PGD-AT", "clean", checkpoint),
        ]
        return next(iter(cifar.part("", terms))).mean

    for text, prose, found in (
        ("S5 loses 16.62 points of clean accuracy under PGD-AT.", 16.62, ("S5", "")),
        ("Mega loses 4.21 points less than DSS under PGD-AT.", 4.21, ("DSS", "Mega")),
    ):
        first, second = found
        values = [lost(first, c) - (lost(second, c) if second else 0.0) for c in CHECKPOINTS]
        pairs = zip(CHECKPOINTS, values, strict=True)
        yield Check(
            text=f"{text} (beside robust accuracies of Best)",
            where="prose on table 1, CIFAR-10",
            prose=f"{prose:.2f} of Best",
            tables="; ".join(f"{checkpoint} {signed(v)} ({v:.2f})" for checkpoint, v in pairs),
            word="holds" if abs(values[0] - prose) < 0.005 else "fails",
        )


def _twice() -> Check:
    """Two rows with the same number to two decimals may be a slip of the pen."""
    numbers = [
        (row.dataset, row.structure, row.method, row.numbers["clean", "best"])
        for row in published.table()
        if row.dataset == "MNIST" and row.method == "PGD-AT" and row.structure.startswith("S4")
    ]
    equal = [
        (a, b)
        for at, a in enumerate(numbers)
        for b in numbers[at + 1 :]
        if a[3] == b[3] and a[3] is not None
    ]
    said = "; ".join(f"{a[1]} and {b[1]}: {a[3]}" for a, b in equal)
    return Check(
        text="Rows with and without AdS are different measurements.",
        where="tables 1 and 2, MNIST, PGD-AT",
        prose="different clean accuracies",
        tables=said or "none are equal",
        word="cannot tell" if equal else "holds",
    )
