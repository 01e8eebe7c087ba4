"""The first losses of every structure and method: a change that claims to move nothing moves none.

Rewrite them with: GOLDEN=write python -m pytest tests/golden
"""

import json
import os
from pathlib import Path

import pytest

from robustssm.core.config import override
from robustssm.core.placement import Placement
from robustssm.core.rng import Streams
from robustssm.data.batches import batches
from robustssm.experiment import build_model, read_data
from robustssm.recipes import STRUCTURES, recipe
from robustssm.training.loop import Learner, train_batch
from robustssm.training.optim import AdamW

METHODS = ("standard", "pgd", "trades")
STORED = Path(__file__).parent / "losses.json"
NAMES = [f"digits.{s}_{m}" for s in (*STRUCTURES, "s4_ads_relu") for m in METHODS]


def losses(name: str) -> list[float]:
    experiment = override(recipe(name), {"model.d_model": "8"})
    placement, streams = Placement("cpu"), Streams(experiment.seed)
    splits = read_data(experiment, None)
    model = build_model(experiment, splits)
    optimizer = placement.setup_optimizer(AdamW(lr=1e-3).build(model))
    learner = Learner(model=model, optimizer=optimizer, memory={})
    found = []
    for batch, _ in zip(batches(splits.train, batch_size=8), range(3), strict=False):
        noise = streams.examples("train", 0, indices=batch.indices)
        scalars = train_batch(
            learner, experiment.objective, batch.x, batch.y, noise=noise, placement=placement
        )
        found.append(scalars["loss"])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_first_losses_are_the_stored_ones(name):
    now = losses(name)
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    if os.environ.get("GOLDEN") == "write":
        STORED.write_text(json.dumps(stored | {name: now}, indent=1) + "\n")
        return
    # Other processors sum in another order; a change of method moves losses by far more.
    assert now == pytest.approx(stored[name], rel=1e-4)
