"""
Makes a Hub folder of a model that was trained on every scan, with a card whose figures come from cross-validation.

    python run_classification.py --config causal_small --dataset hsi100 --data_dir path/to/SPM-Toolbox \\
        --split all --output_dir runs/release
    python -m benchmarks.accuracy --data_dir path/to/SPM-Toolbox --models causal_small --splits sessions --seeds 42
    python -m experiments.release --run runs/release --folds runs/accuracy/causal_small/sessions_* \\
        --output model_cards/scanline-causal-hsi100
    python -m experiments.failures model_cards/scanline-causal-hsi100

The folds are runs of the same recipe, each scored on sessions that it has not seen. Their verdicts give the figures
and the calibration, which is written into the model's configuration; what it does is measured on folds that it was not
found on. The card says which scans stand behind every number.
"""

import argparse
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from data_scripts.splits import Split
from modeling_scanline.image_processing_scanline import NORMALIZATIONS

from .analysis.record import OF_THE_MACHINE
from .calibration import Calibration, calibration_error_by_chance, cross_calibrated
from .card import FIGURES, write_card
from .decision import cross_decided, fit_thresholds
from .intervals import figures_by_lines
from .probabilities import Probabilities
from .run_folder import (
    FAILURES_FILE,
    FAILURES_PICTURE,
    PRETRAINING_RECIPE_FILE,
    RECIPE_FILE,
    RELEASE_FILE,
    SPLIT_FILE,
    SUMMARY_FILE,
    portable_recipe,
    read_recipe,
    write_recipe,
)
from .scoring import load_metric

# what may differ between the run that is shipped and the folds that vouch for it
FREE = OF_THE_MACHINE | {
    "split", "split_seed", "num_folds", "fold", "validation_fraction", "seed", "eval_strategy",
    "load_best_model_at_end", "eval_line_counts",
}  # fmt: skip
DTYPES = ("float32", "float16", "bfloat16")
console = Console(markup=False)  # names may have brackets


@dataclass(frozen=True)
class Fold:
    """A run that vouches for the model: what it was trained with, and what it said of sessions it had not seen."""

    summary: dict[str, Any]
    recipe: dict[str, Any]
    verdict: Probabilities
    held_out: frozenset[str]
    trained_on: frozenset[str]

    @classmethod
    def load(cls, folder: Path) -> "Fold":
        """Reads a run; raises `ValueError` or `OSError` if it is none, or has not ended."""
        split = Split.load(folder / SPLIT_FILE)
        return cls(
            summary=json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8")),
            recipe=read_recipe(folder),
            verdict=Probabilities.load(folder),
            held_out=frozenset(split.sessions["validation"]),
            trained_on=frozenset(split.sessions["train"]),
        )


def check_same_recipe(run: Path, recipe: dict[str, Any], of_fold: dict[str, Any]) -> None:
    """Raises `ValueError` where a run and a fold, or their members, were not trained by the same recipe."""
    for name in sorted((recipe.keys() | of_fold.keys()) - FREE):
        if recipe.get(name) != of_fold.get(name):
            raise ValueError(
                f"{run}: its recipe has {name}={recipe.get(name)}, that of a fold {name}={of_fold.get(name)}."
            )
    members, of_members = ([Path(each) for each in of.get("members") or []] for of in (recipe, of_fold))
    if len(members) != len(of_members):
        raise ValueError(f"{run}: has {len(members)} members, a fold {len(of_members)}.")
    for member, other in zip(members, of_members, strict=True):
        check_same_recipe(member, read_recipe(member), read_recipe(other))
    teachers, of_teachers = (len(of.get("teachers") or []) for of in (recipe, of_fold))
    if teachers != of_teachers:
        raise ValueError(f"{run}: learned from {teachers} teachers, a fold from {of_teachers}.")


def check_folds(run: Path, folds: Sequence[Fold]) -> None:
    """
    Raises `ValueError` for folds that cannot vouch for the model of a run: another recipe, sessions on both sides, an
    epoch that was chosen on the scans that are reported, other scans for another seed, or no other fold to be
    calibrated by; and for a run that left scans out.
    """
    recipe = read_recipe(run)
    split = Split.load(run / SPLIT_FILE)
    if split.method != "all" or len(split.parts) > 1:
        raise ValueError(f"{run}: was not trained on every scan; what is shipped is a run with --split all.")
    for fold in folds:
        check_same_recipe(run, recipe, fold.recipe)
        if fold.held_out & fold.trained_on:
            raise ValueError("a fold was trained on scans of a session that it was scored on; use --split sessions.")
        if fold.recipe.get("load_best_model_at_end"):
            raise ValueError("a fold ended with the epoch that was best on its own scans; use the last epoch.")
    for of_seed in (by_seed := group_by_seed(folds)).values():
        if len(of_seed) == 1:
            seed = of_seed[0].summary["seed"]
            raise ValueError(f"seed {seed} has one fold, whose calibration another would have to give; give two.")
    if len({frozenset(fold.held_out for fold in of_seed) for of_seed in by_seed.values()}) > 1:
        raise ValueError(f"seeds {', '.join(map(str, by_seed))} have other folds each; give the same folds of all.")
    if len({json.dumps(scored_on(fold.summary)) for fold in folds}) > 1:
        raise ValueError("the folds were not scored on the same kind of scans: see eval_labels, eval_complete_scans.")


