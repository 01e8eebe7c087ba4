"""`digits_paper` and `digits_released` differ in the faults of the released code alone."""

from collections.abc import Iterator
from typing import Any

import pytest

from robustssm import recipes
from robustssm.core.config import override, to_dict
from robustssm.core.placement import Placement
from robustssm.core.rng import Streams
from robustssm.data.batches import batches
from robustssm.experiment import build_model, read_data
from robustssm.recipes.grids import BUGS, grid
from robustssm.training.loop import Learner, train_batch

EVERYWHERE = {
    "clip_norm": (1.0, None),
    "model.tokens": ("raster", "legacy_raster"),  # the same for images of one colour
    "monitor.attack": ("pgd", "pgd_released"),
}
BODY = {
    "model.block.activation": ("gelu", "none"),
    "model.block.mixing_activation": ("gelu", "none"),
}
MODELS = {
    "s4": BODY,
    "s4d": BODY,
    "dss": BODY,
    "s5": {},
    "mega": {"model.input_norm": (True, False)},
    "mamba": {"model.layer.discretization": ("zoh", "euler")},
}
SCALING = {
    "model.layer.scaling.form": ("scale", "scale_shift"),
    "model.layer.scaling.bias": (False, True),
}
WARMUP = {"objective.eps_warmup": (0.5, 0.0)}
OBJECTIVES = {
    "standard": {},
    "pgd": {**WARMUP, "objective.attack": ("pgd", "pgd_released")},
    "trades": {},
    "free": {**WARMUP, "objective.variant": ("paper", "released"), "epochs": (5, 20)},
    "yopo": {**WARMUP, "objective.variant": ("paper", "released")},
    "fast": WARMUP,
    "mart": WARMUP,
    "awp": {
        "objective.objective.eps_warmup": (0.5, 0.0),
        "objective.objective.attack": ("pgd", "pgd_released"),
    },
    "jacobian": {},
}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted settings; an attack or an order of tokens is one setting, by its name."""
    if isinstance(value, dict) and path.split(".")[-1] not in ("attack", "tokens"):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, value["name"] if isinstance(value, dict) else value


def differences(one: object, two: object) -> dict[str, tuple[Any, Any]]:
    a, b = dict(leaves(to_dict(one))), dict(leaves(to_dict(two)))
    return {k: (a.get(k), b.get(k)) for k in {*a, *b} if a.get(k) != b.get(k)}


@pytest.mark.parametrize("cell", recipes.cells("digits_paper"), ids=lambda cell: cell.name)
def test_the_tiers_differ_in_the_faults_alone(cell):
    paper = recipes.recipe(cell.name)
    released = recipes.recipe(cell.name.replace("digits_paper", "digits_released"))
    expected = {**EVERYWHERE, **MODELS[cell.structure], **OBJECTIVES[cell.method]}
    assert differences(paper, released) == {**expected, **(SCALING if cell.ads else {})}
    assert paper.attacks == released.attacks
    assert [a.label for a in paper.attacks] == ["pgd_released-10", "pgd-10", "pgd-50x2"]


def test_both_released_attacks_are_the_correct_ones_but_for_the_fault():
    released = recipes.recipe("digits_released.s4_pgd")
    paper = recipes.recipe("digits_paper.s4_pgd")
    for one, two in (
        (paper.objective.attack, released.objective.attack),
        (paper.monitor.attack, released.monitor.attack),
    ):
        assert (one.steps, one.step_size) == (two.steps, two.step_size)


def test_the_single_faults_add_up_to_the_released_code():
    """Every difference between the tiers is one of the single faults, and the other way round."""
    found = {}
    for cell, overrides in ((c, overrides) for cells, overrides in BUGS.values() for c in cells):
        paper = recipes.recipe(f"digits_paper.{cell}")
        changed = differences(paper, override(paper, overrides))
        whole = differences(paper, recipes.recipe(f"digits_released.{cell}"))
        assert changed and changed.items() <= whole.items()
        found.setdefault(cell, {}).update(changed)
    everything = {key: pair for changed in found.values() for key, pair in changed.items()}
    listed = {**EVERYWHERE, **SCALING}
    for part in (*MODELS.values(), *(OBJECTIVES[m] for m in ("pgd", "trades", "free", "yopo"))):
        listed |= part
    del listed["model.tokens"]
    assert everything == listed


def test_the_grid_of_faults_has_every_fault_beside_its_recipe():
    names = [entry.name for entry in grid("digits.bugs").entries]
    for bug, (cells, _) in BUGS.items():
        for cell in cells:
            assert {f"digits_paper.{cell}", f"digits_paper.{cell}+{bug}"} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("tier", ["digits", "digits_paper", "digits_released"])
@pytest.mark.parametrize("ads", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("structure", MODELS)
def test_adaptive_scaling_trains_on_every_structure(tier, ads, structure):
    recipe = recipes.recipe(f"{tier}.{structure}_ads_{ads}_pgd")
    assert after_one_step(recipe)["loss"] < 20


@pytest.mark.parametrize("name", recipes.CONTROLS)
def test_every_control_trains(name):
    if "digits" in recipes.CONTROLS[name].tiers:
        assert after_one_step(recipes.recipe(f"digits.{name}_trades"))["loss"] < 20


def after_one_step(experiment: Any) -> dict[str, float]:
    """What one step on four examples tells; the step changes every parameter finitely."""
    placement, streams = Placement("cpu"), Streams(0)
    splits = read_data(experiment, None)
    model = build_model(experiment, splits)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = placement.setup_optimizer(experiment.optimizer.build(model))
    learner = Learner(model=model, optimizer=optimizer, memory={})
    batch = next(iter(batches(splits.train, batch_size=4)))
    noise = streams.examples("train", 0, indices=batch.indices)
    scalars = train_batch(
        learner, experiment.objective.at(1.0), batch.x, batch.y, noise=noise, placement=placement
    )
    after = dict(model.named_parameters())
    assert all(p.isfinite().all() for p in after.values())
    assert any(not (after[name] == p).all() for name, p in before.items())
    return scalars
