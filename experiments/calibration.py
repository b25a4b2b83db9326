"""What makes probabilities honest: temperatures and biases, found on scans that the model was not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from .probabilities import Probabilities
from .scoring import load_metric

SMALLEST = 1e-7  # probability that a certain verdict still leaves to the others, so that its logarithm exists
LARGEST_TEMPERATURE = 20.0
# Of the squares of the biases, in the loss: a rare state keeps some of the weight that training gave it. With none,
# the labels of the folds of finetune_small are no more likely, and balanced accuracy is lower by a point.
SHRINKAGE = 0.01


def calibrate(probabilities: np.ndarray, temperature: float, biases: np.ndarray | float = 0.0) -> np.ndarray:
    """Probabilities `[..., num_labels]` as if their logits had been divided by `temperature`, and `biases` added."""
    logits = np.log(np.clip(probabilities, SMALLEST, None)) / temperature + biases
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def fit_calibration(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """
    The temperature and the biases under which the labels are most likely (Alexandari et al. 2020).

    Args:
        probabilities: `[num_scans, num_labels]`.
        labels: class indices `[num_scans]`.

    Returns:
        The temperature, and biases `[num_labels]` with mean 0.
    """
    logits = np.log(np.clip(probabilities, SMALLEST, None))
    targets = np.eye(logits.shape[1])[labels]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = logits * np.exp(-parameters[0])
        predicted = scaled + parameters[1:]
        predicted = predicted - predicted.max(axis=1, keepdims=True)
        log_likelihoods = predicted - np.log(np.exp(predicted).sum(axis=1, keepdims=True))
        slopes = (np.exp(log_likelihoods) - targets) / len(labels)
        value = -(log_likelihoods * targets).sum() / len(labels) + SHRINKAGE * np.square(parameters[1:]).sum()
        return value, np.r_[-(slopes * scaled).sum(), slopes.sum(axis=0) + 2 * SHRINKAGE * parameters[1:]]

    limit = np.log(LARGEST_TEMPERATURE)
    bounds = [(-limit, limit), *[(None, None)] * logits.shape[1]]
    found = minimize(loss, np.zeros(1 + logits.shape[1]), jac=True, bounds=bounds, method="L-BFGS-B").x
    return float(np.exp(found[0])), found[1:] - found[1:].mean()


def calibration_error_by_chance(verdicts: Sequence[np.ndarray], num_draws: int = 20) -> float:
    """
    The expected calibration error that probabilities without any error would get on as many scans.

    It counts every gap between confidence and accuracy, also those that are there by chance: with few scans in a bin
    it is far from 0 for the truth itself (Kumar et al. 2019, arXiv:1909.10155). Labels are drawn from the
    probabilities.

    Args:
        verdicts: probabilities `[num_scans, num_labels]`, each of which is scored by itself.
        num_draws: to take the mean of, for each of the verdicts.
    """
    metric, rng = load_metric(), np.random.default_rng(0)
    errors = []
    for verdict in verdicts:
        ends = verdict.cumsum(axis=1)
        names = list(map(str, range(verdict.shape[1])))
        for _ in range(num_draws):
            drawn = (rng.random((len(ends), 1)) * ends[:, -1:] >= ends).sum(axis=1)
            scores = metric.compute(predictions=verdict, references=drawn, label_names=names, on_missing_class="skip")
            errors.append(scores["expected_calibration_error"])
    return float(np.mean(errors))


@dataclass(frozen=True)
class Calibration:
    """
    What logits are divided by, and what is added then, after each number of lines.

    Attributes:
        temperatures: `[num_counts]`.
        biases: `[num_counts, num_labels]`.
    """

    temperatures: np.ndarray
    biases: np.ndarray

    @classmethod
    def fit(cls, verdicts: Sequence[Probabilities]) -> "Calibration":
        """That of all verdicts together."""
        labels = np.concatenate([verdict.labels for verdict in verdicts])
        found = []
        for index in range(len(verdicts[0].line_counts)):
            probabilities = np.concatenate([verdict.by_lines[index] for verdict in verdicts])
            given = np.isfinite(probabilities).all(axis=-1)
            found.append(fit_calibration(probabilities[given], labels[given]))
        return cls(np.array([temperature for temperature, _ in found]), np.stack([biases for _, biases in found]))

    def rounded(self) -> "Calibration":
        """The same to four decimals."""
        return Calibration(self.temperatures.round(4), self.biases.round(4))

    def apply(self, verdict: Probabilities) -> Probabilities:
        """The same verdicts, calibrated; a whole scan gets what the last number of lines has."""
        pairs = list(zip(self.temperatures.tolist(), self.biases, strict=True))
        by_lines = [calibrate(of, *pair) for of, pair in zip(verdict.by_lines, pairs, strict=True)]
        changed = {"by_lines": np.stack(by_lines), "whole": calibrate(verdict.whole, *pairs[-1])}
        return Probabilities(**{**vars(verdict), **changed})


def cross_calibrated(folds: Sequence[Probabilities]) -> list[Probabilities]:
    """Each fold with the calibration that the others give: what it does for sessions it has not seen."""
    return [Calibration.fit([other for other in folds if other is not fold]).apply(fold) for fold in folds]
