"""Temperatures that make probabilities honest, found on scans that the model was not trained on."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from .probabilities import Probabilities

SMALLEST = 1e-7  # probability that a certain verdict still leaves to the others, so that its logarithm exists
LARGEST_TEMPERATURE = 20.0


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities `[..., num_labels]` as if their logits had been divided by `temperature`."""
    logits = np.log(np.clip(probabilities, SMALLEST, None)) / temperature
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """
    The temperature under which the labels are most likely (Guo et al. 2017).

    Args:
        probabilities: `[num_scans, num_labels]`.
        labels: class indices `[num_scans]`.
    """

    def loss(logarithm: float) -> float:
        of_labels = with_temperature(probabilities, np.exp(logarithm))[np.arange(len(labels)), labels]
        return -float(np.log(np.clip(of_labels, SMALLEST, None)).mean())

    limit = np.log(LARGEST_TEMPERATURE)
    return float(np.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded").x))


def fit_temperatures(verdicts: Sequence[Probabilities]) -> list[float]:
    """A temperature for each of their line counts, from all verdicts together."""
    temperatures = []
    for index in range(len(verdicts[0].line_counts)):
        probabilities = np.concatenate([verdict.by_lines[index] for verdict in verdicts])
        labels = np.concatenate([verdict.labels for verdict in verdicts])
        given = np.isfinite(probabilities).all(axis=-1)
        temperatures.append(fit_temperature(probabilities[given], labels[given]))
    return temperatures


def apply_temperatures(verdict: Probabilities, temperatures: Sequence[float]) -> Probabilities:
    """The same verdicts with a temperature for each line count; a whole scan gets the last."""
    by_lines = [with_temperature(of, value) for of, value in zip(verdict.by_lines, temperatures, strict=True)]
    changed = {"by_lines": np.stack(by_lines), "whole": with_temperature(verdict.whole, temperatures[-1])}
    return Probabilities(**{**vars(verdict), **changed})


def cross_calibrated(folds: Sequence[Probabilities]) -> list[Probabilities]:
    """Each fold with the temperatures that the others give: what calibration does for sessions it has not seen."""
    return [
        apply_temperatures(fold, fit_temperatures([other for other in folds if other is not fold])) for fold in folds
    ]