def scored_on(summary: dict[str, Any]) -> dict[str, Any]:
    """Which scans the figures of a run are of: `labels` and `complete_scans_only`."""
    return {"labels": summary["labels"]["scored"], "complete_scans_only": summary["complete_scans_only"]}


def group_by_seed(folds: Sequence[Fold]) -> dict[int, list[Fold]]:
    """The folds of each seed, the smallest seed first."""
    seeds = sorted({fold.summary["seed"] for fold in folds})
    return {seed: [fold for fold in folds if fold.summary["seed"] == seed] for seed in seeds}


def num_folds_wanted(recipe: dict[str, Any]) -> int:
    """Of how many folds a run is one; an ensemble is of the fold of its members."""
    if members := recipe.get("members"):
        return num_folds_wanted(read_recipe(Path(members[0])))
    return recipe.get("num_folds") or 1


def describe(run: Path, folds: Sequence[Fold]) -> dict[str, Any]:
    """Everything that the card says of a model, from the files of its run and of its folds."""
    metric = load_metric()
    by_seed = group_by_seed(folds)
    plain = [Probabilities.concatenate([fold.verdict for fold in of_seed]) for of_seed in by_seed.values()]
    calibrated = [
        Probabilities.concatenate(cross_calibrated([fold.verdict for fold in of_seed])) for of_seed in by_seed.values()
    ]
    first = calibrated[0]
    names = first.label_names.tolist()
    counts = np.bincount(first.labels, minlength=len(names)).tolist()
    figures, _ = figures_by_lines(calibrated)

    def scores(verdict: Probabilities, key: str) -> dict[str, Any]:
        given = np.isfinite(verdict.after(key)).all(axis=1)  # of a scan that begins later there is none yet
        return metric.compute(
            predictions=verdict.after(key)[given],
            references=verdict.labels[given],
            label_names=names,
            on_missing_class="skip",
        )

    def mean(of_seeds: list[dict[str, Any]], name: str) -> float:
        return float(np.mean([score[name] for score in of_seeds]))

    by_lines = {}
    for key, of_key in figures.items():
        before, after = ([scores(verdict, key) for verdict in verdicts] for verdicts in (plain, calibrated))
        by_lines[key] = {
            **of_key,
            "balanced_accuracy_before": mean(before, "balanced_accuracy"),
            "expected_calibration_error_before": mean(before, "expected_calibration_error"),
            "expected_calibration_error": mean(after, "expected_calibration_error"),
            "expected_calibration_error_by_chance": calibration_error_by_chance(
                [of[np.isfinite(of).all(axis=1)] for of in (verdict.after(key) for verdict in calibrated)]
            ),
            "accuracy": mean(after, "accuracy"),
        }
    classes = {
        key: {
            name: {
                figure: mean([scores(verdict, key) for verdict in calibrated], f"{figure}_{name}") if count else None
                for figure in ("precision", "recall", "f1")
            }
            for name, count in zip(names, counts, strict=True)
        }
        for key in ("20", "whole")
        if key in figures
    }
    calibration = Calibration.fit([fold.verdict for fold in folds]).rounded()
    return {
        "run": json.loads((run / SUMMARY_FILE).read_text(encoding="utf-8")),
        "label_names": names,
        "seeds": list(by_seed),
        "num_folds": max(len(of_seed) for of_seed in by_seed.values()),
        "num_folds_wanted": num_folds_wanted(folds[0].recipe),
        "num_scans": len(first.labels),
        "counts": counts,
        "scored_on": scored_on(folds[0].summary),
        "by_lines": by_lines,
        "classes": classes,
        "confusion": scores(first, "whole")["confusion_matrix"],
        "sessions": first.by_session(),
        "mistakes": first.surest_mistakes(),
        "calibration": {
            "lines": first.line_counts.tolist(),
            "temperatures": calibration.temperatures.tolist(),
            "exponents": calibration.exponents.tolist(),
            "biases": calibration.biases.tolist(),
        },
        "decisions": describe_decisions(
            [[fold.verdict for fold in of_seed] for of_seed in by_seed.values()], calibration
        ),
    }


