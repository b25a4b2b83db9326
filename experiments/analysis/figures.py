"""What the files of one run add up to: best and latest figures, the gap, where validation loss turned, every class."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..intervals import auroc
from ..probabilities import Probabilities
from ..run_folder import SUMMARY_FILE
from .history import PARTS, History
from .record import RunRecord, dig

FIGURES = ("accuracy", "loss", "balanced_accuracy", "auroc")
OF_CLASSES = ("precision", "recall", "f1", "support")
SCORED_PARTS = ("validation", "test")
# entries of a model's configuration that a recipe may leave to their defaults
OF_MODEL = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_dropout_prob")
# a validation loss has turned if, after its lowest, it is this much higher in the mean of so many last epochs
RISE, LAST_EPOCHS = 0.02, 3
# a figure has come to rest at the first epoch so close to its best
REST = 0.01


def turn(history: History) -> dict[str, float] | None:
    """
    Where validation loss turned: its lowest value, with at least 3 epochs after it, the last 3 at least 2 % higher.

    Returns:
        `epoch`, `loss`, and `latest_loss`; `None` if it has not turned.
    """
    best, points = history.best("validation", "loss"), list(history.known("validation", "loss"))
    if best is None:
        return None
    after = [point.value for point in points if point.epoch > best.epoch]
    if len(after) < LAST_EPOCHS or np.mean(after[-LAST_EPOCHS:]) < best.value + RISE * abs(best.value):
        return None
    return {"epoch": best.epoch, "loss": best.value, "latest_loss": points[-1].value}


def rest(history: History, name: str) -> float | None:
    """The first epoch at which a validation figure is within 0.01 of its best; `None` without the figure."""
    best = history.best("validation", name)
    if best is None:
        return None
    return next(p.epoch for p in history.known("validation", name) if p.value >= best.value - REST)


def gap(history: History) -> dict[str, float] | None:
    """Train minus validation at the last epoch that has both accuracies: `accuracy`, `epoch`, and `loss` if known."""
    train, validation = ({p.epoch: p.value for p in history.known(part, "accuracy")} for part in PARTS)
    common = train.keys() & validation.keys()
    if not common:
        return None
    epoch = max(common)
    losses = [{p.epoch: p.value for p in history.known(part, "loss")}.get(epoch) for part in PARTS]
    known = {} if None in losses else {"loss": losses[0] - losses[1]}  # type: ignore[operator]
    return {"epoch": epoch, "accuracy": train[epoch] - validation[epoch], **known}


def _gap_of_weights(summary: dict[str, Any]) -> dict[str, float | None] | None:
    """The gap of a run that was not validated on its way: of the weights that it kept, without augmentation."""
    train, validation = (dig(summary, part, "whole", "accuracy") for part in PARTS)
    return None if train is None or validation is None else {"epoch": None, "accuracy": train - validation}


def diverged(history: History) -> float | None:
    """The first epoch whose loss, train or validation, is no number; `None` if there is none."""
    epochs = [
        float(history.epochs[place])
        for part in PARTS
        if "loss" in history.part(part)
        for place in np.flatnonzero(~np.isfinite(history.part(part)["loss"]))[:1]
        # the epoch under way has no validation yet
        if place < len(history) - 1 or np.isinf(history.part(part)["loss"][place])
    ]
    return min(epochs, default=None)


def course(history: History, part: str) -> dict[str, dict[str, float]]:
    """Best and latest of each figure, with their epochs."""
    result = {}
    for name in FIGURES:
        best, latest = history.best(part, name), history.latest(part, name)
        if best is not None and latest is not None:
            result[name] = {
                "best": best.value,
                "best_epoch": best.epoch,
                "latest": latest.value,
                "latest_epoch": latest.epoch,
            }
    return result


def analyze(run: RunRecord, areas: bool = True) -> dict[str, Any]:
    """
    Everything that is said of a run.

    Args:
        run: which.
        areas: whether to work out the AUROC of every class, where the run kept its probabilities: of hundreds of runs,
            it takes longer than all the rest.

    Returns:
        `run`, `state`, `problem`, what it was (`model`, `num_parameters`, `dataset`, `split`, `seed`, `fold`,
        `options`), how it went (`epochs`, `train`, `validation`, `gap`, `turned`, `rested`, `diverged`, `seconds`),
        and `scored`: by part, see [`scored_figures`]. What is not known is `None` or left out.
    """
    history, summary = run.history, run.summary
    best_step, steps, epochs = (summary.get(name) for name in ("best_step", "steps", "epochs"))
    kept = round(best_step / steps * epochs, 4) if best_step and steps and epochs else epochs
    train_seconds = history.train.get("seconds")
    return {
        "run": run.name,
        "state": run.state,
        "problem": run.problem,
        "model": summary.get("model_type") or run.config.get("model_type") or run.recipe.get("model"),
        "num_parameters": summary.get("num_parameters"),
        "dataset": summary.get("dataset") or run.recipe.get("dataset"),
        "split": dig(summary, "split", "method") or run.recipe.get("split"),
        "seed": run.recipe.get("seed", summary.get("seed")),
        "fold": run.recipe.get("fold"),
        "num_labels": len(run.label_names) or None,
        "options": {**{name: run.config[name] for name in OF_MODEL if name in run.config}, **run.options},
        "epochs": len(history),
        "epochs_planned": run.recipe.get("num_train_epochs"),
        "epoch_kept": kept if len(history) else None,
        **{part: course(history, part) for part in PARTS},
        "gap": gap(history) or _gap_of_weights(summary),
        "turned": turn(history),
        "rested": {name: rest(history, name) for name in ("accuracy", "balanced_accuracy")},
        "diverged": diverged(history),
        "seconds": None if train_seconds is None else float(np.nansum(train_seconds)),
        "scored": dict(_scored(run, areas)),
    }


def _scored(run: RunRecord, areas: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    for part in SCORED_PARTS:
        figures, source = run.summary.get(part), SUMMARY_FILE
        if not isinstance(figures, dict):
            if part != "validation" or not len(run.history):
                continue
            figures, source = _of_last_epoch(run.history), f"epoch {run.history.epochs[-1]:g}"
        scored = scored_figures(figures, run.label_names)
        if scored["whole"]:
            if areas:
                _add_area_of_classes(scored, run, part)
            yield part, {"source": source, **scored}


def _of_last_epoch(history: History) -> dict[str, Any]:
    """The figures of the last epoch in the shape that a summary has."""
    whole: dict[str, float] = {}
    by_lines: dict[str, dict[str, float]] = {}
    for name, values in history.validation.items():
        figure, at, lines = name.rpartition("_at_")
        if np.isfinite(values[-1]):
            (by_lines.setdefault(lines, {}) if at else whole)[figure if at else name] = float(values[-1])
    return {"whole": whole, "by_lines": by_lines}


def scored_figures(figures: Mapping[str, Any], label_names: list[str]) -> dict[str, Any]:
    """
    Figures of a part as a summary holds them, classes by name.

    Args:
        figures: `whole` and `by_lines`, each as the metric gives them.
        label_names: in the order of the confusion matrix; those that are not given are read off the figures.

    Returns:
        `whole` and, by number of lines, `by_lines`: `balanced_accuracy`, `auroc`, `accuracy`,
        `expected_calibration_error`, and `classes`, of each `precision`, `recall`, `f1` and `support`;
        `confusion_matrix`, true class by predicted class; `label_names` and `num_scans`.
    """
    whole = figures.get("whole")
    whole = whole if isinstance(whole, dict) else {}
    names = label_names or [name.removeprefix("recall_") for name in whole if name.startswith("recall_")]
    by_lines = figures.get("by_lines")
    counts = sorted(filter(str.isdecimal, by_lines), key=int) if isinstance(by_lines, dict) else []
    matrix = np.asarray(whole.get("confusion_matrix", ()), dtype=np.float64)
    return {
        "whole": _one(whole, names),
        "by_lines": {lines: one for lines in counts if (one := _one(by_lines[lines], names))},  # type: ignore[index]
        "confusion_matrix": matrix.astype(int).tolist() if matrix.shape == (len(names),) * 2 else None,
        "label_names": names,
        "num_scans": whole.get("num_scans"),
    }


def _one(values: Any, names: list[str]) -> dict[str, Any]:
    if not isinstance(values, dict):
        return {}
    figures = {
        name: values[name]
        for name in ("balanced_accuracy", "auroc", "accuracy", "expected_calibration_error")
        if isinstance(values.get(name), (int, float))
    }
    classes = {
        name: {figure: values[f"{figure}_{name}"] for figure in OF_CLASSES if f"{figure}_{name}" in values}
        for name in names
    }
    known = {name: of_class for name, of_class in classes.items() if of_class}
    return {**figures, "classes": known} if figures else {}


def _add_area_of_classes(scored: dict[str, Any], run: RunRecord, part: str) -> None:
    """Adds `auroc` of each class against the others, where the run kept its probabilities."""
    try:
        verdicts = Probabilities.load(run.folder, part)
        by_key = dict(zip(map(str, verdicts.line_counts), verdicts.by_lines, strict=True))
        for lines, figures in [*scored["by_lines"].items(), ("whole", scored["whole"])]:
            probabilities = verdicts.whole if lines == "whole" else by_key[lines]
            seen = np.isfinite(probabilities).all(axis=1)
            for place, name in enumerate(verdicts.label_names.tolist()):
                positive = verdicts.labels[seen] == place
                if name in figures["classes"] and positive.any() and not positive.all():
                    score = probabilities[seen, place].astype(np.float64)
                    both = np.stack([1 - score, score], axis=1)
                    area = auroc(both, positive.astype(int), np.ones((1, len(score))))
                    figures["classes"][name]["auroc"] = float(area[0])
    except (ValueError, KeyError, IndexError):
        return  # an older run, or one cut off before it was scored: the summary's figures stand without
