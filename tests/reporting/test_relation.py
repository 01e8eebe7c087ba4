"""Rank correlation of probes with robust accuracy: what is tested, over which runs, and how."""

import pytest
from scipy import stats

from robustssm.records import Flagged
from robustssm.reporting import cells, relation_figures
from robustssm.reporting.load import load
from robustssm.reporting.pairs import holm
from robustssm.reporting.relation import EVERYTHING, relation, summaries
from tests.reporting import probed
from tests.reporting.synthetic import result, write_run

RATES = {"a": 0.6, "b": 0.5, "c": 0.55, "d": 0.3, "e": 0.2, "f": 0.1}
SIZES = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 4.0, "e": 7.0, "f": 5.0}


def one(size):
    layer = [probed.axis("layer", 2)]
    parts = [*layer, probed.axis("component", ("ssm", "linear"))]
    both = [probed.axis("checkpoint", ("initial", "best")), *layer]
    return probed.of(
        "own",
        probed.quantity("size", layer, lambda la: size * (1 + int(la))),
        probed.quantity("again", layer, lambda la: size * (1 + int(la))),
        probed.quantity("same", layer, lambda la: 3.0),
        probed.quantity("part", parts, lambda la, p: -size if p == "ssm" else size**2),
        probed.quantity("before", both, lambda c, la: size if c == "best" else 100.0),
    )


def write(root, rates=RATES, **more):
    for name, rate in rates.items():
        attacks = {"pgd-10": rate + 0.1, "pgd-50x5": rate}
        path = write_run(root / name, layer=name, best=result(0.9, attacks), **more)
        probed.write_probes(path, [one(SIZES[name])])


def test_summaries_are_means_on_the_best_checkpoint_by_component():
    assert summaries(one(2.0)) == {
        "own: size": 3.0,
        "own: again": 3.0,
        "own: same": 3.0,
        "own: part, ssm": -2.0,
        "own: part, linear": 4.0,
        "own: before": 2.0,
    }


def test_correlations_are_those_of_scipy_and_each_quantity_counts_once(tmp_path):
    write(tmp_path)
    found = relation(cells.groups(load([tmp_path]).finished))
    assert found.quantities == ("own: size", "own: part, ssm", "own: part, linear", "own: before")
    assert found.constant == ("own: same",) and found.scopes == (EVERYTHING,)
    own = found.of("own: size", EVERYTHING)
    wanted = stats.spearmanr(list(SIZES.values()), list(RATES.values())).statistic
    assert own.rho == pytest.approx(wanted) and own.n == 6
    assert own.interval[0] <= own.rho <= own.interval[1]
    assert found.of("own: part, ssm", EVERYTHING).rho == pytest.approx(-wanted)
    adjusted = holm([each.p for each in found.correlations])
    assert tuple(each.adjusted for each in found.correlations) == adjusted


def test_the_worst_case_is_over_attacks_that_all_runs_have(tmp_path):
    write(tmp_path)
    path = write_run(tmp_path / "g", layer="g", best=result(0.9, {"pgd-10": 0.95, "square": 0.0}))
    probed.write_probes(path, [one(0.5)])
    found = relation(cells.groups(load([tmp_path]).finished))
    assert found.attacks == ("pgd-10",) and len(found.runs) == 7
    assert found.of("own: size", EVERYTHING).rho == pytest.approx(
        stats.spearmanr([*SIZES.values(), 0.5], [*RATES.values(), 0.9]).statistic
    )


def test_within_each_method_runs_are_compared_among_themselves(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two", {k: RATES[k] / 10 for k in "abcd"}, method="standard")
    found = relation(cells.groups(load([tmp_path]).finished))
    assert found.scopes == (EVERYTHING, "TRADES")  # four runs are too few
    assert found.of("own: size", EVERYTHING).n == 10
    assert found.of("own: size", "TRADES").n == 6
    assert found.of("own: size", "Standard") is None


def test_seeds_of_a_cell_are_one_point_their_mean(tmp_path):
    write(tmp_path / "zero")
    shifted = {name: rate + 0.1 * (name in "bdf") for name, rate in RATES.items()}
    write(tmp_path / "one", shifted, seed=1)
    found = relation(cells.groups(load([tmp_path]).finished))
    assert (found.cells, len(found.runs)) == (6, 12)
    own = found.of("own: size", EVERYTHING)
    means = [(rate + shifted[name]) / 2 for name, rate in RATES.items()]
    assert own.n == 6
    assert own.rho == pytest.approx(stats.spearmanr(list(SIZES.values()), means).statistic)


def test_runs_that_cannot_be_believed_are_left_out(tmp_path):
    write(tmp_path)
    sign = Flagged(name="masking", message="m", severity="invalid")
    bad = write_run(tmp_path / "z", layer="z", best=result(0.9, {"pgd-10": 0.9}, warnings=(sign,)))
    probed.write_probes(bad, [one(9.0)])
    found = relation(cells.groups(load([tmp_path]).finished))
    assert found.unreliable == ("z",) and found.of("own: size", EVERYTHING).n == 6


def test_too_few_runs_say_nothing(tmp_path):
    write(tmp_path, {k: RATES[k] for k in "abcd"})
    runs = load([tmp_path]).finished
    assert relation(cells.groups(runs)) is None
    assert list(relation_figures.blocks(cells.groups(runs), level=0.95)) == []


def test_what_is_found_is_said_also_if_it_is_nothing(tmp_path):
    write(tmp_path)
    said, figure, table = relation_figures.blocks(
        cells.groups(load([tmp_path]).finished), level=0.95
    )
    assert "4 quantities" in said.text and "over 6 cells" in said.text
    assert "None remains below 0.05 after Holm's adjustment" in said.text
    assert "p = 0.017" in table.groups[0].rows[0].cells[0].details[1]
    assert len(table.groups[0].rows) == 4 and len(figure.panels) == 1
