"""The folder that a run leaves: what it was, how it went, how it ended."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import CONFIG_NAME
from huggingface_hub.errors import HFValidationError

CARD_FILE = "README.md"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
SPLIT_FILE = "split.json"
RECIPE_FILE = "recipe.yaml"
PRETRAINING_RECIPE_FILE = "pretraining_recipe.yaml"  # of a released model: of the run that its weights started from
RELEASE_FILE = "release.json"
FAILURES_FILE = "failures.json"  # where the model fails, and the picture of it
FAILURES_PICTURE = "failures.png"
NOTES_FILE = "notes.md"
ARGUMENTS_FILE = "{name}.arguments.json"  # beside the folder of a run that was launched
# options that are of the machine, not of the model
PATHS = (
    "output_dir", "runs_dir", "data_dir", "cache_dir", "split_file", "predict_dir", "teachers", "model_name_or_path",
    "members",
)  # fmt: skip


def check_model(name: str) -> None:
    """
    Tells a folder that is not there, or holds no model, from a model of the Hub, which the library would ask for it,
    again and again.

    Args:
        name: of a folder, or of a model of the Hub: `user/model`.

    Raises:
        ValueError: if the folder holds no model; or if there is no such folder and `name` is none of the Hub's, or its
            first part is a folder here and no such model was ever fetched.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / CONFIG_NAME).is_file():
            raise ValueError(f"{name} holds no model: it has no {CONFIG_NAME}.")
        return
    try:
        fetched = isinstance(try_to_load_from_cache(name, CONFIG_NAME), str)
        meant = folder.is_absolute() or name.startswith((".", "~")) or Path(folder.parts[0]).is_dir()
    except HFValidationError:
        fetched, meant = False, True
    if meant and not fetched:
        raise ValueError(f"there is no folder {name} with a model here.")


def write_whole(path: Path, text: str) -> None:
    """Writes a file in one step: whoever reads it meanwhile, or after a stop in between, finds the old or the new."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def append_metrics(folder: Path, record: dict[str, Any]) -> None:
    """Adds one epoch to the metrics of a run."""
    with (folder / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All epochs of a run; a line that a crash left half-written is dropped."""
    path = folder / METRICS_FILE
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def forget_metrics_after(folder: Path, epoch: float) -> None:
    """Drops epochs that a resumed run is about to go through again."""
    path = folder / METRICS_FILE
    if path.exists():
        kept = [record for record in read_metrics(folder) if record["epoch"] <= epoch + 1e-6]
        write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))


def write_recipe(folder: Path, recipe: dict[str, Any], name: str = RECIPE_FILE) -> None:
    """Writes the resolved recipe: `--config` with it repeats the run."""
    text = yaml.safe_dump(recipe, sort_keys=True, allow_unicode=True)
    (folder / name).write_text(text, encoding="utf-8")


def read_recipe(folder: Path, name: str = RECIPE_FILE) -> dict[str, Any]:
    """
    The resolved recipe that a run wrote.

    Raises:
        OSError: if there is none.
        ValueError: for a file that maps no options to values.
    """
    try:
        recipe = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{name} maps no options to values")
    return recipe


def portable_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe as others may read it, without the paths of the machine; a model that it got from the Hub stays."""

    def of_machine(name: str, value: Any) -> bool:
        if name == "model_name_or_path" and value is not None:
            return Path(value).is_absolute() or Path(value).exists()
        return name in PATHS

    return {name: value for name, value in recipe.items() if not of_machine(name, value)}


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Writes how a run ended, as JSON."""
    write_whole(folder / SUMMARY_FILE, json.dumps(summary, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What a run ran on: device, number of processor threads, versions."""
    import torch  # takes seconds, which those who only read run folders need not wait

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    packages = ("torch", "transformers", "accelerate", "datasets")
    return {
        "device": accelerator or f"CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
