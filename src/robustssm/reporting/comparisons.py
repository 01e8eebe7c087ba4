"""The comparisons of cells that decide claims on trained models.

Source: qi2024exploring, version 1.
"""

from collections.abc import Callable, Iterator

from robustssm.reporting.evidence import FIXED, STANDARD, Measured, Source, Term
from robustssm.reporting.seeds import Part

BOTH = ("PGD-AT", "TRADES")
RO_POINTS = 1.0
"""Best minus last below which a model is said to be without robust overfitting, in points."""
MASKED_POINTS = 5.0
"""PGD-10 minus AutoAttack beyond which PGD-10 is said to mislead, in points."""
TINY = 1e-9
"""Share of channels above which a bound is false somewhere, in percent."""
Metric = str


def gain(metric: Metric, sign: int, *, pgd: bool = False) -> Callable[[Source], Iterator[Part]]:
    """Adversarial minus standard training, for every structure."""

    def parts(source: Source) -> Iterator[Part]:
        for structure in source.plain():
            for method in source.methods():
                terms: list[Term] = [
                    (1, structure, method, metric, "best"),
                    (-1, structure, STANDARD, metric, "best"),
                ]
                yield from source.part(f"{structure}, {method}", terms, sign=sign)

    return parts


def against(
    one: str,
    metric: Metric,
    *,
    sign: int,
    others: tuple[str, ...] | None = None,
    methods: tuple[str, ...] = BOTH,
) -> Callable[[Source], Iterator[Part]]:
    """A structure minus every other, under every method."""

    def parts(source: Source) -> Iterator[Part]:
        for method in (m for m in source.methods(robust=False) if m in methods):
            for other in source.plain():
                if other != one and (others is None or other in others):
                    terms: list[Term] = [
                        (1, one, method, metric, "best"),
                        (-1, other, method, metric, "best"),
                    ]
                    yield from source.part(f"{one} minus {other}, {method}", terms, sign=sign)

    return parts


def gain_against(one: str, others: tuple[str, ...]) -> Callable[[Source], Iterator[Part]]:
    """By how much more one structure gains from adversarial training than others."""

    def parts(source: Source) -> Iterator[Part]:
        for method in (m for m in source.methods() if m in BOTH):
            for other in (s for s in source.plain() if s in others):
                terms: list[Term] = [
                    (1, one, method, "pgd10", "best"),
                    (-1, one, STANDARD, "pgd10", "best"),
                    (-1, other, method, "pgd10", "best"),
                    (1, other, STANDARD, "pgd10", "best"),
                ]
                yield from source.part(f"{one} minus {other}, {method}", terms)

    return parts


def _lost(source: Source, structure: str, method: str, factor: float = 1.0) -> list[Term]:
    """Best minus last under PGD-10."""
    return [
        (factor, structure, method, "pgd10", "best"),
        (-factor, structure, method, "pgd10", "last"),
    ]


def attention_overfits(source: Source) -> Iterator[Part]:
    """By how much more Mega loses after its best checkpoint than fixed structures."""
    for method in (m for m in source.methods() if m in BOTH):
        for other in (s for s in source.plain() if s in FIXED):
            terms = [*_lost(source, "Mega", method), *_lost(source, other, method, -1.0)]
            yield from source.part(f"Mega minus {other}, {method}", terms)


def scaled(metric: Metric, beyond: float) -> Callable[[Source], Iterator[Part]]:
    """With adaptive scaling minus without, for every activation, structure and method."""

    def parts(source: Source) -> Iterator[Part]:
        for structure, plain in source.scaled():
            for method in (m for m in source.methods() if m in BOTH):
                terms: list[Term] = [
                    (1, structure, method, metric, "best"),
                    (-1, plain, method, metric, "best"),
                ]
                yield from source.part(f"{structure}, {method}", terms, beyond=beyond)

    return parts


def scaled_keeps(source: Source) -> Iterator[Part]:
    """What models with adaptive scaling lose after their best checkpoint."""
    for structure, _ in source.scaled():
        for method in (m for m in source.methods() if m in BOTH):
            terms = _lost(source, structure, method)
            label = f"{structure}, {method}"
            yield from source.part(label, terms, beyond=RO_POINTS, sign=-1)


def watched(source: Source) -> Iterator[Part]:
    """Adversarial minus clean accuracy of what training watched under PGD-AT, last epoch."""
    for structure, method in source.cells():
        if method == "PGD-AT":
            yield from source.part(
                f"{structure}, {method}", [(1, structure, method, "watched", "last")]
            )


def unmasked(source: Source) -> Iterator[Part]:
    """PGD-10 minus AutoAttack under TRADES."""
    for structure, method in source.cells():
        if method == "TRADES":
            terms: list[Term] = [
                (1, structure, method, "pgd10", "best"),
                (-1, structure, method, "aa", "best"),
            ]
            yield from source.part(f"{structure}, {method}", terms, beyond=MASKED_POINTS, sign=-1)


def natural(metric: Metric) -> Callable[[Source], Iterator[Part]]:
    """Mamba and Mega minus fixed structures after standard training."""

    def parts(source: Source) -> Iterator[Part]:
        for one in ("Mamba", "Mega"):
            of = against(one, metric, sign=1, others=FIXED, methods=(STANDARD,))
            yield from of(source)

    return parts


def shift(component: str, sign: int) -> Callable[[Source], Iterator[Part]]:
    """Relative change of MSE and KL across a component, for every model that has it."""

    def parts(source: Source) -> Iterator[Part]:
        for structure, method in source.cells() if isinstance(source, Measured) else ():
            for quantity, name in (("kl_change", "KL"), ("mse_change", "MSE")):
                if method in BOTH:
                    metric = f"probe.{component}.{quantity}"
                    label = f"{structure}, {method}, {name}"
                    terms: list[Term] = [(1, structure, method, metric, "best")]
                    yield from source.part(label, terms, sign=sign)

    return parts


def louder(source: Source) -> Iterator[Part]:
    """Natural logarithm of Mamba's amplification of errors over that of fixed structures."""
    for method in source.methods(robust=False):
        for other in (s for s in source.plain() if s in FIXED):
            terms: list[Term] = [
                (1, "Mamba", method, "amplification", "best"),
                (-1, other, method, "amplification", "best"),
            ]
            yield from source.part(f"Mamba over {other}, {method}", terms)


def false_bounds(side: str) -> Callable[[Source], Iterator[Part]]:
    """Largest share of channels of any run for which the printed bound is false."""

    def parts(source: Source) -> Iterator[Part]:
        for structure, method in source.cells():
            shares = source.values(structure, method, f"false.printed_{side}_false", "best")
            if shares:
                yield Part(
                    label=f"{structure}, {method}",
                    values=(max(shares.values()),),
                    beyond=TINY,
                    sign=-1,
                    certain=True,
                )

    return parts


def forty(source: Source) -> Iterator[Part]:
    """The change across Mamba's SSM under TRADES, against fortyfold."""
    for name, quantity in (("KL", "kl_change"), ("MSE", "mse_change")):
        terms: list[Term] = [(1, "Mamba", "TRADES", f"probe.ssm.{quantity}", "best")]
        yield from source.part(f"Mamba, TRADES, {name}", terms, beyond=4000.0)
