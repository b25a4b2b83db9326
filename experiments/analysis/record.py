"""Run folders as they are found on a disk: finished, still going on, broken."""

import ast
import contextlib
import functools
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..run_folder import ARGUMENTS_FILE, METRICS_FILE, NOTES_FILE, PATHS, RECIPE_FILE, SPLIT_FILE, SUMMARY_FILE
from .history import History, is_earlier, read_history

COMPLETE, UNFINISHED, BROKEN = "complete", "unfinished", "broken"
CONFIG_FILE = "config.json"
START = "model_name_or_path"  # a path, but also what was tried
# of the machine and the day, not of what was tried
OF_THE_MACHINE = {
    *PATHS, "debug", "disable_tqdm", "report_to", "use_cpu", "keep_in_memory", "dataloader_pin_memory",
    "dataloader_num_workers", "preprocessing_num_workers", "gradient_checkpointing", "activation_checkpointing",
    "logging_strategy", "save_strategy", "save_total_limit", "resume_from_checkpoint",
    "remove_unused_columns", "do_train", "do_eval", "do_predict", "restore_callback_states_from_checkpoint",
    "per_device_eval_batch_size", "run_name", "project", "logging_dir",
} - {START}  # fmt: skip
OF_SCORING = {"eval_line_counts", "eval_strategy"}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def dig(value: Any, *keys: str) -> Any:
    """`value[keys[0]][keys[1]]...`, or `None` where a step is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _declared(package: str, file: str, name: str) -> dict[str, dict[str | None, ast.expr]]:
    """The fields of a dataclass and what each is declared with, from its source: to import it takes seconds."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        node.target.id: {keyword.arg: keyword.value for keyword in node.value.keywords}
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call)
    }


@functools.cache
def library_defaults() -> dict[str, Any]:
    """Defaults of the options that the library declares and this project does not: a recipe leaves those out."""
    own = _declared("configuration", "arguments.py", "ScanlineTrainingArguments")
    library = _declared("transformers", "training_args.py", "TrainingArguments")
    defaults = {}
    for name in (name for name in library if name not in own):
        with contextlib.suppress(KeyError, ValueError):  # one that the library works out is not known
            defaults[name] = ast.literal_eval(library[name]["default"])
    return defaults


@dataclass(frozen=True)
class RunRecord:
    """
    What a run folder says.

    Attributes:
        folder: where it lies.
        name: of the run among those it is looked at with; never a path of the machine.
        state: `"complete"`, `"unfinished"` (going on, or stopped: a folder does not tell) or `"broken"`.
        problem: one sentence, unless it is complete.
        history: its epochs; empty for a run that only scored a model.
        summary: how it ended, empty if it has not.
        recipe: its options, also those at the library's default, without those of the machine; empty where it was not
            kept.
        config: that of its model, empty where it was not kept.
        notes: free text from `notes.md`.
    """

    folder: Path
    name: str
    state: str
    problem: str | None
    history: History
    summary: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    notes: str = ""

    @classmethod
    def load(cls, folder: Path, name: str | None = None) -> "RunRecord":
        """Reads a run folder of this project or of the earlier one; what cannot be read makes it a broken one."""
        problems: list[str] = []
        summary, config = (_read_mapping(folder / file, problems) for file in (SUMMARY_FILE, CONFIG_FILE))
        recipe = _read_mapping(folder / RECIPE_FILE, problems)
        history, notes = History.of({}), ""
        try:
            history = read_history(folder)
            if (folder / NOTES_FILE).is_file():
                notes = (folder / NOTES_FILE).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            problems.append(_without_path(error, folder))
        state = BROKEN if problems else COMPLETE
        if not problems and is_earlier(folder):
            ended = [
                max((p.epoch for p in history.known(part, "loss")), default=0) for part in ("train", "validation")
            ]
            if ended[0] > ended[1]:
                state = UNFINISHED
                problems.append(f"epoch {ended[0]:g} was trained, but not validated.")
        elif not problems and not summary:
            state = UNFINISHED
            planned = recipe.get("num_train_epochs")
            of_planned = f" of {planned:g}" if isinstance(planned, (int, float)) else ""
            last = history.epochs[-1] if len(history) else 0
            problems.append(f"{last:g}{of_planned} epochs, no {SUMMARY_FILE}: still going on, or stopped.")
        if recipe:
            seed = {"seed": summary["seed"]} if "seed" in summary else {}
            recipe = {**library_defaults(), **seed, **recipe}
        kept = {name: value for name, value in recipe.items() if name not in OF_THE_MACHINE}
        if kept.get(START):
            kept[START] = Path(str(kept[START])).name
        return cls(
            folder, name or folder.name, state, " ".join(problems) or None, history, summary, kept, config, notes
        )

    @property
    def label_names(self) -> list[str]:
        """Names of the classes in the order of their indices, empty where nothing says them."""
        names = self.config.get("id2label")
        if isinstance(names, dict) and all(str(key).isdigit() for key in names):
            return [str(names[key]) for key in sorted(names, key=int)]
        counts = dig(self.summary, "split", "counts", "train")
        return list(counts) if isinstance(counts, dict) else []

    @property
    def options(self) -> dict[str, Any]:
        """The recipe flat: entries of `config_overrides` by their own names."""
        options = {name: value for name, value in self.recipe.items() if name != "config_overrides"}
        overrides = self.recipe.get("config_overrides")
        return options | (overrides if isinstance(overrides, dict) else {})

    def setting(self, name: str) -> Any:
        """An option of the recipe, or else what the model's configuration has by that name; `None` without either."""
        return self.options.get(name, self.config.get(name))


