"""The published records are those of today's recipes, whole, and what the pages say of them."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import summary
from robustssm.core.config import override, to_dict
from robustssm.experiment.rundir import completed, differences
from robustssm.poisoning.brewing_differences import differences as between_arms
from robustssm.recipes import recipe
from robustssm.recipes.grids import grid
from robustssm.records.brewing import BrewingResult
from robustssm.reporting.load import load

RESULTS = summary.RESULTS
RUNS = sorted(path.parent for path in RESULTS.rglob("recipe.json"))


def read(run: Path, name: str) -> dict:
    return json.loads((run / name).read_text())


@pytest.mark.parametrize("tier", sorted({run.parts[len(RESULTS.parts)] for run in RUNS}))
def test_every_record_is_of_the_recipe_as_it_is_now(tier: str) -> None:
    changed = []
    for run in (run for run in RUNS if run.is_relative_to(RESULTS / tier)):
        record = read(run, "recipe.json")
        overrides = {key: value for key, value in record["overrides"].items() if key != "seed"}
        wanted = to_dict(override(recipe(record["recipe"]), overrides))
        wanted["seed"] = record["experiment"]["seed"]
        found = completed(record["experiment"], wanted)
        changed += [f"{run.relative_to(RESULTS)}: {at}" for at in differences(found, wanted)]
    assert not changed, "run these again, or say in results/README.md why they stay"


@pytest.mark.parametrize(
    ("grids", "place", "seeds", "attacked"),
    [
        (("digits.table1", "digits.table2"), "digits", 3, 300),
        (("digits.controls",), "controls", 3, 300),  # what they are compared with is in digits
        (("digits.released", "digits.bugs"), "released", 3, 300),
        (("mnist14.table",), "mnist14", 1, 200),
    ],
)
def test_the_grids_are_whole(grids: tuple[str, ...], place: str, seeds: int, attacked: int) -> None:
    entries = {entry.name: entry for name in grids for entry in grid(name).entries}
    for name, entry in entries.items():
        whole = to_dict(override(recipe(entry.recipe), entry.overrides))
        for seed in range(seeds):
            there = RESULTS / place / name
            run = (there if there.exists() else RESULTS / "digits" / name) / f"seed_{seed}"
            wanted = whole | {"seed": seed}
            made = completed(read(run, "recipe.json")["experiment"], wanted)
            assert not differences(made, wanted), (name, seed)
            found = read(run, "evaluation.json")
            assert found["n"] == attacked, (name, seed)
            assert place == "released" or "autoattack_standard" in found["attacks"], (name, seed)


def test_every_poisoning_study_can_be_read() -> None:
    found = load([RESULTS / "poison"])
    assert len(found.studies) == len(list((RESULTS / "poison").glob("*.json"))) == 29
    assert not found.damaged


@pytest.mark.parametrize("model", ["lru", "mamba2", "s4d"])
def test_differences_between_arms_are_those_of_the_arms(model: str) -> None:
    (study,) = load([RESULTS / "poison" / f"brewing_small_{model}.json"]).studies
    assert isinstance(study.result, BrewingResult)  # whose arms have rounded accuracies
    made = between_arms(study.result.arms)
    assert len(made) == len(study.result.differences)
    for one, other in zip(made, study.result.differences, strict=True):
        assert (one.control, one.measure) == (other.control, other.measure)
        assert one.matched_seeds == other.matched_seeds
        assert one.differences == pytest.approx(other.differences, abs=2e-7)
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=2e-7)


def test_the_page_says_what_the_records_hold() -> None:
    page = summary.PAGE.read_text()
    assert summary.filled(page) == page, "make page"


def test_nothing_published_names_a_place() -> None:
    files = [*RESULTS.rglob("*.json"), summary.PAGE.with_name("report.html")]
    places = re.compile(r"[\s\"'=](/(?:home|tmp|work|root|Users)/[\w.-]+)")
    assert not [
        f"{file.name}: {found[1]}" for file in files if (found := places.search(file.read_text()))
    ]
