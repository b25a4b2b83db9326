"""Runs that were stopped: whether there is one, and from which checkpoint it goes on."""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from configuration import ConfigurationError, ScanlineTrainingArguments

from .library_models import is_of_library, read_weights
from .run_folder import RECIPE_FILE, SUMMARY_FILE, read_recipe

# what a run goes on with whatever is asked for: what its split was made by, and what is in the states of optimizer and
# schedule
RESTORED = (
    "dataset", "validation_fraction", "test_fraction", "num_folds", "fold", "dedupe", "optim", "learning_rate",
    "lr_scheduler_type", "weight_decay", "warmup_epochs", "warmup_start_lr",
)  # fmt: skip


def holds_run(folder: Path) -> bool:
    """Whether a new run would write over what is in a folder; metrics alone are of one cut off before it left more."""
    results = any((folder / name).exists() for name in (SUMMARY_FILE, TRAINER_STATE_NAME))
    return results or any(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}"))


def find_checkpoint(training_arguments: ScanlineTrainingArguments) -> str | None:
    """The checkpoint to go on from, if one was asked for."""
    wanted = training_arguments.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        return None
    folder = Path(str(training_arguments.output_dir) if str(wanted).lower() == "true" else str(wanted))
    if folder.name.startswith(PREFIX_CHECKPOINT_DIR):
        checkpoints = [folder]
    else:
        found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()]
        checkpoints = sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    # the state is written last: a checkpoint without it was cut off by the stop itself
    checkpoint = next((str(path) for path in checkpoints if (path / TRAINER_STATE_NAME).is_file()), None)
    if checkpoint is None:
        raise ConfigurationError(
            f"resume_from_checkpoint: there is no complete checkpoint in {folder}. Give --output_dir, the folder of "
            "the run that was stopped."
        )
    return checkpoint


def check_checkpoint(checkpoint: str, model: Any) -> None:
    """Raises [`ConfigurationError`] for a checkpoint of another model: the Trainer would half load it in silence."""
    if is_of_library(model.config):
        saved = {name: list(weight.shape) for name, weight in read_weights(checkpoint).items()}
    else:
        with safe_open(Path(checkpoint) / SAFE_WEIGHTS_NAME, framework="pt") as weights:
            saved = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    expected = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    if saved != expected:
        names = saved.keys() | expected.keys()
        differing = sorted(name for name in names if saved.get(name) != expected.get(name))
        raise ConfigurationError(
            f"{checkpoint}: is of another model than this run's ({len(differing)} weights differ, {differing[0]} for "
            "one). Resume with the recipe that the run was started with."
        )


def check_recipe(folder: Path, recipe: dict[str, Any]) -> None:
    """Raises [`ConfigurationError`] if a run is to go on with other options, which would not be heeded any more."""
    if not (folder / RECIPE_FILE).is_file():
        return
    before = read_recipe(folder)
    changed = [name for name in RESTORED if before.get(name) != recipe.get(name)]
    if changed:
        told = ", ".join(f"{name}={before.get(name)}, not {recipe.get(name)}" for name in changed)
        raise ConfigurationError(
            f"{folder} was begun with {told}, and goes on with it: resume with its own {RECIPE_FILE}, or choose "
            "another --output_dir."
        )
