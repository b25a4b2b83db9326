"""
The mean of a run's last weights, in place of the very last ones.

After Izmailov et al. 2018, arXiv:1803.05407, and, for data of kinds that training has not seen, Cha et al. 2021,
arXiv:2102.08604: the mean lies in a flatter place of the loss than each of them. No model here keeps statistics of
batches, so that none have to be taken anew.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback, TrainerControl, TrainerState

from configuration import ConfigurationError

AVERAGE_FILE = "averaged_weights.safetensors"


class WeightAverage(TrainerCallback):
    """
    Keeps the mean of the weights after each of the last steps, and leaves it in the model when training ends.

    Args:
        model: that is trained.

    Attributes:
        num_steps: at the end of training; to be set before it begins.
    """

    num_steps: int

    def __init__(self, model: torch.nn.Module):
        self.averaged = AveragedModel(model)

    def on_train_begin(self, args, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        wanted = max(0, state.global_step - max(0, state.max_steps - self.num_steps))
        found = int(self.averaged.n_averaged)
        if wanted == 0:  # a run that is given more epochs has to average their weights in the end
            self.averaged.n_averaged.zero_()
        elif state.global_step and found != wanted:
            raise ConfigurationError(
                f"average_epochs: at step {state.global_step} the mean of {wanted} steps' weights is wanted, and the "
                f"checkpoint has one of {found}. Go on from an earlier checkpoint, with the recipe that the run was "
                "started with, or begin anew."
            )

    def on_step_end(self, args, state: TrainerState, control: TrainerControl, model=None, **kwargs) -> None:
        if state.max_steps - state.global_step < self.num_steps:
            self.averaged.update_parameters(model)

    def on_train_end(self, args, state: TrainerState, control: TrainerControl, model=None, **kwargs) -> None:
        if self.averaged.n_averaged > 0:
            assert model is not None
            model.load_state_dict(self.averaged.module.state_dict())

    def save(self, checkpoint: Path) -> None:
        """Leaves the mean in a checkpoint, in one step; nothing before there is one."""
        if self.averaged.n_averaged > 0:
            weights = {name: value.contiguous() for name, value in self.averaged.state_dict().items()}
            beside = checkpoint / f"{AVERAGE_FILE}.partial"
            save_file(weights, beside)
            beside.replace(checkpoint / AVERAGE_FILE)

    def load(self, checkpoint: Path) -> None:
        """Goes on from the mean that a checkpoint has, if it has one."""
        if (checkpoint / AVERAGE_FILE).is_file():
            self.averaged.load_state_dict(load_file(checkpoint / AVERAGE_FILE))
