"""Released against paper, single bugs, origins and mixed versions, on runs with chosen numbers."""

import shlex

import pytest

from robustssm.reporting import cells, effects, load, origins, write_report
from robustssm.reporting.versions import notes, refuse_mixed
from tests.reporting.synthetic import attacked, write_run


def run(root, tier, robust, *, seed=0, name="", provenance=None, **settings):
    attacks = {"pgd_released-10": robust + 0.1, "pgd-10": robust}
    best = attacked(0.9, (robust, robust - 0.05), attacks=attacks)
    return write_run(
        root / (name or f"{tier}_{seed}"),
        recipe=f"{tier}.s4_pgd",
        method="pgd_training",
        seed=seed,
        best=best,
        last=best,
        provenance=provenance,
        **settings,
    )


def tables(root):
    groups = cells.groups(load.load([root]).finished)
    return [b for b in effects.blocks(groups, marks={}, level=0.95) if hasattr(b, "columns")]


def entries(table, at=0):
    row = [row for group in table.groups for row in group.rows][at]
    return row.head, dict(zip(table.columns, row.cells, strict=True))


def test_cells_of_both_tiers_are_compared_over_shared_seeds(tmp_path):
    for seed in (0, 1, 2):
        run(tmp_path, "digits_paper", 0.60, seed=seed)
    for seed, robust in ((0, 0.40), (1, 0.45), (7, 0.10)):  # seed 7 has no partner
        run(tmp_path, "digits_released", robust, seed=seed, clip_norm=2)
    (table,) = tables(tmp_path)
    head, row = entries(table)
    assert head == "S4, PGD-AT"
    gap = row["PGD-10", "difference"]
    assert gap.value == "\N{MINUS SIGN}17.5" and gap.details[-1] == "2 seeds"
    assert row["AutoAttack", "as in the paper"].value == "55.0"
    assert row["Released PGD-10", "as released"].details[-1] == "3 seeds"


def test_the_bare_tier_stands_for_the_paper_where_there_is_no_other(tmp_path):
    run(tmp_path, "mnist", 0.6)
    run(tmp_path, "mnist_released", 0.5, clip_norm=2)
    (table,) = tables(tmp_path)
    gap = entries(table)[1]["PGD-10", "difference"]
    assert gap.value == "\N{MINUS SIGN}10.0" and gap.details[-1] == "1 seed"


def test_single_bugs_stand_beside_the_cell_without(tmp_path):
    run(tmp_path, "digits_paper", 0.6, seed=2)
    for seed in (0, 1):
        run(tmp_path, "digits_paper", 0.6, seed=seed)
        run(tmp_path, "digits_paper", 0.3, seed=seed, name=f"s4+no_gelu/seed_{seed}", clip_norm=2)
        run(tmp_path, "digits_paper", 0.5, seed=seed, name=f"other_{seed}", clip_norm=3)
    (table,) = tables(tmp_path)
    heads = {entries(table, at)[0]: entries(table, at)[1] for at in (0, 1)}
    assert heads["S4, PGD-AT: clip_norm = 3"]["PGD-10", "difference"].value.endswith("10.0")
    named = next(row for head, row in heads.items() if "no gelu" in head)
    assert named["PGD-10", "difference"].value == "\N{MINUS SIGN}30.0"


def test_a_bug_that_makes_another_structure_stands_beside_its_recipe_too(tmp_path):
    ads = {"name": "adaptive_scaling", "activation": "relu"}
    for seed in (0, 1):
        run(tmp_path, "digits_paper", 0.6, seed=seed, scaling={**ads, "form": "scale"})
    shifted = {**ads, "form": "scale_shift"}
    run(tmp_path, "digits_paper", 0.4, name="s4+shift", scaling=shifted)
    plain = {**ads, "form": "scale"}
    run(tmp_path, "digits_paper", 0.5, name="s4+no_clipping", scaling=plain, clip_norm=2)
    (table,) = tables(tmp_path)
    found = [entries(table, at) for at in range(sum(len(g.rows) for g in table.groups))]
    gaps = {head: row["PGD-10", "difference"].value for head, row in found}
    assert gaps == {
        "S4 + AdS-ReLU, PGD-AT: shift": "\N{MINUS SIGN}20.0",
        "S4 + AdS-ReLU, PGD-AT: no clipping": "\N{MINUS SIGN}10.0",
    }


def test_one_tier_alone_makes_no_section(tmp_path):
    run(tmp_path, "digits_paper", 0.6)
    assert tables(tmp_path) == []


def test_tiers_are_never_averaged(tmp_path):
    run(tmp_path, "digits_paper", 0.6, seed=0)
    run(tmp_path, "digits_released", 0.5, seed=1)  # the same settings
    groups = cells.groups(load.load([tmp_path]).finished)
    assert [g.structure for g in groups] == ["S4 (digits_paper)", "S4 (digits_released)"]


def test_the_command_makes_the_run_again(tmp_path):
    run(tmp_path, "digits", 0.6, seed=3)
    (found,) = load.load([tmp_path]).finished
    words = shlex.split(origins.command(found))
    assert words[:3] == ["robustssm", "run", "digits.s4_pgd"]
    assert words[3:] == ["--set", "epochs=4", "--set", "seed=3"]
    groups = cells.groups([found])
    (fold,) = origins.folds(groups, {found.name: "run-1"})
    row = fold.blocks[0].groups[0].rows[0]
    assert row.target == "run-1" and row.cells[2].value == "0123456789ab"


def test_mixed_versions_are_refused_unless_asked(tmp_path):
    run(tmp_path / "in", "digits", 0.6, seed=0)
    run(tmp_path / "in", "digits", 0.6, seed=1, provenance={"version": "0.0.9"})
    with pytest.raises(ValueError, match=r"(?s)one version.*0\.0\.9: digits_1.*--mixed"):
        write_report([tmp_path / "in"], tmp_path / "out")
    found = load.load([tmp_path / "in"])
    assert "0.0.9: digits_1" in notes(found)[0].text
    with pytest.raises(ValueError, match="one version"):
        refuse_mixed(found)
    paths = write_report([tmp_path / "in"], tmp_path / "out", mixed=True)
    assert "are mixed, as was asked" in paths.markdown.read_text()


def test_other_commits_and_changed_trees_are_said_not_refused(tmp_path):
    run(tmp_path, "digits", 0.6, seed=0)
    run(tmp_path, "digits", 0.6, seed=1, provenance={"commit": "f" * 40 + "+changes"})
    found = load.load([tmp_path])
    refuse_mixed(found)
    commits, changes = notes(found)
    assert "ffffffffffff+changes: 1" in commits.text and "digits_1" in changes.text


def test_one_clean_commit_needs_no_note(tmp_path):
    run(tmp_path, "digits", 0.6)
    assert notes(load.load([tmp_path])) == ()


def test_rows_are_called_what_the_grid_calls_the_change(tmp_path):
    for seed in (0, 1):
        run(tmp_path, "digits_paper", 0.6, seed=seed, name=f"s4/seed_{seed}")
        run(tmp_path, "digits_paper", 0.3, seed=seed, name=f"s4+no-gelu/seed_{seed}", clip_norm=2)
    found = [group.structure for group in cells.groups(load.load([tmp_path]).finished)]
    assert found == ["S4", "S4 (no-gelu)"]
