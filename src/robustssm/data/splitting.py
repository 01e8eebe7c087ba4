"""Who goes into which split: stratified, reproducible choices."""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from robustssm.core.errors import violation
from robustssm.core.rng import Noise
from robustssm.data.base import Split, Splits


def stratified(
    y: Int[Tensor, " n"], count: int, noise: Noise
) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " rest"]]:
    """Chooses `count` rows at random, with the classes in the proportions of `y`.

    Args:
        y: Classes, (n,), not negative.
        count: Rows to choose, 0 to n. Class c gives count * n_c / n of them, rounded down or up so
            that the sum is right (largest remainders first).
        noise: Source of the choice.

    Returns:
        Rows chosen, (count,), and the others, (n - count,), each in a random order.
    """
    order = noise.permutation(len(y))
    grouped = order[torch.argsort(y[order], stable=True)]
    sizes = torch.bincount(y)
    first = sizes.cumsum(0) - sizes
    rank = torch.arange(len(y)) - first[y[grouped]]
    chosen = torch.zeros(len(y), dtype=torch.bool)
    chosen[grouped] = rank < _quotas(sizes, count)[y[grouped]]
    return order[chosen[order]], order[~chosen[order]]


def split_off_validation(
    subject: str,
    training: Split,
    test: Split,
    *,
    validation: int,
    train_limit: int | None,
    noise: Noise,
    num_classes: int,
    bounds: tuple[float, float],
    origin: Mapping[str, object],
) -> Splits:
    """Makes the splits of a data set from its training and test data.

    Validation is a stratified choice from the training data; the others train, in the order of the
    files. `train_limit` keeps the first so many of them in a shuffled order, so that a larger limit
    keeps the examples of a smaller one, and validation does not depend on it.

    Args:
        subject: The data set's class, for messages.
        training: All training data, rows as in the files.
        test: The test data.
        validation: Number of validation examples.
        train_limit: Number of training examples, or None for all that are left.
        noise: Source of the choice.
        num_classes: Number of classes.
        bounds: Range of the inputs as floats.
        origin: What the data set knows of its origin; `examples` and remarks are added.

    Raises:
        ValueError: If the data are not fit for use, or there are too few for these settings.
    """
    for split, name in ((training, "training"), (test, "test")):
        split.check(
            f"the {name} data of `{subject}`",
            num_classes=num_classes,
            shape=tuple(training.x.shape[1:]),
            bounds=bounds,
        )
    left = len(training) - validation
    if left < 1:
        raise ValueError(
            violation(
                f"`{subject}(validation=...)`",
                f"leave examples to train on: less than the {len(training)} there are",
                validation,
            )
        )
    if train_limit is not None and train_limit > left:
        raise ValueError(
            violation(
                f"`{subject}(train_limit=...)`",
                f"be at most the {left} examples left beside {validation} for validation",
                train_limit,
                "Leave it out to train on all of them.",
            )
        )
    chosen, rest = stratified(training.y, validation, noise.fork("validation"))
    splits = {
        "train": training.take(rest[:train_limit].sort().values),
        "validation": training.take(chosen.sort().values),
        "test": test,
    }
    remarks = [*origin.get("remarks", ())]  # pyright: ignore[reportGeneralTypeIssues]
    if train_limit is not None:
        remarks.append(f"Trains on a random {train_limit} of {left} examples (train_limit).")
    return Splits(
        **splits,
        num_classes=num_classes,
        shape=tuple(training.x.shape[1:]),
        bounds=bounds,
        origin={
            **origin,
            "examples": {name: len(split) for name, split in splits.items()},
            "remarks": remarks,
        },
    )


def _quotas(sizes: Int[Tensor, " classes"], total: int) -> Int[Tensor, " classes"]:
    """Shares of `total` in proportion to `sizes`, by largest remainder, in exact arithmetic."""
    n = int(sizes.sum())
    assert 0 <= total <= n, "a choice cannot be larger than what it is made from"
    quotas, remainders = sizes * total // n, sizes * total % n
    largest = torch.argsort(remainders, descending=True, stable=True)
    quotas[largest[: total - int(quotas.sum())]] += 1
    return quotas
