"""
Ensembles: runs that were trained one by one, joined to one model that takes the mean of their logits.

Members that start or learn otherwise err otherwise, so that the mean is right more often than each, and less sure
where they disagree. After Lakshminarayanan et al. 2017, arXiv:1612.01474; the mean is that of logits, not of
probabilities, so that members stand side by side in one network with one classifier.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from data_scripts.splits import Split
from modeling_scanline import ScanlineCausalForImageClassification
from modeling_scanline.configuration_scanline_causal import MEMBER_SIZES

from .lineage import run_of
from .run_folder import RECIPE_FILE, SPLIT_FILE, SUMMARY_FILE, read_recipe

# entries of a configuration that members may differ in: what they were trained with, and what says nothing of states
FREE = {
    "class_weights", "label_smoothing", "line_loss_weighting", "next_line_weight", "next_line_steps",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "change_weights", "change_threshold",
    "num_members", "member_sizes", "transformers_version", "_name_or_path", "architectures", "auto_map", "dtype",
    *MEMBER_SIZES,
}  # fmt: skip


def check_members(folders: Sequence[str]) -> None:
    """
    Raises `ValueError` for runs that cannot be members of one model: of other scans, or that take other lines.

    Args:
        folders: of the runs.
    """
    first, *others = folders
    splits = [
        Split.load(path).parts if (path := run_of(folder) / SPLIT_FILE).is_file() else None for folder in folders
    ]
    processors = [AutoImageProcessor.from_pretrained(folder).to_dict() for folder in folders]
    for place, other in enumerate(others, start=1):
        if splits[place] != splits[0]:
            raise ValueError(
                f"members: {other} has not held out what {first} has, so that no scan would be left to score both on: "
                "train them with the same split."
            )
        if processors[place] != processors[0]:
            raise ValueError(f"members: {other} was trained on scans that were prepared in another way than {first}.")


def num_simulated(start: str | None) -> int | None:
    """Of how many simulated scans the weights are that a run started from; `None` where that is not known."""
    summary = Path(start or "") / SUMMARY_FILE
    of_start = json.loads(summary.read_text(encoding="utf-8")) if start and summary.is_file() else {}
    if of_start.get("dataset") != "simulated":
        return None
    return sum(of_start["split"]["counts"]["train"].values())


def describe_member(folder: Path) -> dict[str, Any]:
    """How a member was trained, as far as its run says."""
    recipe = read_recipe(folder) if (folder / RECIPE_FILE).is_file() else {}
    summary = folder / SUMMARY_FILE
    of_run = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}
    return {
        **{name: of_run.get(name) for name in ("epochs", "steps", "seed")},
        "rehearsed": recipe.get("rehearsal_scans") or 0,
        "start_scans": num_simulated(recipe.get("model_name_or_path")),
    }


def join(models: Sequence[ScanlineCausalForImageClassification]) -> ScanlineCausalForImageClassification:
    """
    One model of several that are not calibrated: its logits are the means of theirs. One that was joined itself brings
    all its members, which count as much together as another one.

    Args:
        models: causal ones of the same states, that take the same lines.

    Raises:
        ValueError: for models that cannot stand side by side.
    """
    first = models[0]
    for model in models:
        if not isinstance(model, ScanlineCausalForImageClassification):
            raise ValueError(f"members must be causal models, got {model.config.model_type}.")
        ours, theirs = ({**each.config.to_dict(), **dict.fromkeys(FREE)} for each in (first, model))
        if differing := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
            name = differing[0]
            raise ValueError(f"members must have the same {name}, got {ours.get(name)} and {theirs.get(name)}.")
    config = copy.deepcopy(first.config)
    members = [member for model in models for member in model.scanline.members]
    config.num_members, config.next_line_weight = len(members), 0.0
    configs = [of_member for model in models for of_member in model.config.member_configs]
    sizes = [{name: getattr(of_member, name) for name in MEMBER_SIZES} for of_member in configs]
    others = [{name: value for name, value in other.items() if value != sizes[0][name]} for other in sizes[1:]]
    config.member_sizes = others if any(others) else None
    joined = ScanlineCausalForImageClassification(config)
    weights: dict[str, torch.Tensor] = {}
    for place, member in enumerate(members):
        where = f"scanline.others.{place - 1}." if place else "scanline."
        of_member = {name: weight for name, weight in member.state_dict().items() if not name.startswith("others.")}
        weights |= {f"{where}{name}": weight for name, weight in of_member.items()}
    heads = [model.classifier for model in models]
    weights["classifier.weight"] = torch.cat([head.weight for head in heads], dim=1) / len(heads)
    weights["classifier.bias"] = torch.stack([head.bias for head in heads]).mean(dim=0)
    joined.load_state_dict(weights)
    return joined
