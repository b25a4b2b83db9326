"""The options of a run: which model, which scans, and how it is trained."""

import difflib
import json
from dataclasses import dataclass, field, fields
from datetime import datetime
from os import environ
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import CONFIG_MAPPING, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
from transformers.training_args import OptimizerNames

from data_scripts.augmentation import Augmentation
from data_scripts.labels import LABEL_POLICIES
from data_scripts.source import ScanSource
from data_scripts.splits import SPLIT_METHODS
from modeling_scanline import ScanlineCausalConfig, ScanlineCNNConfig, ScanlineLRCNConfig, ScanlineViTConfig
from modeling_scanline.image_processing_scanline import NORMALIZATIONS

MODEL_CONFIGS = {
    "causal": ScanlineCausalConfig,
    "vit": ScanlineViTConfig,
    "cnn": ScanlineCNNConfig,
    "lrcn": ScanlineLRCNConfig,
}
LIBRARY_PREFIX = "transformers:"
OF_USERS = ("folder", "manifest", "npz")  # datasets whose scans may be higher or wider than long
LOSS_ENTRIES = ("class_weights", "label_smoothing")  # what the project's loss reads from a configuration
LOWER_IS_BETTER = ("loss", "expected_calibration_error")  # of the figures that an epoch may be chosen by
MUON = "muon"
OPTIMIZERS = (MUON, *(name.value for name in OptimizerNames))
SCHEDULES = ("constant_with_warmup", "cosine", "reduce_lr_on_plateau")


class ConfigurationError(ValueError):
    """Arguments that make no run. The message says what is wrong, where, and what to do."""


def check_at_least(arguments: Any, least: int, *names: str) -> None:
    """Raises [`ConfigurationError`] for an option that is no number of at least `least`."""
    for name in names:
        value = getattr(arguments, name)
        if not isinstance(value, int | float) or not value >= least:
            raise ConfigurationError(f"{name} must be at least {least}, got {value!r}.")


def read_overrides(given: dict[str, Any] | str | None) -> dict[str, Any]:
    """Entries of a model configuration, from a recipe or as JSON; raises [`ConfigurationError`] for what is none."""
    try:
        overrides = json.loads(given) if isinstance(given, str) else given or {}
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"--config_overrides: not JSON ({error}). Give it as '{{\"num_hidden_layers\": 2}}'."
        ) from error
    if not isinstance(overrides, dict):
        raise ConfigurationError(f"config_overrides must map names to values, got {overrides!r}.")
    return overrides


@dataclass
class ModelArguments:
    """Which model."""

    _argument_group_name = "model"

    model: str = field(
        default="causal",
        metadata={
            "help": f"Which model to build: {', '.join(MODEL_CONFIGS)}, or, by its type, an image classifier of the "
            f"library, such as {LIBRARY_PREFIX}vit or {LIBRARY_PREFIX}convnext."
        },
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder of a run, or Hub repository, whose weights to start from or to apply."}
    )
    members: list[str] | None = field(
        default=None,
        metadata={
            "help": "Folders of runs of causal models with the same split, to join to one model with the mean of "
            "their logits: with --do_eval it is scored and written, with --do_train trained further."
        },
    )
    config_overrides: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Entries of the model configuration to change, as JSON: '{\"num_hidden_layers\": 4}'; those of a "
            "recipe of the same model stay."
        },
    )

    def __post_init__(self) -> None:
        self.config_overrides = read_overrides(self.config_overrides)
        known = {entry.name for entry in fields(self.config_class())} | set(LOSS_ENTRIES)
        for name in self.config_overrides:
            if name not in known:
                raise ConfigurationError(f"config_overrides: {unknown_name(name, known)}")
        if self.members and self.model_name_or_path is not None:
            raise ConfigurationError("members are joined to a model, and model_name_or_path is one: give one of them.")
        if self.members is not None and len(self.members) < 2:
            raise ConfigurationError("members: give the folders of two or more runs, --members runs/one runs/other.")

    @property
    def sources(self) -> list[str]:
        """Where weights come from: `members`, or `model_name_or_path`, or nowhere."""
        return self.members or ([] if self.model_name_or_path is None else [self.model_name_or_path])

    def config_class(self) -> type[Any]:
        """
        Class of the configuration that `model` names.

        Raises:
            ConfigurationError: if there is no such model.
        """
        if self.model in MODEL_CONFIGS:
            return MODEL_CONFIGS[self.model]
        model_type = self.model.removeprefix(LIBRARY_PREFIX)
        if model_type == self.model:
            raise ConfigurationError(
                f"model must be one of {', '.join(MODEL_CONFIGS)}, or {LIBRARY_PREFIX} and an image classifier of the "
                f"library, got {self.model!r}."
            )
        if model_type not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
            raise ConfigurationError(
                f"model: {unknown_name(model_type, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, 'image classifier')}"
            )
        return CONFIG_MAPPING[model_type]


