"""The Hugging Face Trainer, with this project's schedules, its training metrics, and its log."""

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import EarlyStoppingCallback, ExportableState, PrinterCallback, ProgressCallback

from configuration import ConfigurationError, ScanlineTrainingArguments
from configuration.arguments import MUON
from data_scripts.scan_dataset import ScanDataset

from .averaging import WeightAverage
from .library_models import is_of_library, read_weights
from .muon import muon_for
from .run_folder import append_metrics, forget_metrics_after
from .schedules import WarmupReduceLROnPlateau, warmup_then

logger = logging.getLogger(__name__)

# 37 scans in 32 steps came out right and unsure (calibration error 0.35), in 80 steps 0.08, in 128 steps 0.02
FEW_STEPS = 100


class TrainingRecord(TrainerCallback, ExportableState):
    """
    What the training scans gave since the last validation, as they were seen: augmentation and dropout included.

    It is part of every checkpoint, so that an epoch which was interrupted is counted whole. Of several processes,
    a checkpoint keeps the first one's counts.
    """

    def __init__(
        self,
        counts: list[list[int]] | None = None,
        loss: float = 0.0,
        steps: int = 0,
        waited: float = 0.0,
        seconds: float = 0.0,
    ):
        self.counts = None if counts is None else torch.tensor(counts)
        self.loss: torch.Tensor | float = loss
        self.steps = steps
        self.waited = waited
        self.seconds = seconds
        self.resumed_at = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        counts = None if self.counts is None else self.counts.tolist()
        seconds = self.seconds + time.perf_counter() - self.resumed_at
        values = {"counts": counts, "loss": float(self.loss), "steps": self.steps, "waited": self.waited}
        return {"args": {**values, "seconds": seconds}, "attributes": {}}

    def add(self, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> None:
        """Counts a batch; without waiting for the device."""
        num_labels = logits.shape[-1]
        labels = labels.argmax(-1) if labels.is_floating_point() else labels
        known = labels >= 0
        pairs = (labels * num_labels + logits.argmax(-1))[known]
        counts = torch.bincount(pairs, minlength=num_labels**2).view(num_labels, num_labels)
        self.counts = counts if self.counts is None else self.counts.to(counts.device) + counts
        self.loss = self.loss + loss

    def clear(self) -> None:
        """Starts anew."""
        self.counts, self.loss, self.steps, self.waited, self.seconds = None, 0.0, 0, 0.0, 0.0
        self.resumed_at = time.perf_counter()

    def on_train_begin(self, args, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.resumed_at = time.perf_counter()

    def on_step_end(self, args, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.steps += 1


class EpochSetter(TrainerCallback):
    """Tells the training scans which epoch it is: their augmentation depends on it."""

    def on_epoch_begin(self, args, state: TrainerState, control, train_dataloader=None, **kwargs) -> None:
        dataset = getattr(train_dataloader, "dataset", None)
        if isinstance(dataset, ScanDataset):
            dataset.set_epoch(int((state.epoch or 0) + 1e-6))


class PlateauWarmup(TrainerCallback):
    """Steps the warmup of [`WarmupReduceLROnPlateau`], which the Trainer steps after validations only."""

    def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs) -> None:
        if isinstance(lr_scheduler, WarmupReduceLROnPlateau):
            lr_scheduler.warmup_step()


class QuietProgress(ProgressCallback):
    """A progress bar, without the raw dictionaries between."""

    def on_log(self, *args, **kwargs) -> None:
        pass


class ScanlineTrainer(Trainer):
    """
    Trainer of Scanline models.

    Adds to the library's: the optimizer Muon; warmup from `warmup_start_lr` over `warmup_epochs` before any schedule;
    accuracy and loss of the training scans, the share of time spent waiting for data, and the gap to validation; one
    line of `metrics.jsonl` for each validation. The loss is the model's own (see `tip_state_loss`), or the same
    through `compute_loss_func` for models of the library.
    """

    args: ScanlineTrainingArguments
    lr_scheduler: Any
    steps_in_epoch: int

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(TrainingRecord())
        self.add_callback(EpochSetter())
        self.add_callback(PlateauWarmup())
        self.average = None
        if self.args.average_epochs:
            assert isinstance(self.model, torch.nn.Module)
            self.average = WeightAverage(self.model)
            self.add_callback(self.average)
        if self.args.early_stopping_patience:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        self.remove_callback(PrinterCallback)
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(QuietProgress())

    @property
    def record(self) -> TrainingRecord:
        """The counts of the present epoch."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, TrainingRecord))

    def get_train_dataloader(self) -> DataLoader:
        """The training scans; on the way, how many steps an epoch of them takes, whatever `max_steps` says."""
        loader = super().get_train_dataloader()
        self.steps_in_epoch = math.ceil(len(loader) / self.args.gradient_accumulation_steps)
        if self.average is not None:
            self.average.num_steps = round(self.args.average_epochs * self.steps_in_epoch)
        return loader

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that `optim` names: [`Muon`], or one of the library's."""
        taken_apart = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if taken_apart and self.average is not None:
            raise ConfigurationError(
                "average_epochs needs whole weights, which FSDP and DeepSpeed take apart: use DDP."
            )
        if self.args.optim != MUON or self.optimizer is not None:
            return super().create_optimizer(model)
        if taken_apart:
            raise ConfigurationError("optim: muon needs whole matrices, which FSDP and DeepSpeed take apart: use DDP.")
        trained: Any = self.model if model is None else model
        self.optimizer = muon_for(
            trained,
            set(self.get_decay_parameter_names(trained)),
            lr=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The schedule that `lr_scheduler_type` names, after the warmup."""
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        optimizer = self.optimizer if optimizer is None else optimizer
        assert optimizer is not None, "the Trainer makes the optimizer first"
        if self.args.warmup_steps:
            num_warmup_steps = self.args.get_warmup_steps(num_training_steps)
        else:
            num_warmup_steps = round(self.args.warmup_epochs * self.steps_in_epoch)
        num_warmup_steps = min(num_warmup_steps, num_training_steps)
        if num_training_steps < FEW_STEPS and self.is_world_process_zero():
            logger.warning(
                "Training takes %d steps: with so few, verdicts may be right and still unsure. More come of a smaller "
                "per_device_train_batch_size or of more num_train_epochs.",
                num_training_steps,
            )
        start = min(1.0, self.args.warmup_start_lr / self.args.learning_rate) if self.args.learning_rate else 1.0
        shape = getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)
        if shape == "reduce_lr_on_plateau":
            self.lr_scheduler = WarmupReduceLROnPlateau(
                optimizer,
                num_warmup_steps,
                start,
                mode="max" if self.args.greater_is_better else "min",
                factor=self.args.plateau_factor,
                patience=self.args.plateau_patience,
            )
        else:
            self.lr_scheduler = warmup_then(optimizer, shape, num_warmup_steps, num_training_steps, start)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    @property
    def _reads_weights_itself(self) -> bool:
        """Whether the library's own way of loading a checkpoint would lose weights, see [`read_weights`]."""
        model: Any = self.model
        return is_of_library(model.config) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self.average is not None:
            self.average.load(Path(resume_from_checkpoint))
        if self._reads_weights_itself:
            target: Any = self.model if model is None else model
            target.load_state_dict(read_weights(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        # not in on_save, which comes after the state that stands for a whole checkpoint
        if self.average is not None and self.args.should_save:
            self.average.save(Path(output_dir))

    def _load_best_model(self) -> None:
        if self._reads_weights_itself:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """Times how long training waits for data."""
        start = time.perf_counter()
        # workers that outlive an epoch are started once, and once more after a stop: the random number that a data
        # loader draws for it would change the course of the run
        with torch.random.fork_rng(devices=[], enabled=self.args.dataloader_persistent_workers):
            samples = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.record.waited += time.perf_counter() - start
        return samples

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss, or `compute_loss_func`; counts what the training scans give on the way."""
        labels = inputs.get("labels")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            of_states = loss.detach()
            if (of_next_lines := outputs.get("next_line_loss")) is not None:  # which a validation does not have
                of_states = of_states * (1 - of_next_lines.detach() / outputs["loss"].detach())
            self.record.add(outputs["logits"].detach(), labels, of_states)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validates, and during training writes the epoch down."""
        training_seconds = self.record.seconds + time.perf_counter() - self.record.resumed_at
        # a data loader draws a random number whenever it starts: a run that goes on from a checkpoint made just before
        # a validation would otherwise not see the numbers of a run that was not stopped
        with torch.random.fork_rng():
            metrics = super().evaluate(*args, **kwargs)
        if self.is_in_train:
            self._write_epoch(metrics, training_seconds)
        return metrics

    def _write_epoch(self, metrics: dict[str, float], training_seconds: float) -> None:
        validation = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
        training = self._training_metrics(training_seconds)
        gap = {
            name: training[name] - validation[name]
            for name in ("loss", "accuracy", "balanced_accuracy")
            if name in training and validation.get(name) is not None
        }
        self.record.clear()
        if not self.is_world_process_zero():
            return
        folder = Path(str(self.args.output_dir))
        epoch = round(self.state.epoch or 0, 4)
        forget_metrics_after(folder, epoch - 2e-4)  # a run that goes on from a checkpoint comes by once more
        append_metrics(
            folder,
            {
                "epoch": epoch,
                "step": self.state.global_step,
                "learning_rate": self._get_learning_rate(),
                "train": training,
                "validation": validation,
                "gap": gap,
            },
        )
        parts = [
            f"epoch {epoch:g}/{round(self.state.max_steps / self.steps_in_epoch, 4):g}",
            *(
                f"train {name.replace('_', ' ')} {training[name]:.3f}"
                for name in ("loss", "accuracy")
                if name in training
            ),
            *(
                f"validation {name.replace('_', ' ')} {validation[name]:.3f}"
                for name in ("loss", "accuracy", "balanced_accuracy", "auroc")
                if validation.get(name) is not None
            ),
            f"{training_seconds:.0f} s, {100 * training.get('data_wait_share', 0):.1f} % waiting for data",
        ]
        tqdm.write(" · ".join(parts))

    def _training_metrics(self, seconds: float) -> dict[str, float]:
        record = self.record
        if record.counts is None:
            return {}
        counts = self.accelerator.reduce(record.counts.to(self.args.device), reduction="sum").double().cpu()
        loss = self.accelerator.reduce(torch.as_tensor(record.loss).to(self.args.device), reduction="mean")
        support = counts.sum(dim=1)
        recalls = (counts.diagonal() / support)[support > 0]
        return {
            "loss": float(loss) / max(record.steps, 1),
            "accuracy": float(counts.trace() / counts.sum()),
            "balanced_accuracy": float(recalls.mean()),
            "seconds": seconds,
            "scans_per_second": float(counts.sum()) / seconds,
            "data_wait_share": record.waited / seconds,
        }
