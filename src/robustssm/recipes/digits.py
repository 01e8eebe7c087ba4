"""The embedded tier: scikit-learn's 8x8 digits, one token a pixel, L = 64; a run takes seconds to
minutes.
"""

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.data.digits import Digits
from robustssm.experiment import Experiment
from robustssm.models.presets import modern
from robustssm.recipes import Cell
from robustssm.recipes.methods import objective, selection
from robustssm.training.monitor import Monitor
from robustssm.training.optim import AdamW
from robustssm.training.schedule import Schedule

THREAT = Threat(norm="linf", eps=0.1)
STATES = {"mamba": 8, "mega": 8, "s5": 32}
"""Of the structures that do not have 16 per channel."""
RATES = {("mega", "pgd"): 5e-3}
"""Learning rates other than 1e-2, at which PGD training of Mega collapsed (19 % clean)."""


def experiment(cell: Cell) -> Experiment:
    """The experiment of a cell: width 32, two layers, linf eps 0.1, PGD-5 inside training.

    In so few epochs training at full eps from the start is still far from done, so eps rises
    over the first half (`eps_warmup`); 300 test examples keep evaluation within the minutes.
    """
    return Experiment(
        dataset=Digits(),
        model=modern(
            cell.structure,
            d_model=32,
            num_layers=2,
            d_state=STATES.get(cell.structure, 16),
            ads=cell.ads,
        ),
        objective=objective(
            cell.method,
            threat=THREAT,
            attack=PGD(steps=5, step_size=0.3, keep="last"),
            kl_attack=PGD(steps=5, step_size=0.3, keep="last", loss="kl", start="normal"),
            beta=3.0,
            eps_warmup=0.5,
        ),
        threat=THREAT,
        attacks=(PGD(steps=10, step_size=0.25), PGD(steps=50, step_size=0.1, restarts=2)),
        optimizer=AdamW(
            lr=RATES.get((cell.structure, cell.method), 1e-2),
            weight_decay=1e-2,
        ),
        schedule=Schedule(warmup=0.1),
        monitor=Monitor(
            attack=PGD(steps=10, step_size=0.25, keep="last"),
            train=150,
            validation=200,
            test=150,
            every=4,
        ),
        selection=selection(cell.method),
        epochs=20,
        batch_size=16,
        evaluation_examples=300,
    )