def describe_decisions(seeds: Sequence[Sequence[Probabilities]], calibration: Calibration) -> dict[str, Any]:
    """
    Thresholds for deciding early, and what they do.

    Args:
        seeds: of each seed, the verdicts of its folds, not calibrated.
        calibration: the one that is shipped.

    Returns:
        `alphas` and `thresholds`, which all seeds bear out; and as [`cross_decided`], means over the seeds that
        decide.
    """
    fitted = [fit_thresholds([calibration.apply(fold) for fold in of_seed]) for of_seed in seeds]
    alphas = sorted(set.intersection(*map(set, fitted)))
    by_seed = [cross_decided(of_seed) for of_seed in seeds if len(of_seed) > 1]

    def mean(rows: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
        values = {name: [value for row in rows if (value := row[name]) is not None] for name in rows[0]}
        same = {name: rows[0][name] for name in ("alpha", "lines") if name in rows[0]}  # what the row is of
        return {name: float(np.mean(known)) if known else None for name, known in values.items()} | same

    return {
        "alphas": alphas,
        "thresholds": [max(of_seed[alpha] for of_seed in fitted) for alpha in alphas],
        **{
            kind: [mean(rows) for rows in zip(*(of_seed[kind] for of_seed in by_seed), strict=True)]
            for kind in ("early", "fixed")
        },
    }


def example_scan() -> np.ndarray:
    """Heights `[60, 200]` of stripes and noise; `release.json` keeps what the model said of them when it was made."""
    noise = np.random.default_rng(0).standard_normal((60, 200))
    return (np.sin(np.arange(200) / 5) + 0.3 * noise).astype(np.float32)


def draw(description: dict[str, Any]) -> Figure:
    """The figures against lines, with their intervals."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    lines = description["calibration"]["lines"]
    for axis, (name, title) in zip(figure.subplots(1, 2), FIGURES.items(), strict=True):
        values = [description["by_lines"][str(count)][name] for count in lines]
        axis.plot(lines, [value["mean"] for value in values], marker="o")
        low, high = zip(*(value["interval"] for value in values), strict=True)
        axis.fill_between(lines, low, high, alpha=0.2, linewidth=0)
        axis.set(xscale="log", xlabel="lines seen", title=title)
        axis.set_xticks(lines, map(str, lines))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    return figure


def save_as(model: PreTrainedModel, output: Path, dtype: str) -> PreTrainedModel:
    """Saves a model in float32 with its weights stored in another dtype; returns it as it is loaded again."""
    model.to(getattr(torch, dtype)).save_pretrained(output)
    model.config.dtype = torch.float32  # which from_pretrained goes by, not by what is stored
    model.config.save_pretrained(output)
    return AutoModelForImageClassification.from_pretrained(output)


def recipe_of_start(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe, without paths, of the run whose weights a run started from; empty where there is none at hand."""
    start = Path(recipe.get("model_name_or_path") or "")
    return portable_recipe(read_recipe(start)) if (start / RECIPE_FILE).is_file() else {}


def release(
    run: Path,
    fold_folders: Sequence[Path],
    output: Path,
    tip_change: Path | None = None,
    familiarity: Path | None = None,
    normalization: str | None = None,
    remark: str | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """
    Writes the Hub folder.

    Args:
        run: whose weights are shipped.
        fold_folders: runs that vouch for it.
        output: the folder to write.
        tip_change: what `benchmarks.tip_change` wrote, to ship its search for tip changes; `None` ships none.
        familiarity: what `benchmarks.familiarity` wrote, to ship what scans of training look like; `None` ships none.
        normalization: of the processor, in place of the one of the run, where both do the same to its scans.
        remark: what the card says below its figures, as of choices that they depend on.
        dtype: that weights are stored in, one of `DTYPES`; whoever loads them computes in float32 all the same.

    Returns:
        What the card was written from; also in `release.json`.

    Raises:
        ValueError: for folds that cannot vouch for the model.
        OSError: if something is missing.
    """
    folds = [Fold.load(folder) for folder in fold_folders]
    check_folds(run, folds)
    description = describe(run, folds) | {"remark": remark}
    config = AutoConfig.from_pretrained(run)
    classes, of_folds = [config.id2label[label] for label in range(config.num_labels)], description["label_names"]
    if classes != of_folds:
        raise ValueError(
            f"{run}: its classes are {', '.join(classes)}, those of its folds {', '.join(of_folds)}, in that order."
        )
    if hasattr(config, "next_line_weight"):
        config.next_line_weight = 0.0  # its weights are for training only
    model = AutoModelForImageClassification.from_pretrained(run, config=config)
    model.config.calibration_lines = description["calibration"]["lines"]
    model.config.calibration_temperatures = description["calibration"]["temperatures"]
    model.config.calibration_exponents = description["calibration"]["exponents"]
    model.config.calibration_biases = description["calibration"]["biases"]
    model.config.decision_alphas = description["decisions"]["alphas"] or None
    model.config.decision_thresholds = description["decisions"]["thresholds"] or None
    description["tip_change"] = None
    if tip_change is not None:
        found = json.loads(tip_change.read_text(encoding="utf-8"))
        model.config.change_weights, model.config.change_threshold = found["change_weights"], found["change_threshold"]
        description["tip_change"] = [row for row in found["rows"] if row["threshold"] == found["change_threshold"]]
    description["familiarity"] = None
    if familiarity is not None:
        found = json.loads(familiarity.read_text(encoding="utf-8"))
        for name in ("mean", "whitening", "lines", "thresholds"):
            setattr(model.config, f"familiarity_{name}", found[f"familiarity_{name}"])
        shown = ("line_counts", "num_scans", "num_sessions", "allowed", "rows")
        description["familiarity"] = {name: found[name] for name in shown}
    output.mkdir(parents=True, exist_ok=True)
    model = save_as(model, output, dtype)
    processor = AutoImageProcessor.from_pretrained(run)
    if normalization is not None:
        description["normalization"] = {"run": processor.normalization, "shipped": normalization}
        processor.normalization = normalization
    processor.save_pretrained(output)
    with torch.inference_mode():
        logits = model.eval()(**processor(example_scan(), return_tensors="pt")).logits[0]
    description["example"] = logits.softmax(-1).tolist()
    recipe = read_recipe(run)
    write_recipe(output, portable_recipe(recipe))
    shutil.copyfile(run / SPLIT_FILE, output / SPLIT_FILE)  # or nobody could tell which scans it has seen
    (output / PRETRAINING_RECIPE_FILE).unlink(missing_ok=True)  # of other weights
    if pretraining := recipe_of_start(recipe):
        write_recipe(output, pretraining, PRETRAINING_RECIPE_FILE)
        start = Path(recipe["model_name_or_path"])
        description["pretraining"] = json.loads((start / SUMMARY_FILE).read_text(encoding="utf-8"))
    for kind in ("teachers", "members"):
        others = [read_recipe(Path(other)) for other in recipe.get(kind) or []]
        description[kind] = [
            {"recipe": portable_recipe(other), "pretraining_recipe": recipe_of_start(other)} for other in others
        ]
    description["name"], description["dtype"] = output.name, dtype
    description["num_parameters"] = model.num_parameters()
    description["weights_mb"] = round((output / "model.safetensors").stat().st_size / 1e6, 1)
    (output / RELEASE_FILE).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    draw(description).savefig(output / "figures.png", dpi=110)
    for stale in (FAILURES_FILE, FAILURES_PICTURE):  # of other weights
        (output / stale).unlink(missing_ok=True)
    write_card(output)
    return description


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run with split=all, whose weights are shipped")
    parser.add_argument("--folds", type=Path, nargs="+", required=True, help="runs of cross-validation by sessions")
    parser.add_argument("--output", type=Path, required=True, help="Hub folder to write, as model_cards/NAME")
    parser.add_argument("--tip_change", type=Path, help="tip_change.json of benchmarks.tip_change, for streams")
    parser.add_argument("--familiarity", type=Path, help="familiarity.json of benchmarks.familiarity, for streams")
    parser.add_argument(
        "--normalization",
        choices=NORMALIZATIONS,
        help="what users' scans want, in place of that of the run: flat_line, where the scans of training came flat",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=DTYPES,
        help="what weights are stored in (float32); in float16 they take half the room, and are loaded as float32",
    )
    parser.add_argument("--remark", help="a sentence for the card, below its figures: what they depend on, for one")
    arguments = parser.parse_args(argv)
    folders = [folder for folder in arguments.folds if folder.is_dir()]  # a pattern also catches their logs
    try:
        if not folders:
            raise ValueError("--folds: none of these is a folder.")
        description = release(
            arguments.run,
            folders,
            arguments.output,
            arguments.tip_change,
            arguments.familiarity,
            arguments.normalization,
            arguments.remark,
            arguments.dtype,
        )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        logging.getLogger("release").error("%s", error)
        return 2
    whole = description["by_lines"]["whole"]
    console.print(
        f"{arguments.output}: {description['weights_mb']} MB; {description['num_folds']} of "
        f"{description['num_folds_wanted']} folds: balanced accuracy {whole['balanced_accuracy']['mean']:.3f}, AUROC "
        f"{whole['auroc']['mean']:.3f}, calibration error {whole['expected_calibration_error']:.3f} on "
        f"{description['num_scans']} scans."
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
