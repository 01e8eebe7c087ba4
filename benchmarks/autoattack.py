"""How much faster is AutoAttack here than its reference, on the same net and points?

python -m benchmarks.autoattack --reference CHECKOUT [--run RUN] [--norm linf] [--eps 0.15]

CHECKOUT is a local checkout of the reference implementation (github.com/fra31/auto-attack). Without
--run, the net is the adversarially trained one of tests/data/autoattack_digits.npz; with it, the
checkpoint "best" of a run of ours. Stages are timed one after the other, each on what the stages of
the same implementation before it left, so that the two do the same work. Prints a table, then one
line of JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from robustssm.attacks.threat import Threat
from robustssm.core.config import from_dict
from robustssm.core.modes import mode
from robustssm.evaluation.evaluate import evaluate
from robustssm.evaluation.work import Status

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class Counting(nn.Module):
    """Counts calls, and rows with and without a graph."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.calls = self.forwards = self.graphs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.forwards += len(x)
        self.graphs += len(x) * torch.is_grad_enabled()
        return self.model(x)

    def take(self) -> tuple[int, int, int]:
        counts = (self.calls, self.forwards, self.graphs)
        self.calls = self.forwards = self.graphs = 0
        return counts


def reference(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> list[dict]:
    from autoattack import AutoAttack as Reference  # from --reference

    adversary = Reference(model, norm=NORMS[norm], eps=eps, seed=0, device="cpu", verbose=False)
    rows = []
    for stage in STAGES:
        adversary.attacks_to_run = [stage]
        began = time.perf_counter()
        x_adv = adversary.run_standard_evaluation(x, y, bs=len(x))
        seconds = time.perf_counter() - began
        calls, forwards, graphs = model.take()
        with torch.no_grad():
            left = model(x_adv).argmax(1) == y
        model.take()
        x, y = x[left], y[left]
        rows.append(row(stage, len(y), seconds, calls, forwards, graphs))
    return rows


def ours(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> tuple[list[dict], str]:
    """As users run it, checks and all; the time of a stage is that until the next one begins."""
    starts: dict[str, float] = {}

    def note(status: Status) -> None:
        starts.setdefault(status.attack, time.perf_counter())

    began = time.perf_counter()
    result = evaluate(
        model,
        x,
        y,
        "autoattack_standard",
        Threat(norm=norm, eps=eps),
        batch_size=len(y),
        progress=note,
    )
    ends = time.perf_counter()
    (label,) = result.suites
    suite = result.suites[label]
    times = [starts.get(f"{label}: {stage}", ends) for stage in suite.stages] + [ends]
    times[0] = began  # what comes before the first attack belongs to it
    rows = []
    for number, (stage, held) in enumerate(suite.stages.items()):
        passes, seconds = suite.passes[stage], times[number + 1] - times[number]
        counts = (passes["calls"], passes["forwards"], passes["backwards"])
        rows.append(row(STAGES[number], sum(held), seconds, *counts))
    return rows, result.verdict


def row(stage: str, left: int, seconds: float, calls: int, forwards: int, graphs: int) -> dict:
    return {
        "stage": stage,
        "left": left,
        "seconds": round(seconds, 2),
        "calls": calls,
        "forwards": forwards,
        "with_gradient": graphs,
    }


def problem(arguments: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    if arguments.run is None:
        from tests.attacks.digits_net import digits_net

        model, x, y, _ = digits_net()
    else:
        from robustssm.experiment import Experiment, read_data
        from robustssm.experiment.loading import load_examples, load_model
        from robustssm.experiment.rundir import RunDirectory, read_recipe

        experiment = from_dict(Experiment, read_recipe(arguments.run)["experiment"])
        splits = read_data(experiment, arguments.data_dir)
        device, run = torch.device("cpu"), RunDirectory(arguments.run)
        model = load_model(experiment, run, splits, "best", device)
        test = load_examples(experiment, splits, device)
        x, y = test.x, test.y
    x, y = x[: arguments.n], y[: arguments.n]
    with mode(model, training=False), torch.no_grad():
        right = model.eval()(x).argmax(1) == y
    return model, x[right], y[right]


def show(name: str, rows: list[dict]) -> None:
    for line in rows:
        print(
            f"{name:10} {line['stage']:8} left {line['left']:4}  {line['seconds']:8.2f} s"
            f"  calls {line['calls']:6}  forwards {line['forwards']:9}"
            f"  with gradient {line['with_gradient']:8}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--norm", choices=tuple(NORMS), default="linf")
    parser.add_argument("--eps", type=float, default=0.15)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.reference))
    torch.set_num_threads(arguments.threads)
    model, x, y = problem(arguments)
    counting = Counting(model)
    mine, verdict = ours(model, x, y, arguments.norm, arguments.eps)
    show("ours", mine)
    theirs = reference(counting, x, y, arguments.norm, arguments.eps)
    show("reference", theirs)
    spent = [sum(line["seconds"] for line in rows) for rows in (mine, theirs)]
    print(
        json.dumps(
            {
                "question": "autoattack",
                "ratio": round(spent[0] / spent[1], 3),
                "peer": "fra31/auto-attack",
                "ours_s": round(spent[0], 2),
                "peer_s": round(spent[1], 2),
                "threads": arguments.threads,
                "shape": list(x.shape),
                "norm": arguments.norm,
                "eps": arguments.eps,
                "verdict": verdict,
                "torch": torch.__version__,
                "ours": mine,
                "reference": theirs,
            }
        )
    )


if __name__ == "__main__":
    main()
