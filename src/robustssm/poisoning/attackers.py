"""Who poisons in the scoring of detectors and defences, and in which setting."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float64

from robustssm.core.rng import Noise
from robustssm.poisoning.linear_study import Beyond, Maker
from robustssm.poisoning.sequences import Sequences, ordinary, special

ATTACKS: Mapping[str, str] = {
    "none": "as many more ordinary sequences, all clean",
    "published": "special sequences, with an entry at the last position but one alone",
    "stealthy": "ordinary sequences with a small entry there, signed like their label",
    "stealthy in noise": "the same where every entry of every sequence has noise of that size",
    "noise": "as many more ordinary sequences, and that noise on every entry, all clean",
    "hidden": "ordinary sequences with an entry there as large as the others",
}
"""Name to what the attacker adds to the ordinary sequences; "none" and "noise" add no poison."""


def attacker_makers(study: Beyond, *, stealthy: float, hidden: float) -> dict[str, Maker]:
    """Attack to the training sequences it leads to; "clean" is without any addition.

    Args:
        study: Setting; its ordinary sequences are shared by all.
        stealthy: The small late entry.
        hidden: The large one.
    """
    clean = study.makers()["ordinary"]

    def more(noise: Noise) -> Sequences:
        return ordinary(
            study.extra_count,
            length=study.length,
            support=study.support,
            noise=noise.fork("placebo"),
        )

    def poison(noise: Noise) -> Sequences:
        return special(study.extra_count, length=study.length, noise=noise.fork("special"))

    return assembled(clean, more, poison, stealthy=stealthy, hidden=hidden)


def theory_makers(
    length: int, *, ordinary_count: int, extra_count: int, stealthy: float
) -> dict[str, Maker]:
    """The same in the theorem's setting: ordinary sequences are multiples of one.

    Noise on every entry is not there: the flow then waits too long for its training loss.
    """

    def clean(noise: Noise) -> Sequences:
        return ordinary(ordinary_count, length=length, support=(1,), noise=noise.fork("ordinary"))

    def more(noise: Noise) -> Sequences:
        return ordinary(extra_count, length=length, support=(1,), noise=noise.fork("placebo"))

    def poison(noise: Noise) -> Sequences:
        made = special(extra_count, length=length, noise=noise.fork("special"))
        x = made.x.copy()
        x[:, length - 2] = 1.0
        return Sequences(x=x, support=made.support, is_special=made.is_special)

    made = assembled(clean, more, poison, stealthy=stealthy, hidden=1.0)
    del made["stealthy in noise"], made["noise"]
    return made


def assembled(
    clean: Maker, more: Maker, poison: Maker, *, stealthy: float, hidden: float
) -> dict[str, Maker]:
    """Every attack on one clean set, from its parts."""

    def noisy(noise: Noise) -> Sequences:
        return jittered(clean(noise) + concealed(more(noise), stealthy), stealthy, noise)

    return {
        "clean": clean,
        "none": lambda n: clean(n) + more(n),
        "published": lambda n: clean(n) + poison(n),
        "stealthy": lambda n: clean(n) + concealed(more(n), stealthy),
        "stealthy in noise": noisy,
        "noise": lambda n: jittered(clean(n) + more(n), stealthy, n),
        "hidden": lambda n: clean(n) + concealed(more(n), hidden),
    }


def concealed(ordinary_ones: Sequences, value: float) -> Sequences:
    """With a late entry of this size in each sequence, at the last position but one.

    Its sign is that of the sum of the sequence, which is the label of a teacher that responds 1 at
    every lag, so that all pushes of gamma_0 add up.
    """
    x, support = ordinary_ones.x.copy(), ordinary_ones.support.copy()
    x[:, -2] = value * np.where(x.sum(axis=1) < 0, -1.0, 1.0)
    support[:, -2] = True
    return Sequences(x=x, support=support, is_special=np.ones(len(x), dtype=bool))


def jittered(sequences: Sequences, size: float, noise: Noise) -> Sequences:
    """With N(0, size) noise on every entry."""
    drawn: Float64[np.ndarray, "n length"] = (
        noise.fork("jitter").normal(*sequences.x.shape, std=size, dtype=torch.float64).numpy()
    )
    return Sequences(
        x=sequences.x + drawn,
        support=np.ones_like(sequences.support),
        is_special=sequences.is_special,
    )
