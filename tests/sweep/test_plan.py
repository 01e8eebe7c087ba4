"""Grids, names, patterns and files become runs with directories; what is wrong is listed."""

from pathlib import Path

import pytest

from robustssm.core.config import override
from robustssm.recipes import names, recipe
from robustssm.recipes.grids import Entry, Grid, grid
from robustssm.sweep import Job, Setup, find, lay_out

OUT = Path("runs")


def test_every_cell_with_the_first_seed_comes_before_any_with_the_second():
    plan = lay_out(["digits.s4_pgd", "digits.s5_pgd"], seeds=[7, 3], out=OUT)
    order = [(job.name, job.seed) for job in plan.jobs]
    assert order == [(n, s) for s in (7, 3) for n in ("digits.s4_pgd", "digits.s5_pgd")]
    assert plan.jobs[0].directory == OUT / "digits.s4_pgd" / "seed_7"
    assert plan.jobs[0].overrides == {"seed": "7"}
    assert not plan.problems


def test_a_cell_that_two_grids_share_is_run_once():
    shared = {e.name for e in grid("digits.table1").entries}
    shared &= {e.name for e in grid("digits.table2").entries}
    assert shared
    both = lay_out(["digits.table1", "digits.table2"], seeds=[0], out=OUT)
    assert not both.problems
    directories = [job.directory for job in both.jobs]
    assert len(set(directories)) == len(directories)
    cells = len(grid("digits.table1").entries) + len(grid("digits.table2").entries)
    assert len(directories) == cells - len(shared)


def test_cells_of_one_name_and_other_settings_are_named():
    plan = lay_out(["digits.table1", "digits.s4_pgd"], seeds=[0], out=OUT)
    (problem,) = plan.problems
    assert "digits.s4_pgd" in problem and "dataset.test: 300 and not set" in problem


def test_an_override_that_makes_them_alike_makes_them_one():
    changes = dict(grid("digits.table1").entries[0].overrides)
    plan = lay_out(["digits.table1", "digits.s4_pgd"], seeds=[0], out=OUT, overrides=changes)
    assert not plan.problems
    assert len(plan.jobs) == len(grid("digits.table1").entries)


def test_patterns_are_of_recipes():
    wanted = [n for n in names("digits") if n.startswith("digits.dss") and n.endswith("_pgd")]
    assert [e.recipe for e in find("digits.dss*_pgd").entries] == wanted
    assert len(wanted) >= 4


def test_all_that_is_wrong_with_a_request_is_listed():
    plan = lay_out(
        ["digits.tabel1", "digits.s4_pdg", "x.*", "no.toml"],
        seeds=[],
        out=OUT,
        overrides={"seed": "3"},
    )
    text = "\n".join(plan.problems)
    for part in ("'digits.table1'?", "'digits.s4_pgd'?", "fits 'x.*'", "no.toml", "`seeds`"):
        assert part in text
    assert "--seeds 3" in text
    assert len(plan.problems) == 6


def test_a_file_varies_settings(tmp_path):
    path = tmp_path / "width.toml"
    path.write_text(
        'title = "Width"\nrecipes = ["digits.s4_pgd", "digits.s4_ads_*_pgd"]\n'
        '[overrides]\nepochs = 3\nmodel.layer = {name = "s5", d_state = 8}\n'
        '[vary]\n"model.d_model" = [8, 16]\nthreat.eps = [0.05, 0.1]\n'
        'augmentation = ["a b", "c/d"]\n'
    )
    found = find(str(path))
    assert (found.name, found.title) == ("width", "Width")
    scaled = find("digits.s4_ads_*_pgd").entries
    assert len(found.entries) == (1 + len(scaled)) * 8
    first = found.entries[0]
    assert first.name == "digits.s4_pgd+d_model=8+eps=0.05+augmentation=a-b"
    assert first.overrides["threat.eps"] == "0.05" and first.overrides["epochs"] == "3"
    assert len({e.name for e in found.entries}) == len(found.entries)
    keys = {k: v for k, v in first.overrides.items() if k != "augmentation"}
    made = override(recipe(first.recipe), keys)
    assert (made.epochs, made.threat.eps, made.model.d_model) == (3, 0.05, 8)
    assert made.model.layer.name == "s5" and made.model.layer.d_state == 8


def test_what_has_no_short_name_is_numbered(tmp_path):
    path = tmp_path / "attacks.toml"
    path.write_text(
        'recipes = ["digits.s4_pgd"]\n[vary]\n'
        'attacks = [[{name="fgsm"}], [{name="pgd", steps=2}]]\n'
    )
    labels = [e.label for e in find(str(path)).entries]
    assert labels == ["attacks=0", "attacks=1"]
    steps = override(recipe("digits.s4_pgd"), find(str(path)).entries[1].overrides).attacks[0]
    assert steps.label.startswith("pgd-2")


@pytest.mark.parametrize(
    "text, parts",
    [
        ("recipes = 3\nvary = 4\nrecipe = []", ("'recipe'", "`recipes`", "`vary`")),
        ('recipes = ["digits.s9*"]\n[vary]\nepochs = 3', ("digits.s9*", "`vary.epochs`")),
        ("recipes = [", ("be a TOML file",)),
    ],
)
def test_a_wrong_file_is_told_everything(tmp_path, text, parts):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        find(str(path))
    for part in parts:
        assert part in str(error.value)


def test_what_a_grid_varies_cannot_be_set():
    varied = Grid(
        name="g",
        title="",
        entries=tuple(
            Entry(recipe="digits.s4_pgd", overrides={"epochs": e}, label=e) for e in ("1", "2")
        ),
    )
    (problem,) = lay_out([varied], seeds=[0], out=OUT, overrides={"epochs": "5"}).problems
    assert "`epochs`" in problem and "--set epochs=5" in problem
    assert not lay_out([varied], seeds=[0], out=OUT, overrides={"batch_size": "5"}).problems


def test_a_seed_in_a_grid_is_refused():
    seeded = Grid(name="g", title="", entries=(Entry(recipe="x", overrides={"seed": "1"}),))
    assert "--seeds" in lay_out([seeded], seeds=[0], out=OUT).problems[0]


def test_a_job_survives_json():
    job = Job(name="n", recipe="r", changes={"a": "1"}, seed=3, directory=OUT)
    assert Job.from_dict(job.to_dict()) == job
    setup = Setup(threads=2, device="cpu", data_dir=OUT, paths=("a",), command=("b", "c"))
    assert Setup.from_dict(setup.to_dict()) == setup
