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
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

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

    def on_step_end(self, args, state: TrainerState, control: TrainerControl, model=None, **kwargs) -> None:
        if state.max_steps - state.global_step < self.num_steps:
            self.averaged.update_parameters(model)

    def on_save(self, args, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if state.is_world_process_zero and self.averaged.n_averaged > 0:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            weights = {name: value.contiguous() for name, value in self.averaged.state_dict().items()}
            save_file(weights, folder / AVERAGE_FILE)

    def on_train_end(self, args, state: TrainerState, control: TrainerControl, model=None, **kwargs) -> None:
        if self.averaged.n_averaged > 0:
            assert model is not None
            model.load_state_dict(self.averaged.module.state_dict())

    def load(self, checkpoint: Path) -> None:
        """Goes on from the mean that a checkpoint has, if it has one."""
        if (checkpoint / AVERAGE_FILE).is_file():
            self.averaged.load_state_dict(load_file(checkpoint / AVERAGE_FILE))
