"""Three tasks that are no images (`copying`, `adding`, `tones`), made by rule, for CPUs.

The radius of each threat is one that the rule behind the data withstands, so that a model could be
right on every example under attack; it may not touch the marks, which decide which values count.
On `copying` and `adding` eps stays at 0 until the marks are found, without which PGD training did
not leave chance (docs/data.md).
"""

from dataclasses import dataclass, replace

from robustssm.attacks.pgd import PGD
from robustssm.attacks.threat import Threat
from robustssm.data.adding import Adding
from robustssm.data.copying import Copying
from robustssm.data.synthetic import Synthetic
from robustssm.data.tones import Tones
from robustssm.experiment import Experiment
from robustssm.models.classifier import SequenceClassifierConfig
from robustssm.models.presets import modern
from robustssm.recipes import Cell
from robustssm.recipes.methods import objective, selection
from robustssm.training.monitor import Monitor
from robustssm.training.optim import AdamW
from robustssm.training.schedule import Schedule
from robustssm.training.warmup import EpsWarmup


@dataclass(frozen=True)
class _Task:
    dataset: Synthetic
    threat: Threat
    epochs: int
    last: bool
    """Whether the head reads the last token, as the answer is due at the end."""
    warmup: EpsWarmup = 0.5


HELD = (0.4, 0.8)
"""When eps rises where training stays at chance for epochs, until it has found the marks."""
TASKS = {
    "copying": _Task(
        Copying(), Threat(norm="linf", eps=0.18, channels=(0,)), epochs=20, last=True, warmup=HELD
    ),
    "adding": _Task(
        Adding(), Threat(norm="linf", eps=0.07, channels=(0,)), epochs=20, last=True, warmup=HELD
    ),
    "tones": _Task(Tones(), Threat(norm="linf", eps=0.06, bounds=(-1, 1)), epochs=10, last=False),
}


def experiment(cell: Cell) -> Experiment:
    """The experiment of a cell: width 32, two layers, PGD-5 inside training."""
    task = TASKS[cell.tier]
    inner = PGD(steps=5, step_size=0.3, keep="last")
    return Experiment(
        dataset=task.dataset,
        model=_model(cell, task),
        objective=objective(
            cell.method,
            threat=task.threat,
            attack=inner,
            kl_attack=replace(inner, loss="kl", start="normal"),
            beta=3.0,
            eps_warmup=task.warmup,
        ),
        threat=task.threat,
        attacks=(PGD(steps=10, step_size=0.25), PGD(steps=50, step_size=0.1, restarts=2)),
        optimizer=AdamW(lr=1e-2, weight_decay=1e-2),
        schedule=Schedule(warmup=0.1),
        monitor=Monitor(
            attack=PGD(steps=10, step_size=0.25, keep="last"),
            train=100,
            validation=200,
            test=0,
            every=4,
        ),
        selection=selection(cell.method),
        epochs=task.epochs,
        batch_size=32,
        evaluation_examples=300,
    )


def _model(cell: Cell, task: _Task) -> SequenceClassifierConfig:
    states = {"mamba": 8, "mega": 8, "s5": 32}.get(cell.structure, 16)
    model = modern(cell.structure, d_model=32, num_layers=2, d_state=states, ads=cell.ads)
    return replace(model, pooling="last") if task.last else model
