"""The one place where the parts meet: a recipe becomes data, model, objective, loop and evaluation.

from robustssm.experiment import run
from robustssm.recipes import recipe
run(recipe("digits.s4_trades"), Path("runs/s4_trades"))
"""

from robustssm.experiment.probe import probe_run
from robustssm.experiment.run import evaluate_run, run
from robustssm.experiment.settings import Experiment, build_model, read_data

__all__ = ["Experiment", "build_model", "evaluate_run", "probe_run", "read_data", "run"]