def _without_path(error: Exception, folder: Path) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "a file is not text."
    if isinstance(error, OSError):
        return f"{Path(str(error.filename)).name}: {error.strerror}."
    return str(error).replace(f"{folder}{os.sep}", "")


def _read_mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON or YAML file that maps names to values; empty without it, and with a problem if it is anything else."""
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.load(text, _LOADER)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        value = None
    if isinstance(value, dict):
        return value
    problems.append(f"{path.name} is damaged.")
    return {}


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run of this project, or a checkpoint folder of the earlier one."""
    files = (METRICS_FILE, SUMMARY_FILE, SPLIT_FILE)
    return any((folder / file).is_file() for file in files) or is_earlier(folder)


def _runs_below(folder: Path) -> Iterable[Path]:
    for root, names, files in os.walk(folder):
        inner = [Path(root) / name for name in names]
        yield from (path for path in inner if is_run(path))
        names[:] = [path.name for path in inner if not is_run(path)]
        # launched, and nothing left yet
        suffix = ARGUMENTS_FILE.format(name="")
        launched = (Path(root) / file.removesuffix(suffix) for file in files if file.endswith(suffix))
        yield from (path for path in launched if not is_run(path))


def find_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """
    All runs that paths name: each a run folder, or a folder of them at any depth.

    Returns:
        In the order of their names; a name is the path below what all of them have in common.

    Raises:
        ValueError: if one of the paths holds no run.
    """
    folders: list[Path] = []
    for path in paths:
        path = Path.cwd() / path
        if not path.is_dir():
            if len(paths) > 1 and path.is_file():
                continue  # a pattern also catches the logs of runs
            raise ValueError(f"{path}: no such folder.")
        found = [path] if is_run(path) else list(_runs_below(path))
        if not found:
            raise ValueError(
                f"{path}: holds no run; a run folder has {METRICS_FILE} or {SUMMARY_FILE}, or train/epoch-1 and so on."
            )
        folders += found
    if not folders:
        raise ValueError("None of these is a folder.")
    common = os.path.commonpath([folder.parent for folder in folders])
    named = {folder: folder.relative_to(common).as_posix() for folder in folders}
    return [
        RunRecord.load(folder, name) for folder, name in sorted(named.items(), key=lambda item: natural_order(item[1]))
    ]


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sorts `fold10` after `fold9`."""
    parts = enumerate(re.split("([0-9]+)", name))
    return [(int(part), "") if place % 2 else (-1, part) for place, part in parts]


def varying(runs: Sequence[RunRecord], free: Iterable[str] = ()) -> list[str]:
    """
    Names of the options in which runs differ, sorted; those in `free`, and how a run was scored, are not looked at.

    An option that the recipe of a run lacks, as it is older than the option, makes no difference.
    """
    known = [run for run in runs if run.recipe]
    names = set().union(*(run.options for run in known)) - set(free) - OF_SCORING

    def values(name: str) -> set[str]:
        return {
            json.dumps(value)
            for run in known
            if (value := run.setting(name)) is not None or name in library_defaults()
        }

    return sorted(name for name in names if len(values(name)) > 1)


def json_ready(value: Any) -> Any:
    """NumPy's numbers as Python's, and what is not finite as `None`, for JSON that every reader takes."""
    if isinstance(value, dict):
        return {str(name): json_ready(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
