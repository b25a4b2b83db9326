"""Figures of merit of a model on a part of a dataset, after each number of lines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import PredictionOutput

from configuration import ConfigurationError
from data_scripts.scan_dataset import ScanDataset

from .probabilities import Probabilities

TIP_STATE_METRIC = Path(__file__).parents[1] / "metrics" / "tip_state"
MAIN_FIGURES = ("balanced_accuracy", "auroc", "accuracy", "expected_calibration_error")


def last_measured_lines(dataset: ScanDataset, num_lines: int) -> np.ndarray:
    """Index of the last measured one among the first `num_lines` lines of each scan, -1 where there is none."""
    measured = dataset.measured[:, :num_lines]
    return ((measured * torch.arange(1, measured.shape[1] + 1)).amax(dim=1) - 1).numpy()


def split_outputs(predictions: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits `[num_scans, num_labels]`, and those of every line where the model gives them."""
    return predictions if isinstance(predictions, tuple) else (np.asarray(predictions), None)


def load_metric() -> evaluate.EvaluationModule:
    """The metric `tip_state`; in memory, for several processes would fight over one cache file."""
    return evaluate.load(str(TIP_STATE_METRIC), keep_in_memory=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, in float64; NaN stays NaN."""
    logits = logits.astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


class TipStateScorer:
    """
    Computes the metric `tip_state` from a model's outputs; to be handed to the Trainer as `compute_metrics`.

    Args:
        dataset: the scans that will be predicted, in their order.
        label_names: names of the classes.
        line_counts: numbers of lines to score after, for models with a verdict at every line.
    """

    def __init__(self, dataset: ScanDataset, label_names: Sequence[str], line_counts: Sequence[int]):
        self.dataset = dataset
        self.label_names = list(label_names)
        longest = dataset.lines.shape[1]
        self.line_counts = [count for count in sorted(line_counts) if count <= longest]
        self.metric = load_metric()

    def score(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """
        All figures of `logits` `[num_scans, num_labels]`; classes without a scan are left out of averages.

        Raises:
            ConfigurationError: if not all are finite.
        """
        diverged = int((~np.isfinite(logits).all(axis=1)).sum())
        if diverged:
            raise ConfigurationError(
                f"the model has no finite logits for {diverged} of {len(logits)} scans: its weights have diverged. "
                "Train with a smaller learning_rate, a longer warmup or a smaller max_grad_norm."
            )
        labels = labels if labels.ndim == 1 else labels.argmax(axis=1)
        return self.metric.compute(
            predictions=softmax(logits), references=labels, label_names=self.label_names, on_missing_class="skip"
        )

    def check_figure(self, name: str) -> None:
        """Raises `ValueError` for what is no figure of an epoch: the Trainer finds out after the first one only."""
        labels = np.asarray(self.dataset.labels)
        figures = self.score(np.zeros((len(labels), len(self.label_names))), labels)
        known = ["loss", *(each for each, value in figures.items() if isinstance(value, (int, float)))]
        by_lines = [f"{each}_at_{count}" for count in self.line_counts for each in MAIN_FIGURES]
        if name.removeprefix("eval_") not in known + by_lines:
            raise ValueError(f"there is no figure {name!r} of an epoch; there are {', '.join(known + by_lines)}.")

    def by_lines(self, line_logits: np.ndarray, labels: np.ndarray) -> dict[int, dict[str, Any]]:
        """All figures of `line_logits` `[num_scans, lines, num_labels]` after each number of lines."""
        results = {}
        for count in self.line_counts:
            last = last_measured_lines(self.dataset, count)
            seen = np.flatnonzero(last >= 0)
            if len(seen):
                results[count] = self.score(line_logits[seen, last[seen]], labels[seen])
        return results

    def __call__(self, prediction: EvalPrediction) -> dict[str, Any]:
        """The figures that are numbers, and the main ones after each number of lines as `NAME_at_LINES`."""
        logits, line_logits = split_outputs(prediction.predictions)
        labels = np.asarray(prediction.label_ids)
        figures = {
            name: value for name, value in self.score(logits, labels).items() if isinstance(value, (int, float))
        }
        if line_logits is not None:
            for count, result in self.by_lines(line_logits, labels).items():
                figures |= {f"{name}_at_{count}": result[name] for name in MAIN_FIGURES}
        return figures


def predict_by_lines(
    trainer: Trainer, dataset: ScanDataset, line_counts: Sequence[int]
) -> tuple[PredictionOutput, np.ndarray, np.ndarray]:
    """
    What a model says of each scan, whole and after each number of lines.

    A model that judges a scan as a whole is run once for each number of lines.

    Returns:
        The Trainer's output, logits of whole scans `[num_scans, num_labels]`, and after each number of lines
        `[num_counts, num_scans, num_labels]`, NaN where none of them was measured.
    """
    of_validation, trainer.compute_metrics = trainer.compute_metrics, None  # it scores the validation part, no other
    try:
        output = trainer.predict(dataset)
        logits, line_logits = split_outputs(output.predictions)
        by_lines = np.full((len(line_counts), *logits.shape), np.nan, dtype=np.float32)
        for result, count in zip(by_lines, line_counts, strict=True):
            last = last_measured_lines(dataset, count)
            seen = np.flatnonzero(last >= 0)
            if line_logits is not None:
                result[seen] = line_logits[seen, last[seen]]
            elif len(seen):
                result[seen] = split_outputs(trainer.predict(dataset.first_lines(count)).predictions)[0][seen]
    finally:
        trainer.compute_metrics = of_validation
    return output, logits, by_lines


def score_part(
    trainer: Trainer, dataset: ScanDataset, scorer: TipStateScorer, scan_ids: Sequence[str], groups: Sequence[str]
) -> tuple[dict[str, Any], Probabilities]:
    """
    Figures of a model on one part, and what they are computed from.

    Returns:
        `whole` and `by_lines`, each with everything the metric gives, and `loss`; and the probabilities.
    """
    output, logits, by_lines = predict_by_lines(trainer, dataset, scorer.line_counts)
    labels = np.asarray(output.label_ids)
    figures: dict[str, Any] = {
        "loss": output.metrics.get("test_loss") if output.metrics else None,
        "whole": scorer.score(logits, labels),
        "by_lines": {},
    }
    for count, of_count in zip(scorer.line_counts, by_lines, strict=True):
        seen = last_measured_lines(dataset, count) >= 0
        if seen.any():
            figures["by_lines"][str(count)] = scorer.score(of_count[seen], labels[seen])
    return figures, Probabilities(
        scan_ids=np.asarray(scan_ids),
        groups=np.asarray(groups),
        labels=labels if labels.ndim == 1 else labels.argmax(axis=1),
        label_names=np.asarray(scorer.label_names),
        line_counts=np.asarray(scorer.line_counts),
        by_lines=softmax(by_lines).astype(np.float32),
        whole=softmax(logits).astype(np.float32),
    )
