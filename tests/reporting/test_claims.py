"""The ledger on runs whose numbers are chosen, and on the printed tables."""

import pytest

from robustssm.records import Flagged
from robustssm.reporting import (
    cells,
    claims,
    ledger,
    load,
    model_claims,
    poison_claims,
    printed_claims,
)
from robustssm.reporting.evidence import Measured, tiers
from tests.reporting.synthetic import result, write_run

CLAIM = {claim.name: claim for claim in model_claims.CLAIMS}
LEVEL = 0.95


def grid(root, rates, *, seeds=(0, 1, 2), **more):
    """Runs whose PGD-10 and clean accuracy are given by (layer, activation, method)."""
    for (layer, activation, method), (clean, robust) in rates.items():
        for seed in seeds:
            moved = 0.005 * seed
            best = result(clean + moved, {"pgd-10": robust + moved}, n=1000, **more)
            write_run(
                root / f"{layer}_{activation}_{method}_{seed}",
                layer=layer,
                scaling={"form": "scale", "activation": activation} if activation else None,
                method=method,
                seed=seed,
                best=best,
                last=best,
            )
    return load.load([root])


def outcomes(runs):
    (tier,) = tiers(cells.groups(runs.finished))
    source = Measured(tier)
    return {name: claims.judge(claim, source, level=LEVEL) for name, claim in CLAIM.items()}


def test_claims_hold_and_fail_by_the_numbers(tmp_path):
    runs = grid(
        tmp_path,
        {
            ("s4", "", "standard"): (0.95, 0.05),
            ("s4", "", "pgd_training"): (0.90, 0.50),
            ("s4", "relu", "pgd_training"): (0.91, 0.56),
            ("mamba", "", "standard"): (0.95, 0.02),
            ("mamba", "", "pgd_training"): (0.90, 0.60),
        },
    )
    made = outcomes(runs)
    words = {name: outcome.word for name, outcome in made.items() if outcome.tested}
    assert words["at-robust"] == words["trade-off"] == "holds"
    assert words["mamba-no-gain"] == "fails"
    assert words["natural-pgd"] == "fails"
    assert words["ads-clean"] == "fails" and words["ads-helps-clean"] == "holds"
    assert words["ads-robust"] == words["ads-keeps"] == "holds"
    assert made["ads-robust"].parts[0].mean == pytest.approx(6.0)
    assert made["ads-robust"].text == "+6.0"


def test_without_runs_a_claim_is_not_tested_and_says_what_is_missing(tmp_path):
    made = outcomes(grid(tmp_path, {("s4", "", "pgd_training"): (0.9, 0.5)}))
    assert not made["mega-pgd"].tested and made["mega-pgd"].word == "cannot tell"
    assert "Mega" in made["mega-pgd"].reason or "another structure" in made["mega-pgd"].reason
    assert not made["mega-aa"].tested and "AutoAttack" in made["mega-aa"].reason


def test_one_seed_cannot_tell(tmp_path):
    rates = {("s4", "", "standard"): (0.9, 0.0), ("s4", "", "trades"): (0.9, 0.8)}
    outcome = outcomes(grid(tmp_path, rates, seeds=(0,)))["at-robust"]
    assert outcome.tested and outcome.word == "cannot tell" and outcome.reason == "one seed"


def test_unreliable_evaluations_are_left_out(tmp_path):
    sign = Flagged(name="masked", message="masked", severity="invalid")
    rates = {("s4", "", "standard"): (0.9, 0.0), ("s4", "", "trades"): (0.9, 0.8)}
    outcome = outcomes(grid(tmp_path, rates, warnings=(sign,)))["at-robust"]
    assert not outcome.tested and "can be believed" in outcome.reason


