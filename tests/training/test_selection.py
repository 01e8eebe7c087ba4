"""Which epoch is best."""

from robustssm.training.selection import score


def test_higher_accuracy_wins_and_loss_breaks_ties():
    def figures(accuracy, loss):
        return {"validation_accuracy": accuracy, "validation_loss": loss}

    rule = "validation_accuracy"
    better = score(rule, figures(0.9, 0.5), epoch=1)
    assert better > score(rule, figures(0.8, 0.1), epoch=2)
    assert score(rule, figures(0.9, 0.4), epoch=3) > better


def test_last_prefers_the_later_epoch():
    assert score("last", {}, epoch=4) > score("last", {}, epoch=3)