@dataclass
class DataArguments(ScanSource):
    """Which scans, what counts as their label, how they are split and augmented."""

    _argument_group_name = "data"

    normalization: str | None = field(
        default=None,
        metadata={
            "help": "Heights to mean 0 and standard deviation 1: of each line, of each line after taking out a "
            "straight line (flat_line, for heights as the microscope measures them), of the scan as a whole "
            "(global), or not at all (none). By default what the weights that are started from or applied were "
            "trained with, and line for new ones.",
            "choices": list(NORMALIZATIONS),
        },
    )
    train_labels: str = field(
        default="majority",
        metadata={
            "help": "Labels to train on: one class scores 1 and all others 0 (unanimous), one class scores at "
            "least a half (majority), or all votes as a distribution (soft).",
            "choices": list(LABEL_POLICIES),
        },
    )
    teachers: list[str] | None = field(
        default=None,
        metadata={
            "help": "Folders of runs to learn from as well (distillation), which held out what this one holds out: "
            "their mean verdict on a scan is part of its label, or its label where people gave none."
        },
    )
    teacher_share: float = field(
        default=0.0, metadata={"help": "Share of the teachers in the label of a scan that people have labelled."}
    )
    rehearsal_scans: int = field(
        default=0,
        metadata={
            "help": "Simulated scans to train on beside those of the dataset, so that a model which was trained on "
            "simulated ones first does not forget them; left out where the classes are others. They are never scored."
        },
    )
    eval_labels: str = field(
        default="unanimous",
        metadata={"help": "Labels to score on.", "choices": ["unanimous", "majority"]},
    )
    eval_complete_scans: bool | None = field(
        default=None,
        metadata={
            "help": "Score only scans with at least as many lines as pixels per line, as published; by default so for "
            "the datasets that come with the project, and not for scans of your own (folder, manifest, npz)."
        },
    )
    split: str = field(
        default="sessions",
        metadata={
            "help": "sessions: whole sessions of the microscope are held out. random: single scans are, so "
            "that neighbours of a validation scan are trained on. all: nothing is, for weights to ship. validation: "
            "everything is, to score a model on scans that it has not seen.",
            "choices": list(SPLIT_METHODS),
        },
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the split."})
    split_file: str | None = field(
        default=None,
        metadata={"help": "A split.json to use. By default that of model_name_or_path, if it is of this dataset."},
    )
    validation_fraction: float = field(default=0.2, metadata={"help": "Share of the scans to validate on."})
    test_fraction: float = field(
        default=0.0, metadata={"help": "Share of the scans to keep for one last test; nothing is chosen on it."}
    )
    num_folds: int = field(
        default=0,
        metadata={"help": "Cross-validation: parts to divide the scans into, not by validation_fraction; 0 none."},
    )
    fold: int = field(default=0, metadata={"help": "Cross-validation: the part to validate on, from 0."})
    dedupe: bool = field(
        default=False,
        metadata={
            "help": "Keep scans that are nearly the same (copies, overlapping frames; turned, mirrored, shifted) on "
            "one side of the split: python -m data_scripts.leakage shows them."
        },
    )
    train_fraction: float = field(
        default=1.0,
        metadata={"help": "Share of the training scans to train on, of each class; to see what labels are worth."},
    )
    keep_in_memory: bool = field(
        default=True,
        metadata={
            "help": "Hold all scans in memory; if not, each batch is read from the prepared dataset on the disk."
        },
    )
    class_weights: dict[str, float] | str | None = field(
        default="balanced",
        metadata={
            "help": "Weights of the classes in the loss: balanced (inverse frequency in the training part), "
            "none, or JSON: a number for each class by name, '{\"rows\": 2.0}'; those not named weigh 1."
        },
    )
    unused_classes: int = field(
        default=0,
        metadata={
            "help": "Outputs without a class, beside those of the data: a mistake that the log's baseline made."
        },
    )
    augment: bool = field(default=True, metadata={"help": "Whether to augment training scans at all."})
    horizontal_flip: float = field(default=0.5, metadata={"help": "Probability of mirroring a scan."})
    vertical_flip: float = field(default=0.5, metadata={"help": "Probability of turning a scan upside down."})
    min_crop: float = field(default=0.7, metadata={"help": "Smallest side of a random crop; 1 does not crop."})
    max_crop: float = field(
        default=1.0,
        metadata={"help": "Largest side of one, from 1 on: a larger area, mirrored beyond the scan's edges."},
    )
    rotation: float = field(default=0.0, metadata={"help": "Largest angle by which a scan is turned, in degrees."})
    shear: float = field(default=0.0, metadata={"help": "Largest shear along the lines, in pixels a line."})
    contrast: float = field(default=0.3, metadata={"help": "Largest logarithm of a random power of the heights."})
    noise: float = field(default=0.1, metadata={"help": "Largest standard deviation of noise added to a line of 1."})
    line_dropout: float = field(default=0.05, metadata={"help": "Probability of a line to be blanked."})
    random_cutoff: float = field(default=0.0, metadata={"help": "Probability of a scan to end early (for the ViT)."})
    segment_lines: int = field(
        default=0,
        metadata={
            "help": "Train the first segment_epochs on so many consecutive lines of each scan: shorter, so that the "
            "same time shows the model more scans. 0: whole scans throughout."
        },
    )
    segment_epochs: int = field(default=0, metadata={"help": "Epochs of segments, before whole scans."})
    min_cutoff_lines: int = field(default=5, metadata={"help": "Fewest lines of a scan that ends early."})
    predict_dir: str | None = field(
        default=None,
        metadata={"help": "With --do_predict: folder of scans to classify; by default the validation part."},
    )

    def __post_init__(self) -> None:
        if self.eval_complete_scans is None:
            self.eval_complete_scans = self.dataset not in OF_USERS
        if isinstance(self.class_weights, str) and self.class_weights[:1] in "[{":
            try:
                self.class_weights = json.loads(self.class_weights)
            except json.JSONDecodeError as error:
                raise ConfigurationError(f"--class_weights: not JSON ({error}).") from error
        if isinstance(self.class_weights, str) and self.class_weights not in ("balanced", "none"):
            raise ConfigurationError(
                f"class_weights must be balanced, none, or numbers by class name, got {self.class_weights!r}."
            )
        if self.segment_lines < 0 or self.segment_epochs < 0:
            raise ConfigurationError(
                f"segment_lines and segment_epochs must not be negative, got {self.segment_lines} and "
                f"{self.segment_epochs}."
            )
        check_at_least(self, 1, "pixels_per_line", "max_lines")
        if self.unused_classes < 0:
            raise ConfigurationError(f"unused_classes must not be negative, got {self.unused_classes}.")
        if self.rehearsal_scans < 0:
            raise ConfigurationError(f"rehearsal_scans must not be negative, got {self.rehearsal_scans}.")
        if not 0 <= self.teacher_share <= 1:
            raise ConfigurationError(f"teacher_share must lie in [0, 1], got {self.teacher_share}.")
        if bool(self.teachers) != (self.teacher_share > 0):
            raise ConfigurationError(
                "teachers and teacher_share go together: the folders of runs to learn from, and how much, as "
                "--teachers runs/first runs/second --teacher_share 0.5."
            )
        if self.fold and not self.num_folds:
            raise ConfigurationError(f"fold={self.fold} is of a cross-validation: give --num_folds, too.")
        if not 0 < self.train_fraction <= 1:
            raise ConfigurationError(f"train_fraction must lie in (0, 1], got {self.train_fraction}.")
        try:
            self.augmentation()
        except ValueError as error:
            raise ConfigurationError(str(error)) from error

    def augmentation(self) -> Augmentation | None:
        """The augmentation of training scans."""
        if not self.augment:
            return None
        return Augmentation(**{entry.name: getattr(self, entry.name) for entry in fields(Augmentation)})


@dataclass
class ScanlineTrainingArguments(TrainingArguments):
    """The library's training arguments, with the defaults of this project and the schedule of its log."""

    _argument_group_name = "training (the library's TrainingArguments, with this project's defaults)"

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the run; by default a new one, named by the time, in runs_dir."}
    )
    project: str = field(default="scanline", metadata={"help": "Project of what is tracked with --report_to trackio."})
    runs_dir: str = field(default="runs", metadata={"help": "Where folders of runs are made."})
    num_train_epochs: float = field(default=50, metadata={"help": "Epochs to train."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Scans a step on each device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Scans a step of evaluation."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Largest learning rate."})
    lr_scheduler_type: str = field(
        default="constant_with_warmup",
        metadata={"help": f"After the warmup: {', '.join(SCHEDULES)}.", "choices": list(SCHEDULES)},
    )
    optim: str = field(
        default=OptimizerNames.ADAMW_TORCH_FUSED.value,
        metadata={
            "help": "Optimizer: muon, which learns in fewer epochs (not with FSDP or DeepSpeed), or the library's."
        },
    )
    warmup_epochs: float = field(
        default=5.0, metadata={"help": "Epochs of linear warmup; warmup_steps, where given, wins."}
    )
    warmup_start_lr: float = field(default=1e-6, metadata={"help": "Learning rate that the warmup starts from."})
    plateau_factor: float = field(
        default=0.5, metadata={"help": "reduce_lr_on_plateau: what the rate is multiplied by."}
    )
    plateau_patience: int = field(default=5, metadata={"help": "reduce_lr_on_plateau: epochs without progress."})
    early_stopping_patience: int = field(
        default=0, metadata={"help": "Epochs without progress to stop after; 0 never."}
    )
    average_epochs: float = field(
        default=0.0,
        metadata={
            "help": "Ends with the mean of the weights of so many last epochs, steadier than the last ones; not with "
            "load_best_model_at_end or early_stopping_patience. 0: with the last weights."
        },
    )
    eval_line_counts: list[int] = field(
        default_factory=lambda: [5, 10, 20, 40, 64, 128], metadata={"help": "Numbers of lines to score after."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to validate."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the training loss."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept, beside the best."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Whether the run ends with its best epoch."})
    metric_for_best_model: str = field(default="balanced_accuracy", metadata={"help": "What best means."})
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Whether more of it is better; by default of all but losses and errors."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Whether a resumed run goes on with the counts of early stopping and so on."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not of use here: batches come ready-made."})

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            # otherwise two processes launched on a CPU each train alone, on all scans, without a word
            self.use_cpu = True
        check_at_least(self, 1, "per_device_train_batch_size", "per_device_eval_batch_size")
        check_at_least(self, 1, "gradient_accumulation_steps")
        check_at_least(self, 0, "learning_rate", "weight_decay", "warmup_epochs", "num_train_epochs", "seed")
        if not 0 < self.plateau_factor < 1:
            raise ConfigurationError(f"plateau_factor must lie in (0, 1), got {self.plateau_factor}.")
        is_named_by_time = self.output_dir is None
        if self.output_dir is None:
            self.output_dir = str(Path(self.runs_dir) / new_run_name())
        if self.early_stopping_patience and self.eval_strategy == "no":
            raise ConfigurationError("early_stopping_patience needs validation during training: set eval_strategy.")
        if not (self.do_train or self.do_eval or self.do_predict):
            self.do_train = self.do_eval = True
        if self.push_to_hub and not (self.hub_model_id and self.do_train and self.do_eval):
            raise ConfigurationError(
                "push_to_hub publishes a run that trains and evaluates (do_train, do_eval) and needs hub_model_id, "
                "OWNER/NAME. For a folder that there is already: python -m experiments.publish."
            )
        if self.average_epochs and (
            self.load_best_model_at_end
            or self.early_stopping_patience
            or not 0 < self.average_epochs <= self.num_train_epochs
        ):
            raise ConfigurationError(
                "average_epochs ends a run with the mean of its last weights, not with its best epoch: it lies in "
                "[0, num_train_epochs] and needs --no_load_best_model_at_end, without early_stopping_patience, got "
                f"{self.average_epochs}. --average_epochs 0 ends with the last or the best weights instead."
            )
        if self.label_smoothing_factor:
            raise ConfigurationError(
                "label_smoothing_factor would replace the project's loss, which weighs classes and scores every line: "
                f"""give --config_overrides '{{"label_smoothing": {self.label_smoothing_factor}}}'."""
            )
        if self.lr_scheduler_kwargs:
            raise ConfigurationError(
                "lr_scheduler_kwargs is not heeded: a schedule is set by warmup_epochs, warmup_start_lr, "
                "plateau_factor and plateau_patience."
            )
        if any(count < 1 for count in self.eval_line_counts):
            raise ConfigurationError(f"eval_line_counts must be at least 1, got {self.eval_line_counts}.")
        if self.greater_is_better is None:
            figure = (self.metric_for_best_model or "loss").removeprefix("eval_").partition("_at_")[0]
            self.greater_is_better = figure not in LOWER_IS_BETTER
        do_eval, optim = self.do_eval, self.optim
        if optim not in OPTIMIZERS:
            raise ConfigurationError(f"optim: {unknown_name(str(optim), OPTIMIZERS, 'optimizer')}")
        if optim == MUON:
            self.optim = OptimizerNames.ADAMW_TORCH  # the library takes no name but its own
        super().__post_init__()
        if optim == MUON:
            self.optim = optim
        self.do_eval = do_eval  # the library sets it wherever there is an eval_strategy, also for predictions alone
        self.check_processes()
        if is_named_by_time:  # they look at the clock one after the other
            (self.output_dir,) = broadcast_object_list([self.output_dir])

    def check_processes(self) -> None:
        """Raises [`ConfigurationError`] if processes were launched that do not know of each other."""
        launched = int(environ.get("WORLD_SIZE", 1))
        if launched > 1 and self.world_size != launched:
            raise ConfigurationError(
                f"{launched} processes were launched, but the Trainer sees {self.world_size}: they would all train "
                "alone. On a CPU, launch with accelerate_configs/cpu_two_processes.yaml."
            )


def new_run_name() -> str:
    """`YYYYMMDD_HHMMSS`, or `YYYYMMDD_HHMMSS_jJOBID` under SLURM; the same whenever a process asks."""
    name = environ.setdefault("SCANLINE_RUN_TIME", datetime.now().strftime("%Y%m%d_%H%M%S"))
    job = environ.get("SLURM_JOB_ID")
    return f"{name}_j{job}" if job else name


def unknown_name(name: str, known: Any, kind: str = "option") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"there is no {kind} {name!r}" + (f"; did you mean {close[0]!r}?" if close else ".")
