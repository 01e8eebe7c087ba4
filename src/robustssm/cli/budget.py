"""The options by which a run gets a budget of passes, and its epochs follow from that."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from robustssm.cli.options import out

Budget = Annotated[
    float | None,
    typer.Option(
        "--budget",
        help="Train as many epochs as so many forward/backward equivalents per training example "
        "pay for: standard training costs 1 an epoch, PGD training with k steps k + 1.",
    ),
]
EqualBudget = Annotated[
    str | None,
    typer.Option(
        "--equal-budget", metavar="RECIPE", help="A budget as high as what that recipe costs."
    ),
]


def with_epochs(
    recipe: str,
    changes: Mapping[str, str],
    *,
    budget: float | None,
    like: str | None,
    data_dir: Path | None = None,
) -> dict[str, str]:
    """The overrides, and among them the epochs that a budget pays for, if there is one; says so.

    Args:
        recipe: Name of the recipe.
        changes: Overrides of it.
        budget: Forward/backward equivalents per training example.
        like: Name of the recipe whose cost is the budget.
        data_dir: Where data files are looked for.

    Raises:
        ValueError: If there are two budgets, or epochs are set besides, or it pays for none.
        Inapplicable: If a training method does not state its cost.
    """
    if budget is None and like is None:
        return dict(changes)
    given = [f"--budget {budget:g}"] if budget is not None else []
    given += [f"--equal-budget {like}"] if like is not None else []
    given += [f"--set epochs={changes['epochs']}"] if "epochs" in changes else []
    if len(given) > 1:
        raise ValueError(
            "One thing must decide the number of epochs; got " + " and ".join(given) + ". Keep one."
        )
    from robustssm.core.config import override
    from robustssm.experiment.budget import budgeted, price
    from robustssm.recipes import recipe as make

    if like is not None:
        budget = price(make(like), data_dir=data_dir).total
    assert budget is not None
    experiment = override(make(recipe), changes)
    epochs = budgeted(experiment, budget, data_dir=data_dir)
    found = dict(changes) | {"epochs": str(epochs)}
    cost = price(override(experiment, {"epochs": str(epochs)}), data_dir=data_dir)
    out.print(
        f"budget {budget:g} passes per example{f' (that of {like})' if like else ''}: "
        f"epochs={epochs}, as one costs {cost.per_epoch:g} and all {cost.total:g}",
        highlight=False,
    )
    return found
