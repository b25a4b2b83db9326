"""From flags and recipes (YAML, one flat file a run) to the options of a run, and back."""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments

from .arguments import (
    ConfigurationError,
    DataArguments,
    ModelArguments,
    ScanlineTrainingArguments,
    read_overrides,
    unknown_name,
)

RECIPES = Path(__file__).parent / "recipes"
SWEEPS = Path(__file__).parent / "sweeps"
GROUPS: tuple[Any, ...] = (ModelArguments, DataArguments, ScanlineTrainingArguments)

DESCRIPTION = """Trains, evaluates and applies models of the state of an STM tip.

Every option can stand in a recipe (a flat YAML file, see configuration/recipes) or be given here, which wins:

  train on simulated scans       python run_classification.py --config configuration/recipes/quickstart.yaml
  train on labelled real scans   accelerate launch run_classification.py --config configuration/recipes/causal.yaml \\
                                   --dataset hsi100 --data_dir path/to/SPM-Toolbox
  train on your own scans        ... --dataset folder --data_dir scans/   (one folder a class; .sxm, .Z_mtrx, .png ...)
  learn from other runs, too     ... --teachers runs/first runs/second --teacher_share 0.5  (of the same split)
  join runs to one model         ... --config ensemble --members runs/first runs/second  (of the same split)
  compare with a published CNN   ... --config configuration/recipes/cnn.yaml
  compare with the library's     ... --model transformers:convnext --config_overrides '{"num_channels": 1}'
  change a hyper-parameter       ... --learning_rate 3e-4 --config_overrides '{"num_hidden_layers": 4}'
  go on after a stop             ... --output_dir runs/20261123_101500 --resume_from_checkpoint true
  evaluate a run                 ... --do_eval --model_name_or_path runs/20261123_101500  (and its --dataset options)
  classify files                 ... --do_predict --model_name_or_path runs/20261123_101500 --predict_dir scans/
  publish a run at its end       ... --push_to_hub --hub_model_id OWNER/NAME  (private; or --hub_private_repo no)
  publish a run later            python -m experiments.publish runs/20261123_101500 --repo_id OWNER/NAME
"""


def read_recipe(path: str | Path) -> dict[str, Any]:
    """
    Reads a recipe.

    Raises:
        ConfigurationError: if it is missing, not flat YAML, or has an unknown key.
    """
    path = Path(path)
    if not path.is_file() and (RECIPES / f"{path.name}.yaml").is_file():
        path = RECIPES / f"{path.name}.yaml"
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        names = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise ConfigurationError(f"{path}: no such recipe ({error.strerror}). There are: {names}.") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8, as YAML is ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(recipe, dict):
        raise ConfigurationError(f"{path}: a recipe maps names of options to values, got {type(recipe).__name__}.")
    known = {entry.name for arguments in GROUPS for entry in fields(arguments)}
    for name in recipe:
        if name not in known:
            raise ConfigurationError(f"{path}: {unknown_name(str(name), known)}")
    return recipe


def parse_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[ModelArguments, DataArguments, ScanlineTrainingArguments]:
    """
    Parses a command line, `--config recipe.yaml` and flags that win over it.

    Raises:
        ConfigurationError: for a recipe or values that make no run.
        SystemExit: for flags that argparse refuses, and after `--help`.
    """
    parser = HfArgumentParser(
        list(GROUPS),
        description=DESCRIPTION,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="RECIPE", help="Recipe: a YAML file, or the name of one that comes along.")
    path = parser.parse_known_args(argv)[0].config
    recipe = {} if path is None else read_recipe(path)
    optional = [action.dest for action in parser._actions if action.default is None]
    parser.set_defaults(**recipe)
    values = vars(parser.parse_args(argv))
    for action in parser._actions:  # argparse checks flags, but not the defaults that a recipe has set
        left_open = values.get(action.dest) is None and action.dest in optional
        if action.dest in recipe and action.choices and values[action.dest] not in action.choices and not left_open:
            raise ConfigurationError(
                f"{action.dest} must be one of {', '.join(map(str, action.choices))}, got {values[action.dest]!r}."
            )
    try:
        # a flag changes some entries of a recipe, and leaves the rest
        if values["model"] == recipe.get("model", ModelArguments.model):
            of_recipe, of_flag = (read_overrides(each.get("config_overrides")) for each in (recipe, values))
            values["config_overrides"] = of_recipe | of_flag
        built = [
            arguments(**{entry.name: values[entry.name] for entry in fields(arguments) if entry.init})
            for arguments in GROUPS
        ]
    except ConfigurationError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigurationError(str(error).strip().splitlines()[0]) from error
    return tuple(built)


def resolved_recipe(*arguments: Any) -> dict[str, Any]:
    """The options of a run, as a recipe holds them; of the library's, those that differ from its defaults."""
    recipe: dict[str, Any] = {}
    library = {entry.name: entry for entry in fields(TrainingArguments)}
    own = set(vars(ScanlineTrainingArguments)["__annotations__"])
    for group in arguments:
        values = (
            asdict(group)
            if not isinstance(group, TrainingArguments)
            else {entry.name: getattr(group, entry.name) for entry in fields(group) if entry.init}
        )
        for name, value in values.items():
            if isinstance(group, TrainingArguments) and name not in own:
                entry = library[name]
                default = (
                    entry.default
                    if entry.default is not MISSING
                    else (entry.default_factory() if entry.default_factory is not MISSING else None)
                )
                # a repetition of a run that was resumed has no checkpoint to go on from
                if value == default or name.endswith("token") or name == "resume_from_checkpoint":
                    continue
            value = getattr(value, "value", value)
            if isinstance(value, (str, int, float, bool, list, dict, type(None))):
                recipe[name] = value
    return recipe
