"""Which epoch is best, and when no better one is waited for."""

import json

import pytest

from robustssm.core.config import from_dict, to_dict
from robustssm.training.selection import EarlyStopping, score


def test_higher_accuracy_wins_and_loss_breaks_ties():
    def figures(accuracy, loss):
        return {"validation_accuracy": accuracy, "validation_loss": loss}

    rule = "validation_accuracy"
    better = score(rule, figures(0.9, 0.5), epoch=1)
    assert better > score(rule, figures(0.8, 0.1), epoch=2)
    assert score(rule, figures(0.9, 0.4), epoch=3) > better


def test_last_prefers_the_later_epoch():
    assert score("last", {}, epoch=4) > score("last", {}, epoch=3)


def stopped_after(stopping, figures, epochs=None):
    """Epochs that a training takes whose epoch n has the figure `figures[n - 1]`."""
    best, best_epoch = None, 0
    epochs = epochs or len(figures)
    for epoch, figure in enumerate(figures, start=1):
        if best is None or figure > best:
            best, best_epoch = figure, epoch
        if stopping.due(epoch=epoch, epochs=epochs, best_epoch=best_epoch):
            return epoch
    return len(figures)


def test_it_stops_after_so_many_epochs_without_a_better_figure():
    figures = [0.1, 0.3, 0.2, 0.3, 0.1, 0.2, 0.9, 0.9]
    assert stopped_after(EarlyStopping(patience=4), figures) == 6
    assert stopped_after(EarlyStopping(patience=5), figures) == 8
    assert stopped_after(EarlyStopping(patience=1), figures) == 3
    assert stopped_after(EarlyStopping(patience=3), [0.1, 0.2, 0.3, 0.4]) == 4


def test_patience_begins_at_its_start():
    figures = [0.5] + [0.1] * 19
    assert stopped_after(EarlyStopping(patience=3), figures) == 4
    assert stopped_after(EarlyStopping(patience=3, start=0.5), figures) == 13


def test_it_needs_a_rule_that_compares_epochs():
    EarlyStopping().check("validation_adversarial_accuracy")
    with pytest.raises(ValueError, match="selection='last'"):
        EarlyStopping().check("last")


def test_early_stopping_is_a_setting():
    stopping = EarlyStopping(patience=3, start=0.25)
    assert from_dict(EarlyStopping, json.loads(json.dumps(to_dict(stopping)))) == stopping
    with pytest.raises(ValueError, match="patience"):
        EarlyStopping(patience=0)
