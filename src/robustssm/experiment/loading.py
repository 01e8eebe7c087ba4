"""What an evaluation of a run begins with: a checkpoint's model and the test examples."""

import torch
from torch import nn

from robustssm.data.base import Splits
from robustssm.data.batches import Batch, batches
from robustssm.experiment.rundir import RunDirectory
from robustssm.experiment.settings import Experiment, build_model
from robustssm.training import checkpoint


def load_examples(experiment: Experiment, splits: Splits, device: torch.device) -> Batch:
    """The test examples that an experiment evaluates on, on a device."""
    rows = min(experiment.evaluation_examples or len(splits.test), len(splits.test))
    return next(batches(splits.test, order=None, batch_size=rows, device=device))


def load_model(
    experiment: Experiment, run: RunDirectory, splits: Splits, name: str, device: torch.device
) -> nn.Module:
    """The model of the checkpoint `name`, on a device.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        CorruptFile: If it is damaged.
    """
    model = build_model(experiment, splits).to(device)
    checkpoint.read_weights(run.checkpoint(name), model)
    return model