def test_seeds_are_paired(tmp_path):
    """Seeds move both cells alike, so that the difference has no spread but the means have."""
    rates = {("s4", "", "trades"): (0.9, 0.5), ("s4", "relu", "trades"): (0.9, 0.53)}
    part = outcomes(grid(tmp_path, rates))["ads-helps"].parts[0]
    assert part.values == pytest.approx((3.0, 3.0, 3.0))


@pytest.mark.parametrize(
    "name, word, failing",
    [
        ("mega-aa", "fails", "CIFAR-10: Mega minus Mamba, PGD-AT"),
        ("mega-pgd", "fails", "MNIST: Mega minus DSS, PGD-AT"),  # equal: not the highest
        ("ads-clean", "fails", "CIFAR-10: DSS + AdS-Sigmoid, TRADES"),
        ("ads-robust", "fails", "CIFAR-10: S4 + AdS-ReLU, PGD-AT"),
        ("ads-robust-aa", "fails", "CIFAR-10: DSS + AdS-ReLU, PGD-AT"),
        ("pgd-suffices", "fails", "MNIST: Mamba, TRADES"),
        ("at-robust", "holds", ""),
        ("robust-above-clean", "holds", ""),
        ("mega-overfits", "holds", ""),
    ],
)
def test_the_printed_tables_decide_as_counted_by_hand(name, word, failing):
    outcome = claims.printed(CLAIM[name], level=LEVEL)
    assert outcome.word == word
    failed = [part.label for part in outcome.parts if part.word(LEVEL) == "fails"]
    assert (failing in failed) if failing else not failed


def test_printed_differences_are_those_of_the_study():
    found = {p.label: p.mean for p in claims.printed(CLAIM["ads-robust-aa"], level=LEVEL).parts}
    assert found["CIFAR-10: DSS + AdS-ReLU, PGD-AT"] == pytest.approx(-3.17)
    found = {p.label: p.mean for p in claims.printed(CLAIM["pgd-suffices"], level=LEVEL).parts}
    assert found["MNIST: Mamba, TRADES"] == pytest.approx(45.83)


def test_sentences_of_the_prose_are_held_against_the_tables():
    one_epoch, relu, first, second, twice = printed_claims.checks()
    assert one_epoch.word == "fails" and "0 of 156" in one_epoch.tables
    assert relu.word == "fails" and "last +4.10 and +4.05" in relu.tables
    assert "last +16.6 (16.62)" in first.tables and first.word == "fails"
    assert "last +4.2 (4.21)" in second.tables and second.word == "fails"
    assert twice.tables == "S4 and S4 + AdS-Sigmoid: 53.26"


def test_names_are_unique_and_every_section_is_known():
    names = [claim.name for claim in (*model_claims.CLAIMS, *poison_claims.CLAIMS)]
    assert len(set(names)) == len(names)


def test_a_small_report_is_not_flooded(tmp_path):
    runs = grid(tmp_path, {("s4", "", "trades"): (0.9, 0.5)}, seeds=(0,))
    blocks = list(ledger.blocks(runs, cells.groups(runs.finished), level=LEVEL))
    assert [type(block).__name__ for block in blocks] == ["Fold", "Fold"]
    assert [block.name for block in blocks] == ["claims-untested", "claims-printed"]


def test_every_line_of_the_ledger_leads_to_its_comparisons(tmp_path):
    rates = {("s4", "", "standard"): (0.9, 0.0), ("s4", "", "trades"): (0.8, 0.6)}
    runs = grid(tmp_path, rates)
    _, table, *folds = ledger.blocks(runs, cells.groups(runs.finished), level=LEVEL)
    parts = next(fold for fold in folds if fold.name == "claims-parts")
    names = {fold.name: fold for fold in parts.blocks[1:]}
    rows = [row for group in table.groups for row in group.rows]
    assert rows and all(row.target in names for row in rows)
    first = next(r for r in rows if r.head.startswith("Adversarial training makes"))
    assert first.cells[-1].tone == "reliable"
    assert "+60.0" in names[first.target].blocks[0].groups[0].rows[0].cells[0].value
