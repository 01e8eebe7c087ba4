"""Makes reference_square.npz: the reference Square attack, query by query, with all that it drew.

    python tests/data/reference_square.py --checkout PATH_OF_AUTO_ATTACK

The net and the images are those of autoattack_digits.npz; seed 0, schedule not rescaled, as in its
"standard" suite. See README.md.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.attacks.digits_net import digits_net  # noqa: E402

SOME = 48
CUTS = {"linf": (0, 10, 50, 100, 200, 300), "l2": (0, 20, 60, 150), "l1": (0, 20, 60)}
EPS = {"linf": 0.15, "l2": 1.0, "l1": 4.0}
NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def gaps(net, points, y):
    """The margin z[y] - max of the others, as the reference computes it."""
    logits = net(points)
    rivals = logits.clone()
    rivals[torch.arange(len(y)), y] = -torch.inf
    return logits[torch.arange(len(y)), y] - rivals.max(1).values


class Recorder:
    """Keeps what is drawn and which points are tried."""

    def __init__(self, net):
        self.net, self.drawn, self.tried = net, [], []
        self.rand = torch.rand

    def predict(self, points):
        self.tried.append(points.clone())
        return self.net(points)

    def draw(self, *shape):
        values = self.rand(*shape)
        self.drawn.append(values.clone())
        return values

    def run(self, attack, x, y):
        self.drawn, self.tried = [], []
        torch.rand = self.draw
        try:
            torch.manual_seed(0)
            attack.init_hyperparam(x)
            with torch.no_grad():
                return attack.attack_single_run(x, y)
        finally:
            torch.rand = self.rand


def best_gaps(recorder, y):
    """The best margin of every example after the start and each query; who was asked each time."""
    with torch.no_grad():
        best = gaps(recorder.net, recorder.tried[0], y)
        history, asked = [best.clone()], []
        for points in recorder.tried[1:]:
            alive = (best > 0).nonzero().squeeze(1)
            assert len(alive) == len(points)
            best[alive] = torch.minimum(best[alive], gaps(recorder.net, points, y[alive]))
            history.append(best.clone())
            asked.append(alive)
    return torch.stack(history), asked


def signs_by_example(drawn, asked, count):
    """Sign draws of the examples that were asked; the others' are not there and stay 0."""
    signs = torch.zeros(len(drawn), count)
    for query, (values, alive) in enumerate(zip(drawn, asked, strict=True)):
        signs[query, alive] = values.flatten()
    return signs


def trace(square, net, x, y, norm):
    """Everything about one run of one norm, under names that begin with the norm."""
    recorder, cuts = Recorder(net), CUTS[norm]
    points = []
    for queries in cuts:
        attack = square(
            recorder.predict,
            norm=NAMES[norm],
            n_queries=queries,
            eps=EPS[norm],
            seed=0,
            resc_schedule=False,
            device="cpu",
        )
        counts, found = recorder.run(attack, x, y)
        points.append(found)
    history, asked = best_gaps(recorder, y)
    drawn, queries = recorder.drawn, len(asked)
    if norm == "linf":
        start, per_query = drawn[0][:, 0], drawn[1:]
        draws = torch.cat([values.flatten() for values in per_query]).reshape(queries, 3)
        more = {"start": start, "draws": draws}
    else:
        tiles = 64
        turns = torch.cat(drawn[: 2 * tiles : 2])
        signs = torch.stack([values.flatten() for values in drawn[1 : 2 * tiles : 2]])
        rest = drawn[2 * tiles :]
        shared = [torch.cat(rest[6 * query : 6 * query + 5]) for query in range(queries)]
        own = signs_by_example(rest[5::6], asked, len(x))
        more = {
            "start_turns": turns,
            "start_positive": signs > 0.5,
            "draws": torch.stack(shared),
            "positive": own > 0.5,
        }
    more |= {"gaps": history, "points": torch.stack(points), "counts": counts}
    return {f"{norm}/{name}": value.numpy() for name, value in more.items()}


def whole(square, net, x, y, queries):
    """Who is fooled by the attack alone."""
    attack = square(
        net, norm="Linf", n_queries=queries, eps=0.15, seed=0, resc_schedule=False, device="cpu"
    )
    with torch.no_grad():
        return (net(attack.perturb(x, y)).argmax(1) != y).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", required=True, help="of github.com/fra31/auto-attack")
    sys.path.insert(0, parser.parse_args().checkout)
    from autoattack.square import SquareAttack

    net, x, y, flags = digits_net()
    right = flags["survive_Linf_0.15_clean"].nonzero().squeeze(1)
    # Some that the whole attack fools and some that nothing fools.
    robust = flags["survive_Linf_0.15_square"][right]
    some = torch.cat((right[~robust][: SOME // 2], right[robust][: SOME // 2]))
    stored = {"rows": some.numpy(), "right": right.numpy()}
    for norm in CUTS:
        stored |= trace(SquareAttack, net, x[some], y[some], norm)
    stored["linf/fooled_5000"] = whole(SquareAttack, net, x[right], y[right], 5000)
    np.savez_compressed(HERE / "reference_square.npz", **stored)


if __name__ == "__main__":
    main()
