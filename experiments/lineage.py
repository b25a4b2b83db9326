"""Which scans a model has seen, itself or by the runs that it comes from."""

from collections.abc import Sequence
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from data_scripts.splits import Split

from .run_folder import RECIPE_FILE, SPLIT_FILE, read_recipe


def run_of(model: str | Path | None) -> Path:
    """The folder of the run that a model is of, which may be one of its checkpoints."""
    folder = Path(model or "")
    return folder.parent if folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-") else folder


def lineage(model: str | Path | None) -> list[Path]:
    """
    The runs that a model comes from, as far as they are here: its own, and those that it started from, was joined of
    or learned from.
    """
    found: list[Path] = []
    wanted = [] if model is None else [run_of(model)]
    while wanted:
        folder = wanted.pop()
        if folder in found or not folder.is_dir():
            continue
        found.append(folder)
        if (folder / RECIPE_FILE).is_file():
            recipe = read_recipe(folder)
            several = [each for name in ("members", "teachers") for each in recipe.get(name) or []]
            wanted += [_named_by(folder, each) for each in (recipe.get("model_name_or_path"), *several) if each]
    return found


def _named_by(run: Path, model: str) -> Path:
    """The run that a recipe names, which may have been written in a folder above its own, not in the present one."""
    named = run_of(model)
    above = [] if named.is_absolute() else [parent / named for parent in run.resolve().parents]
    return next((folder for folder in above if (folder / RECIPE_FILE).is_file()), named)


def seen_by(folder: Path, dataset: str, scan_ids: Sequence[str]) -> list[str]:
    """
    Which scans a run was trained on.

    Scans of another dataset are told by the last part of their names, as one builder calls a scan by its class and
    its file, and another by its file; those that are only numbered there cannot be told.

    Args:
        folder: of the run; one without a split has seen none.
        dataset: that the scans are of.
        scan_ids: their names in it.

    Raises:
        ValueError: if its split cannot be read.
    """
    if not (folder / SPLIT_FILE).is_file():
        return []
    split = Split.load(folder / SPLIT_FILE)
    trained_on = split.parts.get("train", [])
    if split.dataset == dataset:
        return sorted(set(scan_ids) & set(trained_on))
    names = {name for scan_id in trained_on if not (name := scan_id.rpartition("/")[2]).isdigit()}
    return [scan_id for scan_id in scan_ids if scan_id.rpartition("/")[2] in names]
