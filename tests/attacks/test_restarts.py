"""The worst of several runs: who wins, who is run again, and that skipping changes no flag."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from robustssm.attacks.restarts import Found, worst_of

ROWS = 6
scores = st.lists(st.tuples(st.booleans(), st.floats(-1, 1)), min_size=ROWS, max_size=ROWS)


def found(table):
    points = torch.arange(float(len(table)))[:, None]
    return Found(points, torch.tensor([v for _, v in table]), torch.tensor([w for w, _ in table]))


@given(runs=st.lists(scores, min_size=1, max_size=4))
def test_skipping_the_fooled_changes_no_flag(runs):
    """An example's outcome in run r is a table's, as it is with one noise stream per example."""

    def search(rows, run):
        table = [runs[run][int(row)] for row in rows]
        wrong, loss = torch.tensor([w for w, _ in table]), torch.tensor([v for _, v in table])
        return Found(10.0 * run + rows[:, None].float(), loss, wrong)

    rows = torch.arange(ROWS)
    all_runs = worst_of(len(runs), search, rows, survivors_only=False)
    skipping = worst_of(len(runs), search, rows)
    assert torch.equal(all_runs.wrong, skipping.wrong)
    for row in range(ROWS):
        column = [table[row] for table in runs]
        best = max(column)
        assert (bool(all_runs.wrong[row]), all_runs.loss[row].item()) == (
            best[0],
            torch.tensor(best[1]).item(),
        )
        run = int(all_runs.points[row, 0] - row) // 10
        assert torch.tensor(column[run][1]) == all_runs.loss[row], "points go with their loss"
        assert int(skipping.points[row, 0] - row) % 10 == 0


def test_misclassified_beats_any_loss_and_nan_beats_nothing():
    a, b = found([(True, -5.0), (False, 1.0)]), found([(False, 9.0), (False, float("nan"))])
    assert b.better_than(a).tolist() == [False, False]
    assert a.better_than(b).tolist() == [True, False]


def test_stops_when_nobody_is_left():
    calls = []

    def search(rows, run):
        calls.append(rows.tolist())
        wrong = rows < 3 if run == 0 else rows >= 0
        return Found(rows[:, None].float(), rows.float(), wrong)

    worst_of(5, search, torch.arange(5))
    assert calls == [[0, 1, 2, 3, 4], [3, 4]]
